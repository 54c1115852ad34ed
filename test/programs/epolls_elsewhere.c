// Epolls that watch files which this process has closed: one that a child has, one that is in flight in a queue, one whose number
// another file has now, which is watched too. They go on being told, and the numbers stay as they are.
#include "test.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { CHILDS, IN_FLIGHT, TAKEN, TAKER, MANY };
static int poller, numbers[MANY], queue[2];
static pid_t child;

static int watched(int data) {
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)data};
  int fd = (int)MUST(eventfd(1, EFD_NONBLOCK));
  MUST(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event));
  return numbers[data] = fd;
}

static void send_away(int fd) {
  char control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec part = {"x", 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  MUST(sendmsg(queue[0], &message, 0));
  close(fd);
}

static void check_child(void) {
  uint64_t count;
  EXPECT(read(numbers[CHILDS], &count, sizeof count) == 8 && count == 1, "the child's counter");
  count = 1;
  EXPECT_EQ(write(numbers[CHILDS], &count, sizeof count), 8);
}

static void check(void) {
  struct epoll_event events[8];
  int count = epoll_wait(poller, events, 8, 0);
  unsigned told = 0;
  for (int i = 0; i < count; i++) told |= 1u << events[i].data.u64;
  EXPECT_EQ(told, (1u << MANY) - 1);
  EXPECT_EQ(count, MANY);
  EXPECT(fcntl(numbers[CHILDS], F_GETFD) == -1, "the child's file is open here");
  EXPECT(fcntl(numbers[IN_FLIGHT], F_GETFD) == -1, "the file in flight is open here");
  EXPECT_EQ(fcntl(numbers[TAKER], F_GETFD), FD_CLOEXEC);
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", poller);
  read_text(path, text, sizeof text);
  for (int i = 0; i < MANY; i++) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, "tfd: %8d ", numbers[i]);
    EXPECT(strstr(text, wanted) != NULL, "nothing is watched by the number %d", numbers[i]);
  }
  ask_child(child);
}

static void spoil(void) {
  uint64_t count;
  MUST(read(numbers[TAKER], &count, sizeof count));
}

int main(void) {
  begin();
  tamper = spoil;
  poller = (int)MUST(epoll_create1(0));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, queue));
  int first = watched(CHILDS);
  child = start_child(NULL, check_child);
  // The number is free for nobody else.
  int kept = (int)MUST(fcntl(first, F_DUPFD, 100));
  int in_flight = watched(IN_FLIGHT), taken = watched(TAKEN);
  MUST(fcntl(taken, F_DUPFD, 100));
  close(kept);
  close(taken);
  MUST(watched(TAKER) == taken ? 0 : -1);
  MUST(fcntl(numbers[TAKER], F_SETFD, FD_CLOEXEC));
  send_away(in_flight);
  close(first);
  serve(check);
}
