// Pending signals: for the process and for one thread, standard and real-time, with the values and the
// sender that they were queued with, real-time ones in order. All are blocked; the check takes them. With "process" or "thread" that
// queue is a long one.
#include "test.h"

enum { QUEUED = 5, MANY = 5000 };
static int process_count = QUEUED, thread_count = QUEUED;
static pthread_t thread;
static pid_t thread_id;
static atomic_int thread_turn, thread_done;
static sigset_t all;

static bool take(int signal, siginfo_t *info) {
  sigset_t one;
  struct timespec none = {0, 0};
  sigemptyset(&one);
  sigaddset(&one, signal);
  memset(info, 0, sizeof *info);
  // The bare call: libc's wrapper says SI_USER where the kernel says SI_TKILL.
  return syscall(SYS_rt_sigtimedwait, &one, info, &none, 8) == signal;
}

static void expect_values(const char *whose, int signal, int first, int count) {
  siginfo_t info;
  for (int i = 0; i < count; i++) {
    EXPECT(take(signal, &info), "%s: signal %d, number %d is not pending", whose, signal, i);
    EXPECT(info.si_value.sival_int == first + i, "%s: value %d, wanted %d", whose,
           info.si_value.sival_int, first + i);
    EXPECT(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
           "%s: code %d, sender %d", whose, info.si_code, info.si_pid);
  }
  EXPECT(!take(signal, &info), "%s: signal %d is pending too often", whose, signal);
}

static void *work(void *unused) {
  siginfo_t info;
  thread_id = gettid();
  for (;;) {
    thread_done = 1;
    while (!thread_turn) sleep_ms(1);
    thread_turn = 0;
    expect_values("thread", SIGRTMIN + 4, 200, thread_count);
    EXPECT(take(SIGHUP, &info), "the thread's SIGHUP is not pending");
    EXPECT_EQ(info.si_code, SI_TKILL);
    thread_done = 1;
  }
  return unused;
}

static void queue_all(void) {
  union sigval value;
  for (int i = 0; i < process_count; i++) {
    value.sival_int = 100 + i;
    MUST(sigqueue(getpid(), SIGRTMIN + 3, value));
  }
  for (int i = 0; i < thread_count; i++) {
    value.sival_int = 200 + i;
    MUST(pthread_sigqueue(thread, SIGRTMIN + 4, value) == 0 ? 0 : -1);
  }
  value.sival_int = 300;
  MUST(sigqueue(getpid(), SIGUSR2, value));
  MUST(kill(getpid(), SIGINT));
  MUST(kill(getpid(), SIGINT)); // a standard signal is pending once
  MUST(syscall(SYS_tgkill, getpid(), thread_id, SIGHUP));
}

static void check(void) {
  siginfo_t info;
  sigset_t pending;
  sigpending(&pending);
  EXPECT(!sigismember(&pending, SIGHUP), "the thread's signal is pending for the process");
  expect_values("process", SIGRTMIN + 3, 100, process_count);
  EXPECT(take(SIGUSR2, &info) && info.si_value.sival_int == 300, "SIGUSR2 lost its value");
  EXPECT(take(SIGINT, &info) && info.si_code == SI_USER, "SIGINT is not pending");
  EXPECT(!take(SIGINT, &info), "SIGINT is pending twice");
  EXPECT(!take(SIGRTMIN + 4, &info), "a signal of the thread came to the main thread");
  thread_done = 0;
  thread_turn = 1;
  EXPECT(WITHIN(5000, thread_done), "the thread does not answer");
  sigpending(&pending);
  for (int i = 1; i < 65; i++)
    EXPECT(i == SIGUSR1 || i == SIGTERM || !sigismember(&pending, i), "signal %d came from nowhere", i);
  queue_all();
}

static void lose_one(void) {
  siginfo_t info;
  take(SIGRTMIN + 3, &info);
}

int main(int count, char **arguments) {
  begin();
  tamper = lose_one;
  const char *which = count > 1 ? arguments[1] : "";
  if (strcmp(which, "process") == 0) process_count = MANY;
  if (strcmp(which, "thread") == 0) process_count = 0, thread_count = MANY;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  pthread_create(&thread, NULL, work, NULL);
  MUST(WITHIN(5000, thread_done) ? 0 : -1);
  queue_all();
  serve(check);
}
