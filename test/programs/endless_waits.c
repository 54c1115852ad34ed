// Threads that wait without a limit in calls which the kernel does not restart after a stop (signal(7): EINTR without any handler):
// epoll_wait, epoll_pwait, semop, rt_sigtimedwait, io_getevents; and beside them in those that it restarts. All wait on,
// and at the end some are woken.
#include "test.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/sem.h>

static int event, epoll, semaphores, wake_signal;
static int word;

static long in_epoll(void) {
  struct epoll_event seen;
  return epoll_wait(epoll, &seen, 1, -1);
}
static long in_epoll_masked(void) {
  struct epoll_event seen;
  sigset_t all;
  sigfillset(&all);
  return epoll_pwait(epoll, &seen, 1, -1, &all);
}
static long in_semop(void) {
  struct sembuf take = {0, -1, 0};
  return semop(semaphores, &take, 1) == 0 ? 1 : -1;
}
static long in_signal_wait(void) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, wake_signal);
  return syscall(SYS_rt_sigtimedwait, &one, NULL, NULL, 8);
}
static long in_aio(void) {
  aio_context_t ring = 0;
  struct io_event completion;
  MUST(syscall(SYS_io_setup, 4, &ring));
  return syscall(SYS_io_getevents, ring, 1, 1, &completion, NULL);
}
static long in_waitv(void) {
  struct {
    uint64_t value, address;
    uint32_t flags, reserved;
  } list[] = {{0, (uintptr_t)&word, 2, 0}};
  return syscall(449 /* futex_waitv */, list, 1, 0, NULL, CLOCK_MONOTONIC);
}
static long in_pause(void) { return pause(); }

static struct {
  const char *name;
  long (*call)(void);
  bool is_woken;
  atomic_long result;
  int error;
} waits[] = {
    {"epoll_wait", in_epoll, true, 0, 0},
    {"epoll_pwait", in_epoll_masked, true, 0, 0},
    {"semop", in_semop, true, 0, 0},
    {"rt_sigtimedwait", in_signal_wait, true, 0, 0},
    {"io_getevents", in_aio, false, 0, 0},
    {"futex_waitv", in_waitv, false, 0, 0},
    {"pause", in_pause, false, 0, 0},
};

static void *work(void *argument) {
  size_t index = (size_t)argument;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  long result = waits[index].call();
  waits[index].error = errno;
  waits[index].result = result;
  for (;;) pause();
  return NULL;
}

static bool waits_in_call(size_t index) { return waits[index].result == 0; }

static void wake_all(void) {
  uint64_t one = 1;
  struct sembuf give = {0, 1, 0};
  MUST(write(event, &one, sizeof one));
  MUST(semop(semaphores, &give, 1));
  MUST(kill(getpid(), wake_signal));
  for (size_t i = 0; i < COUNT(waits); i++)
    EXPECT(!waits[i].is_woken || WITHIN(5000, waits[i].result > 0), "%s is not woken", waits[i].name);
  semctl(semaphores, 0, IPC_RMID);
}

static void check(void) {
  for (size_t i = 0; i < COUNT(waits); i++)
    EXPECT(waits_in_call(i), "%s came back with %ld: %s", waits[i].name, (long)waits[i].result,
           strerror(waits[i].error));
  if (final_round) wake_all();
}

static void spoil(void) { kill(getpid(), wake_signal); sleep_ms(100); }

int main(void) {
  begin();
  tamper = spoil;
  wake_signal = SIGRTMIN + 7;
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, wake_signal);
  sigprocmask(SIG_BLOCK, &one, NULL);
  MUST(unshare(CLONE_NEWIPC));
  semaphores = (int)MUST(semget(IPC_PRIVATE, 1, 0600));
  event = (int)MUST(eventfd(0, EFD_CLOEXEC));
  epoll = (int)MUST(epoll_create1(EPOLL_CLOEXEC));
  struct epoll_event wanted = {.events = EPOLLIN};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
  pthread_t thread;
  for (size_t i = 0; i < COUNT(waits); i++) pthread_create(&thread, NULL, work, (void *)i);
  sleep_ms(100);
  serve(check);
}
