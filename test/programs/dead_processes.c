// What outlives a process: pidfds of one that has been waited for (two of the same one, which have one inode), and its
// directory in /proc, open and as the current directory of a child.
#include "test.h"

static int first, second, other, directory;
static pid_t child;

static void expect_dead(int pidfd) {
  char path[64], pid[32];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  field_of(path, "Pid", pid, sizeof pid);
  EXPECT(strcmp(pid, "-1") == 0, "pidfd %d says pid %s", pidfd, pid);
  EXPECT(syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) == -1 && errno == ESRCH,
         "signal through pidfd %d: %m", pidfd);
}

static ino_t inode(int fd) {
  struct stat stat = {0};
  EXPECT(fstat(fd, &stat) == 0, "fstat: %m");
  return stat.st_ino;
}

static bool cwd_is_gone(void) {
  char path[256];
  return getcwd(path, sizeof path) == NULL && errno == ENOENT;
}

static void check(void) {
  expect_dead(first);
  expect_dead(second);
  expect_dead(other);
  EXPECT(inode(first) == inode(second) && inode(first) != inode(other), "inodes of pidfds");
  struct pollfd poll_fd = {first, POLLIN, 0};
  EXPECT_EQ(poll(&poll_fd, 1, 0), 1);
  EXPECT_EQ(fcntl(second, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  EXPECT(openat(directory, "stat", O_RDONLY) == -1, "the dead process has a stat");
  char target[256] = "";
  snprintf(target, sizeof target, "/proc/self/fd/%d", directory);
  char text[256] = "";
  EXPECT(readlink(target, text, sizeof text - 1) > 0 && strstr(text, "(deleted)") != NULL,
         "the directory is %s", text);
  if (final_round) end_child(child);
}

static pid_t dead[2];


int main(void) {
  begin();
  for (int i = 0; i < 2; i++) {
    dead[i] = (pid_t)MUST(fork());
    if (dead[i] == 0) idle();
  }
  first = (int)MUST(syscall(SYS_pidfd_open, dead[0], 0));
  second = (int)MUST(syscall(SYS_pidfd_open, dead[0], O_NONBLOCK));
  other = (int)MUST(syscall(SYS_pidfd_open, dead[1], 0));
  int home = (int)MUST(open(".", O_RDONLY | O_DIRECTORY));
  char path[64];
  snprintf(path, sizeof path, "/proc/%d", dead[0]);
  directory = (int)MUST(open(path, O_RDONLY | O_DIRECTORY));
  // In the dead directory no note can be written: it answers by how it ends.
  child = (pid_t)MUST(fork());
  if (child == 0) {
    kept_count = 0;
    MUST(fchdir(directory));
    close((int)MUST(openat(home, "entered", O_WRONLY | O_CREAT, 0600)));
    wait_request(-1);
    _exit(cwd_is_gone() ? 0 : 1);
  }
  char text[32];
  MUST(hear("entered", text, sizeof text) ? 0 : -1);
  keep_child(child);
  for (int i = 0; i < 2; i++) {
    MUST(kill(dead[i], SIGKILL));
    MUST(waitpid(dead[i], NULL, 0));
  }
  serve(check);
}
