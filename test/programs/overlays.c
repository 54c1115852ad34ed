// Files in an overlay of the program's own: one of the lower layer, one that was copied up since it was opened, one of the lower layer
// that is deleted, open and mapped; a watch and a unix socket in it.
#include "test.h"
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>

static int lower, before, after, deleted, notify, listener;
static char *map;

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  EXPECT_EQ(pread(fd, text, sizeof text - 1, 0), strlen(wanted));
  EXPECT(strcmp(text, wanted) == 0, "fd %d reads %s, wanted %s", fd, text, wanted);
}

static void check(void) {
  expect_text(lower, "lower");
  expect_text(after, "upper");
  EXPECT(fcntl(before, F_GETFD) >= 0, "the descriptor of before is gone");
  expect_text(deleted, "deleted");
  EXPECT(memcmp(map, "deleted", 7) == 0, "the map shows %.7s", map);
  EXPECT(access("merged/deleted", F_OK) == -1, "the deleted file is there");
  char events[512];
  int fd = open("merged/lower", O_RDONLY);
  EXPECT(fd >= 0 && read(notify, events, sizeof events) > 0, "no event: %m");
  close(fd);
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "merged/socket"};
  int client = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  EXPECT(connect(client, (void *)&name, sizeof name) == 0, "connect: %m");
  close(client);
  close(accept(listener, NULL, NULL));
}

static void spoil(void) { MUST(pwrite(after, "spoilt", 6, 0)); }

static void put(const char *name, const char *text) {
  int fd = (int)MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

int main(void) {
  begin();
  tamper = spoil;
  char here[1024], layers[4096];
  MUST(getcwd(here, sizeof here) == NULL ? -1 : 0);
  MUST(unshare(CLONE_NEWNS));
  MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  const char *directories[] = {"low", "up", "work", "merged"};
  for (size_t i = 0; i < COUNT(directories); i++) MUST(mkdir(directories[i], 0700));
  put("low/lower", "lower");
  put("low/raised", "lower");
  put("low/deleted", "deleted");
  snprintf(layers, sizeof layers, "lowerdir=%s/low,upperdir=%s/up,workdir=%s/work", here, here, here);
  MUST(mount("overlay", "merged", "overlay", 0, layers));
  lower = (int)MUST(open("merged/lower", O_RDONLY));
  before = (int)MUST(open("merged/raised", O_RDONLY));
  put("merged/raised", "upper");
  after = (int)MUST(open("merged/raised", O_RDWR));
  deleted = (int)MUST(open("merged/deleted", O_RDONLY));
  map = (char *)MUST(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, deleted, 0));
  MUST(unlink("merged/deleted"));
  notify = (int)MUST(inotify_init1(IN_NONBLOCK));
  MUST(inotify_add_watch(notify, "merged/lower", IN_OPEN));
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "merged/socket"};
  listener = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  MUST(bind(listener, (void *)&name, sizeof name));
  MUST(listen(listener, 2));
  serve(check);
}
