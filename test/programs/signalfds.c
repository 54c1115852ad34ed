// signalfd: the mask, flags, and reading of signals that were pending at the checkpoint, with values.
#include "test.h"
#include <sys/signalfd.h>

static int real_time, standard;

static void send_all(void) {
  for (int i = 0; i < 3; i++)
    EXPECT(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 500 + i}) == 0, "%m");
  EXPECT(kill(getpid(), SIGWINCH) == 0, "kill: %m");
}

static void expect_mask(int fd, uint64_t wanted) {
  char path[64], text[64];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  field_of(path, "sigmask", text, sizeof text);
  EXPECT(strtoull(text, NULL, 16) == wanted, "the mask is %s, wanted %lx", text, wanted);
}

static void check(void) {
  struct signalfd_siginfo info;
  expect_mask(real_time, 1ULL << (SIGRTMIN + 2 - 1) | 1ULL << (SIGRTMIN + 3 - 1));
  expect_mask(standard, 1ULL << (SIGWINCH - 1) | 1ULL << (SIGHUP - 1));
  for (int i = 0; i < 3; i++) {
    EXPECT(read(real_time, &info, sizeof info) == sizeof info, "signal %d is not there: %m", i);
    EXPECT(info.ssi_signo == (unsigned)SIGRTMIN + 2 && info.ssi_int == 500 + i, "signal %u, value %d",
           info.ssi_signo, info.ssi_int);
    EXPECT(info.ssi_pid == (unsigned)getpid(), "it is from %u", info.ssi_pid);
  }
  EXPECT(read(real_time, &info, sizeof info) == -1 && errno == EAGAIN, "it does not refuse to block");
  EXPECT(read(standard, &info, sizeof info) == sizeof info && info.ssi_signo == SIGWINCH, "SIGWINCH: %m");
  EXPECT((fcntl(standard, F_GETFL) & O_NONBLOCK) == 0, "the second does not block");
  EXPECT(fcntl(standard, F_GETFD) == FD_CLOEXEC && fcntl(real_time, F_GETFD) == 0, "FD_CLOEXEC");
  send_all();
}

static void lose_one(void) {
  struct signalfd_siginfo info;
  MUST(read(real_time, &info, sizeof info));
}

int main(void) {
  begin();
  tamper = lose_one;
  sigset_t mask, blocked;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + 2);
  sigaddset(&mask, SIGRTMIN + 3);
  real_time = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
  blocked = mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGWINCH);
  sigaddset(&mask, SIGHUP);
  sigorset(&blocked, &blocked, &mask);
  standard = MUST(signalfd(-1, &mask, SFD_CLOEXEC));
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  send_all();
  serve(check);
}
