// FD_CLOEXEC: descriptors 10 to 29, every third with it. The check executes this program anew, which
// sees what is left: so the flag is not only shown, it works.
#include "test.h"

enum { FIRST = 10, LAST = 29 };
static bool has_flag(int fd) { return fd % 3 == 0; }

// What the executed program does: exits with the first number that is wrong, or with 0.
static int look_around(void) {
  for (int fd = FIRST; fd <= LAST; fd++)
    if ((fcntl(fd, F_GETFD) == -1) != has_flag(fd)) return fd;
  return 0;
}

static void check(void) {
  for (int fd = FIRST; fd <= LAST; fd++)
    EXPECT(fcntl(fd, F_GETFD) == (has_flag(fd) ? FD_CLOEXEC : 0), "descriptor %d has the flag %d", fd,
           fcntl(fd, F_GETFD));
  pid_t pid = fork();
  if (pid == 0) {
    execl("/proc/self/exe", "cloexec", "look", NULL);
    _exit(127);
  }
  int status = -1;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT(status == 0, "the executed program says %d", WEXITSTATUS(status));
}

static void set_flag(void) { fcntl(FIRST, F_SETFD, FD_CLOEXEC); }

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "look") == 0) return look_around();
  begin();
  tamper = set_flag;
  // Even numbers are duplicates of standard input, odd ones are files of their own.
  for (int fd = FIRST; fd <= LAST; fd++) {
    int file = fd % 2 == 0 ? 0 : (int)MUST(open("file", O_RDWR | O_CREAT, 0600));
    MUST(dup3(file, fd, has_flag(fd) ? O_CLOEXEC : 0));
    if (file != 0) close(file);
  }
  serve(check);
}
