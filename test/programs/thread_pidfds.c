// Handles of threads (pidfd_open with PIDFD_THREAD): of a thread of ours, of our first one, of a thread of a child, and of one that has
// ended; and epolls that watch them, and that of a process, from lower descriptors.
#include "test.h"
#include <sys/epoll.h>
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

enum { OTHERS = 1 }; // PIDFD_SIGNAL_THREAD
static int epoll, of_worker, of_leader, of_stranger, of_dead, of_child;
static pid_t worker, stranger, child;
static _Atomic pid_t signalled;
static _Atomic int leaves;
static pthread_t worker_thread;

static void on_signal(int signal) {
  (void)signal;
  signalled = gettid();
}

static void *work(void *number) {
  *(_Atomic pid_t *)number = gettid();
  while (!leaves) sleep_ms(1);
  return NULL;
}

static void *stay(void *nothing) {
  tell_number("stranger", gettid());
  idle();
  return nothing;
}

static int handle(pid_t tid, int flags) { return (int)MUST(syscall(SYS_pidfd_open, tid, flags)); }

static void expect_stands_for(int fd, pid_t pid) {
  char path[64], text[32];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  field_of(path, "Pid", text, sizeof text);
  EXPECT_EQ(atoi(text), pid);
  field_of(path, "flags", text, sizeof text);
  EXPECT((strtol(text, NULL, 8) & PIDFD_THREAD) == (fd == of_child ? 0 : PIDFD_THREAD), "flags of %d are %s", fd, text);
}

static void expect_reaches(int fd, pid_t tid) {
  signalled = 0;
  EXPECT(syscall(SYS_pidfd_send_signal, fd, SIGUSR2, NULL, OTHERS) == 0, "pidfd_send_signal: %m");
  EXPECT(WITHIN(5000, signalled != 0), "no signal came through %d", fd);
  EXPECT_EQ(signalled, tid);
}

static void check(void) {
  expect_stands_for(of_worker, worker);
  expect_stands_for(of_leader, getpid());
  expect_stands_for(of_stranger, stranger);
  expect_stands_for(of_dead, -1);
  expect_stands_for(of_child, child);
  EXPECT_EQ(fcntl(of_leader, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  expect_reaches(of_worker, worker);
  expect_reaches(of_leader, getpid());
  struct epoll_event events[4];
  EXPECT_EQ(epoll_wait(epoll, events, 4, 0), 0);
  if (!final_round) return;
  leaves = 1;
  pthread_join(worker_thread, NULL);
  EXPECT_EQ(epoll_wait(epoll, events, 4, 5000), 1);
  EXPECT_EQ(events[0].data.u32, 1);
  kill(child, SIGKILL);
  EXPECT(WITHIN(5000, epoll_wait(epoll, events, 4, 0) == 3), "the ends of a process and its thread are not told");
  waitpid(child, NULL, 0);
}

static void take_away(void) { dup2(of_leader, of_worker); }

static void watch(int fd, unsigned number) {
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int main(void) {
  begin();
  tamper = take_away;
  signal(SIGUSR2, on_signal);
  epoll = (int)MUST(epoll_create1(0));
  _Atomic pid_t number = 0;
  MUST(pthread_create(&worker_thread, NULL, work, (void *)&number) == 0 ? 0 : -1);
  MUST(WITHIN(5000, number != 0) ? 0 : -1);
  worker = number;
  pthread_t dying;
  number = 0;
  leaves = 0;
  of_worker = handle(worker, PIDFD_THREAD);
  of_leader = handle(getpid(), PIDFD_THREAD | O_NONBLOCK);
  child = (pid_t)MUST(fork());
  if (child == 0) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, stay, NULL) == 0 ? 0 : -1);
    idle();
  }
  stranger = (pid_t)hear_number("stranger");
  of_stranger = handle(stranger, PIDFD_THREAD);
  of_child = handle(child, 0);
  MUST(pthread_create(&dying, NULL, stay, NULL) == 0 ? 0 : -1);
  of_dead = handle((pid_t)hear_number("stranger"), PIDFD_THREAD);
  pthread_cancel(dying);
  pthread_join(dying, NULL);
  watch(of_worker, 1);
  watch(of_stranger, 2);
  watch(of_child, 3);
  serve(check);
}
