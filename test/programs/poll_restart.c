// Threads that wait in poll, ppoll, select and epoll_wait, with a time limit and without one. A wait
// that a checkpoint falls into goes on: limits are not short, events come, and no EINTR is seen,
// but from epoll_wait, which the kernel does not restart (signal(7)).
#include "test.h"
#include <sys/epoll.h>
#include <sys/select.h>

enum { POLL, PPOLL, SELECT, EPOLL, KINDS, LIMIT_MS = 250 };
static const char *const names[] = {"poll", "ppoll", "select", "epoll_wait"};
static struct {
  int pipe[2], epoll;
  atomic_long limits, events;
} waits[KINDS];

// Gives what the call gave; `ms` below 0 waits for ever.
static int wait_in(int kind, int fd, int ms) {
  struct pollfd entry = {fd, POLLIN, 0};
  struct timespec limit = {0, ms * 1000000L};
  struct timeval limit_us = {0, ms * 1000L};
  struct epoll_event event;
  fd_set set;
  switch (kind) {
    case POLL: return poll(&entry, 1, ms);
    case PPOLL: return ppoll(&entry, 1, ms < 0 ? NULL : &limit, NULL);
    case SELECT:
      FD_ZERO(&set);
      FD_SET(fd, &set);
      return select(fd + 1, &set, NULL, NULL, ms < 0 ? NULL : &limit_us);
    default: return epoll_wait(waits[kind].epoll, &event, 1, ms);
  }
}

// An idle pipe of its own, so that nothing but the limit ends the wait.
static void *limited(void *argument) {
  long kind = (long)argument;
  int idle_pipe[2], idle_epoll = MUST(epoll_create1(0));
  struct epoll_event event;
  MUST(pipe(idle_pipe));
  for (;;) {
    int64_t start = now_ms(CLOCK_MONOTONIC);
    int got = kind == EPOLL ? epoll_wait(idle_epoll, &event, 1, LIMIT_MS)
                            : wait_in(kind, idle_pipe[0], LIMIT_MS);
    if (kind == EPOLL && got == -1 && errno == EINTR) continue;
    int64_t took = now_ms(CLOCK_MONOTONIC) - start;
    EXPECT(got == 0, "%s with a limit: %d %m", names[kind], got);
    EXPECT(took >= LIMIT_MS - 1, "%s with a limit: %ld ms only", names[kind], (long)took);
    waits[kind].limits++;
  }
  return NULL;
}

static void *endless(void *argument) {
  long kind = (long)argument;
  char byte;
  for (;;) {
    int got = wait_in(kind, waits[kind].pipe[0], -1);
    if (kind == EPOLL && got == -1 && errno == EINTR) continue;
    EXPECT(got == 1, "%s without a limit: %d %m", names[kind], got);
    EXPECT(read(waits[kind].pipe[0], &byte, 1) == 1 && byte == 'x', "%s: byte", names[kind]);
    waits[kind].events++;
  }
  return NULL;
}

static void check(void) {
  for (int i = 0; i < KINDS; i++) {
    long events = waits[i].events, limits = waits[i].limits;
    EXPECT(write(waits[i].pipe[1], "x", 1) == 1, "cannot write: %m");
    EXPECT(WITHIN(5000, waits[i].events == events + 1), "%s did not see the event", names[i]);
    EXPECT(WITHIN(5000, waits[i].limits > limits), "%s: the limit does not end it", names[i]);
  }
}

static void end_wait(void) { close(waits[PPOLL].pipe[1]); }

int main(void) {
  begin();
  tamper = end_wait;
  signal(SIGPIPE, SIG_IGN);
  for (long i = 0; i < KINDS; i++) {
    pthread_t thread;
    MUST(pipe(waits[i].pipe));
    waits[i].epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(waits[i].epoll, EPOLL_CTL_ADD, waits[i].pipe[0], &event));
    pthread_create(&thread, NULL, limited, (void *)i);
    pthread_create(&thread, NULL, endless, (void *)i);
  }
  serve(check);
}
