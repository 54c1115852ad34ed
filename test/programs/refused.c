// One object that cannot be saved, by the argument: a dump must refuse it, and this process must go on with the object in order.
#include "test.h"
#include <arpa/inet.h>
#include <linux/mempolicy.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/fanotify.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static const char *object;
static int fd = -1;
static volatile char selector; // 0: system calls go through

static void check(void) {
  if (fd >= 0) EXPECT(fcntl(fd, F_GETFD) >= 0, "the descriptor is gone: %m");
  EXPECT(selector == 0, "the selector changed");
}

// The connected end of a connection to ourselves.
static int mptcp_connection(void) {
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof here;
  int listener = (int)MUST(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
  MUST(bind(listener, (void *)&here, size));
  MUST(listen(listener, 1));
  MUST(getsockname(listener, (void *)&here, &size));
  int client = (int)MUST(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
  MUST(connect(client, (void *)&here, size));
  MUST(accept(listener, NULL, NULL));
  return client;
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
  if (strcmp(object, "mptcp") == 0) fd = mptcp_connection();
  // PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON
  if (strcmp(object, "dispatch") == 0) MUST(prctl(59, 1, 0, 0, &selector));
  serve(check);
}
