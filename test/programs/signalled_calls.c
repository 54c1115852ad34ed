// Calls that a signal handler ends. Children wait in them; whoever tests sends each SIGALRM while the tree stands still, and makes a file
// named "signalled" before the first check: the call must then have ended with EINTR, once, after the handler ran. With SA_RESTART
// only those come back that the kernel never restarts.
#include "test.h"
#include <sys/epoll.h>
#include <sys/select.h>

static int ends[2];

static long in_pause(void) { return pause(); }
static long in_read(void) {
  char byte;
  return read(ends[0], &byte, 1);
}
static long in_poll(void) {
  struct pollfd entry = {ends[0], POLLIN, 0};
  return poll(&entry, 1, -1);
}
static long in_epoll(void) {
  struct epoll_event seen;
  return epoll_wait(epoll_create1(0), &seen, 1, -1);
}
static long in_sleep(void) {
  struct timespec hour = {3600, 0};
  return nanosleep(&hour, NULL);
}
static long in_suspend(void) {
  sigset_t none;
  sigemptyset(&none);
  return sigsuspend(&none);
}

static const struct {
  const char *name;
  long (*call)(void);
  int flags;
  bool ends;
} calls[] = {
    {"pause", in_pause, 0, true},
    {"read", in_read, 0, true},
    {"read with SA_RESTART", in_read, SA_RESTART, false},
    {"poll", in_poll, SA_RESTART, true},
    {"epoll_wait", in_epoll, SA_RESTART, true},
    {"nanosleep", in_sleep, 0, true},
    {"sigsuspend", in_suspend, 0, true},
};

struct report {
  atomic_int handled, returned;
  int error;
};
static struct report *reports;
static size_t own;

static void on_alarm(int signal) {
  (void)signal;
  reports[own].handled++;
}

static pid_t start_waiter(size_t index) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid != 0) return pid;
  sigset_t blocked;
  sigemptyset(&blocked);
  if (calls[index].call == in_suspend) sigaddset(&blocked, SIGALRM);
  sigprocmask(SIG_SETMASK, &blocked, NULL);
  signal(SIGTERM, SIG_DFL);
  signal(SIGUSR1, SIG_DFL);
  own = index;
  struct sigaction action = {.sa_handler = on_alarm, .sa_flags = calls[index].flags};
  sigaction(SIGALRM, &action, NULL);
  while (calls[index].call() >= 0) continue;
  reports[index].error = errno;
  reports[index].returned++;
  idle();
}

static void check(void) {
  bool signalled = access("signalled", F_OK) == 0;
  for (size_t i = 0; i < COUNT(calls); i++) {
    const char *name = calls[i].name;
    bool ended = signalled && calls[i].ends;
    EXPECT(WITHIN(2000, reports[i].handled == signalled), "%s: the handler ran %d times", name,
           reports[i].handled);
    EXPECT(WITHIN(2000, reports[i].returned == ended), "%s: it came back %d times", name,
           reports[i].returned);
    EXPECT(!ended || reports[i].error == EINTR, "%s: %s", name, strerror(reports[i].error));
  }
}

static void spoil(void) { reports[0].returned++; }

int main(void) {
  begin();
  tamper = spoil;
  reports = (struct report *)MUST(
      mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  MUST(pipe(ends));
  for (size_t i = 0; i < COUNT(calls); i++) keep_child(start_waiter(i));
  sleep_ms(100);
  serve(check);
}
