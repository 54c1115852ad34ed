// N descriptors (the argument; 100 without one), a tenth of each kind: regular files, both ends of pipes and of unix socket
// pairs, UDP sockets, event, timer and signal descriptors, and epoll instances that watch one of the others. Each holds a
// state of its own, so that one in another's place is seen. The second half are duplicates of the first.
#include "test.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

enum { FIRST = 20, FILES, PIPE_IN, PIPE_OUT, PAIR_A, PAIR_B, UDP, EVENT, TIMER, SIGNAL, EPOLL, KINDS = 10 };
static int each, shift; // shift: to the duplicates

// The i-th descriptor of a kind.
static int of(int kind, int i) { return FIRST + shift + (kind - FILES) * each + i; }

static void put(int fd, int kind, int i) {
  MUST(dup3(fd, of(kind, i), O_CLOEXEC));
  MUST(dup2(fd, of(kind, i) + KINDS * each));
  close(fd);
}

static void set_up(int i) {
  char name[32];
  snprintf(name, sizeof name, "file-%d", i % 16);
  put((int)MUST(open(name, O_RDWR | O_CREAT, 0600)), FILES, i);
  MUST(lseek(of(FILES, i), i * 3, SEEK_SET));
  int ends[2];
  MUST(pipe(ends));
  put(ends[0], PIPE_IN, i);
  put(ends[1], PIPE_OUT, i);
  MUST(socketpair(AF_UNIX, i % 2 == 0 ? SOCK_STREAM : SOCK_DGRAM, 0, ends));
  put(ends[0], PAIR_A, i);
  put(ends[1], PAIR_B, i);
  put((int)MUST(socket(AF_INET, SOCK_DGRAM, 0)), UDP, i);
  int mark = i + 1;
  MUST(setsockopt(of(UDP, i), SOL_SOCKET, SO_MARK, &mark, sizeof mark));
  put((int)MUST(eventfd((unsigned)i + 1, EFD_NONBLOCK)), EVENT, i);
  put((int)MUST(timerfd_create(CLOCK_MONOTONIC, 0)), TIMER, i);
  struct itimerspec period = {.it_interval = {.tv_sec = i + 1}, .it_value = {.tv_sec = 100000}};
  MUST(timerfd_settime(of(TIMER, i), 0, &period, NULL));
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + i % 20);
  put((int)MUST(signalfd(-1, &set, 0)), SIGNAL, i);
  put((int)MUST(epoll_create1(0)), EPOLL, i);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
  MUST(epoll_ctl(of(EPOLL, i), EPOLL_CTL_ADD, of(EVENT, i), &event));
}

static void check_one(int i) {
  EXPECT_EQ(lseek(of(FILES, i), 0, SEEK_CUR), i * 3);
  int sent = i, got = -1;
  EXPECT_EQ(write(of(PIPE_OUT, i), &sent, sizeof sent), sizeof sent);
  EXPECT_EQ(read(of(PIPE_IN, i), &got, sizeof got), sizeof got);
  EXPECT_EQ(got, i);
  got = -1;
  EXPECT_EQ(send(of(PAIR_A, i), &sent, sizeof sent, 0), sizeof sent);
  EXPECT_EQ(recv(of(PAIR_B, i), &got, sizeof got, MSG_DONTWAIT), sizeof got);
  EXPECT_EQ(got, i);
  int mark = 0;
  EXPECT_EQ(getsockopt(of(UDP, i), SOL_SOCKET, SO_MARK, &mark, &(socklen_t){sizeof mark}), 0);
  EXPECT_EQ(mark, i + 1);
  struct itimerspec timer = {0};
  EXPECT_EQ(timerfd_gettime(of(TIMER, i), &timer), 0);
  EXPECT_EQ(timer.it_interval.tv_sec, i + 1);
  EXPECT(timer.it_value.tv_sec > 90000, "timer %d is off", i);
  struct epoll_event event = {0};
  EXPECT_EQ(epoll_wait(of(EPOLL, i), &event, 1, 0), 1);
  EXPECT_EQ(event.data.u32, i);
  uint64_t count = 0;
  EXPECT_EQ(read(of(EVENT, i), &count, sizeof count), sizeof count);
  EXPECT_EQ(count, i + 1);
  EXPECT_EQ(epoll_wait(of(EPOLL, i), &event, 1, 0), 0);
  EXPECT_EQ(write(of(EVENT, i), &count, sizeof count), sizeof count);
}

static void check(void) {
  for (int i = 0; i < each; i++) {
    check_one(i);
    shift = KINDS * each;
    check_one(i);
    shift = 0;
    MUST(lseek(of(FILES, i), 1, SEEK_CUR));
    EXPECT_EQ(lseek(of(FILES, i) + KINDS * each, -1, SEEK_CUR), i * 3);
    EXPECT_EQ(fcntl(of(EPOLL, i), F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(fcntl(of(EPOLL, i) + KINDS * each, F_GETFD), 0);
  }
  // Of signal descriptors those of one signal alone are asked: reading takes it.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  raise(SIGRTMIN);
  struct pollfd asked[20];
  int count = each < 20 ? each : 20;
  for (int i = 0; i < count; i++) asked[i] = (struct pollfd){.fd = of(SIGNAL, i), .events = POLLIN};
  EXPECT_EQ(poll(asked, (nfds_t)count, 0), 1);
  EXPECT(asked[0].revents == POLLIN, "another signal descriptor has the signal");
  sigtimedwait(&set, NULL, &(struct timespec){0});
}

static void close_one(void) { close(of(EPOLL, each / 2)); }

int main(int argc, char **argv) {
  begin();
  tamper = close_one;
  each = (argc > 1 ? atoi(argv[1]) : 100) / KINDS / 2;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  sigset_t set;
  sigemptyset(&set);
  for (int i = 0; i < 20; i++) sigaddset(&set, SIGRTMIN + i);
  sigprocmask(SIG_BLOCK, &set, NULL);
  for (int i = 0; i < each; i++) set_up(i);
  serve(check);
}
