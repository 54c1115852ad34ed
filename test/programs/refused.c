// One object that cannot be saved, by the argument: a dump must refuse it, and this process must go on with the object in order.
#include "test.h"
#include <linux/mempolicy.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>

static const char *object;
static int fd = -1;
static volatile char selector; // 0: system calls go through

static void check(void) {
  if (fd >= 0) EXPECT(fcntl(fd, F_GETFD) >= 0, "the descriptor is gone: %m");
  EXPECT(selector == 0, "the selector changed");
}

int main(int argc, char **argv) {
  begin();
  object = argc > 1 ? argv[1] : "";
  // Not refused, but lost: only --strict makes a refusal of it.
  if (strcmp(object, "policy") == 0) MUST(syscall(SYS_set_mempolicy, MPOL_LOCAL, NULL, 0));
  if (strcmp(object, "io_uring") == 0) {
    struct io_uring_params params = {0};
    fd = MUST(syscall(SYS_io_uring_setup, 4, &params));
  }
  if (strcmp(object, "userfaultfd") == 0) fd = MUST(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (strcmp(object, "fanotify") == 0) {
    fd = MUST(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
    close((int)MUST(open("guarded", O_RDWR | O_CREAT, 0600)));
    MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "guarded"));
  }
  // PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON
  if (strcmp(object, "dispatch") == 0) MUST(prctl(59, 1, 0, 0, &selector));
  serve(check);
}
