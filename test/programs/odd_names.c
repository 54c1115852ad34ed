// Names that are no UTF-8, or look like something else: of an open and mapped file, a program, a deleted one, a watched one, a directory, a
// unix socket, a memfd; and a file that was opened with O_ASYNC, which means nothing to it and is in its flags all the same.
#include "test.h"
#include <sys/inotify.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ODD "\xff\xfe n\n(deleted)\xc3"
static int file, deleted, notify, watch, directory, listener, memory, memory_dots, async, program;
static char *map;

static void expect_link(int fd, const char *wanted) {
  char path[64], text[4096] = "";
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  EXPECT(readlink(path, text, sizeof text - 1) > 0, "readlink: %m");
  size_t length = strlen(text), end = strlen(wanted);
  EXPECT(length >= end && strcmp(text + length - end, wanted) == 0, "fd %d is %s", fd, text);
}

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  EXPECT_EQ(pread(fd, text, sizeof text - 1, 0), strlen(wanted));
  EXPECT(strcmp(text, wanted) == 0, "it reads %s", text);
}

static void check(void) {
  struct stat by_name, by_fd;
  EXPECT(stat("file" ODD, &by_name) == 0 && fstat(file, &by_fd) == 0, "stat: %m");
  EXPECT_EQ(by_name.st_ino, by_fd.st_ino);
  expect_text(file, "named");
  EXPECT(memcmp(map, "named", 5) == 0, "the map is another file's");
  expect_text(deleted, "gone");
  expect_link(program, "program" ODD);
  EXPECT(access("deleted" ODD, F_OK) == -1, "the deleted file is there");
  char events[512];
  EXPECT_EQ(utimensat(AT_FDCWD, "file" ODD, NULL, 0), 0);
  EXPECT(read(notify, events, sizeof events) > 0 && ((struct inotify_event *)events)->wd == watch, "no event: %m");
  EXPECT(faccessat(directory, "inside", F_OK, 0) == 0, "the directory is another one");
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "s" ODD};
  int client = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  EXPECT(connect(client, (void *)&name, sizeof name) == 0, "connect: %m");
  close(client);
  close(accept(listener, NULL, NULL));
  expect_link(memory, "/memfd:" ODD " (deleted)");
  expect_link(memory_dots, "/memfd:memfd:../x (deleted) (deleted)");
  char flags[64];
  snprintf(events, sizeof events, "/proc/self/fdinfo/%d", async);
  field_of(events, "flags", flags, sizeof flags);
  EXPECT((strtol(flags, NULL, 8) & O_ASYNC) != 0, "O_ASYNC is lost: %s", flags);
}

static void spoil(void) { MUST(rename("file" ODD, "file")); }

static int make(const char *name, const char *text) {
  int fd = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  MUST(write(fd, text, strlen(text)));
  return fd;
}

int main(void) {
  begin();
  tamper = spoil;
  file = make("file" ODD, "named");
  map = (char *)MUST(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 0));
  deleted = make("deleted" ODD, "gone");
  // By its build id it is known again.
  int own = (int)MUST(open("/proc/self/exe", O_RDONLY));
  program = make("program" ODD, "");
  MUST(sendfile(program, own, NULL, MIB));
  close(own);
  MUST(unlink("deleted" ODD));
  notify = (int)MUST(inotify_init1(IN_NONBLOCK));
  watch = (int)MUST(inotify_add_watch(notify, "file" ODD, IN_ATTRIB));
  MUST(mkdir("dir" ODD, 0700));
  directory = (int)MUST(open("dir" ODD, O_RDONLY | O_DIRECTORY));
  close((int)MUST(openat(directory, "inside", O_RDWR | O_CREAT, 0600)));
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "s" ODD};
  listener = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  MUST(bind(listener, (void *)&name, sizeof name));
  MUST(listen(listener, 2));
  memory = (int)MUST(memfd_create(ODD, 0));
  memory_dots = (int)MUST(memfd_create("memfd:../x (deleted)", 0));
  async = (int)MUST(open("plain", O_RDWR | O_CREAT | O_ASYNC, 0600));
  serve(check);
}
