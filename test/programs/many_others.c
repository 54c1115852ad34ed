// N of each of the kinds of descriptors that many_kinds has not (the argument; 2 without one): terminals (both ends), inotify instances with
// a watch, TCP listeners, connected TCP sockets, raw sockets, unix sockets with names, netlink sockets, pidfds, memfds, deleted files, locked files.
#include "test.h"
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { MASTER, SLAVE, NOTIFY, WATCHED, LISTENER, CLIENT, ACCEPTED, RAW, NAMED, NETLINK, PIDFD, MEMORY, DELETED, LOCKED, KINDS };
static int many = 2, (*fds)[KINDS];

static void set_up(int i) {
  int *fd = fds[i];
  char name[32];
  fd[MASTER] = (int)MUST(posix_openpt(O_RDWR | O_NOCTTY));
  MUST(unlockpt(fd[MASTER]));
  fd[SLAVE] = (int)MUST(ioctl(fd[MASTER], TIOCGPTPEER, O_RDWR | O_NOCTTY));
  snprintf(name, sizeof name, "watched-%d", i);
  fd[WATCHED] = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  // Of instances there may be few (fs.inotify.max_user_instances).
  fd[NOTIFY] = i % 50 == 0 ? (int)MUST(inotify_init1(IN_NONBLOCK)) : fds[i - i % 50][NOTIFY];
  MUST(inotify_add_watch(fd[NOTIFY], name, IN_MODIFY));
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof here;
  fd[LISTENER] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(bind(fd[LISTENER], (void *)&here, size));
  MUST(listen(fd[LISTENER], 1));
  MUST(getsockname(fd[LISTENER], (void *)&here, &size));
  fd[CLIENT] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(fd[CLIENT], (void *)&here, size));
  fd[ACCEPTED] = (int)MUST(accept(fd[LISTENER], NULL, NULL));
  fd[RAW] = (int)MUST(socket(AF_INET, SOCK_RAW, 253));
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path + 1, 60, "reprise-many-%d-%d", getpid(), i);
  fd[NAMED] = (int)MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  MUST(bind(fd[NAMED], (void *)&address, sizeof address));
  fd[NETLINK] = (int)MUST(socket(AF_NETLINK, SOCK_RAW, 0));
  fd[PIDFD] = (int)MUST(syscall(SYS_pidfd_open, getpid(), 0));
  fd[MEMORY] = (int)MUST(memfd_create("many", 0));
  MUST(ftruncate(fd[MEMORY], i + 1));
  snprintf(name, sizeof name, "deleted-%d", i);
  fd[DELETED] = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  MUST(write(fd[DELETED], &i, sizeof i));
  MUST(unlink(name));
  snprintf(name, sizeof name, "locked-%d", i);
  fd[LOCKED] = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  MUST(flock(fd[LOCKED], LOCK_EX));
}

static void exchange(int from, int to, int i) {
  int got = -1;
  EXPECT_EQ(write(from, &i, sizeof i), sizeof i);
  struct pollfd ready = {to, POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, 5000), 1);
  EXPECT_EQ(read(to, &got, sizeof got), sizeof got);
  EXPECT_EQ(got, i);
}

static void check_one(int i) {
  int *fd = fds[i], number = -1;
  char path[64], text[256];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd[SLAVE]);
  ioctl(fd[MASTER], TIOCGPTN, &number);
  EXPECT(readlink(path, text, sizeof text) > 0 && atoi(text + strlen("/dev/pts/")) == number, "terminal %d", i);
  EXPECT_EQ(write(fd[WATCHED], "x", 1), 1);
  EXPECT(read(fd[NOTIFY], text, sizeof text) > 0, "no event of watch %d: %m", i);
  exchange(fd[CLIENT], fd[ACCEPTED], i);
  exchange(fd[ACCEPTED], fd[CLIENT], i);
  struct sockaddr_un address;
  socklen_t size = sizeof address;
  EXPECT_EQ(getsockname(fd[NAMED], (void *)&address, &size), 0);
  EXPECT(atoi(strrchr(address.sun_path + 1, '-') + 1) == i, "name %d is %s", i, address.sun_path + 1);
  struct stat stat;
  EXPECT_EQ(fstat(fd[MEMORY], &stat), 0);
  EXPECT_EQ(stat.st_size, i + 1);
  EXPECT_EQ(pread(fd[DELETED], &number, sizeof number, 0), sizeof number);
  EXPECT_EQ(number, i);
  snprintf(path, sizeof path, "locked-%d", i);
  int other = open(path, O_RDWR);
  EXPECT(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "file %d is not locked", i);
  close(other);
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd[PIDFD]);
  field_of(path, "Pid", text, sizeof text);
  EXPECT_EQ(atoi(text), getpid());
}

static void check(void) {
  for (int i = 0; i < many; i++) check_one(i);
}

static void spoil(void) { MUST(ftruncate(fds[0][MEMORY], 0)); }

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  if (argc > 1) many = atoi(argv[1]);
  fds = calloc((size_t)many, sizeof *fds);
  for (int i = 0; i < many; i++) set_up(i);
  serve(check);
}
