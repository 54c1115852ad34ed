// Handles of processes that several descriptors share: a duplicate, a child's, one in flight in a socket that nobody has open, and an
// epoll that watches one. With "others" there are also in flight: a timer that runs, and a pipe whose reader has a signal owner.
#include "test.h"
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int many = 1, handle, twin, queue[2], poller, writer;
static pid_t child, zombie;
static volatile sig_atomic_t told;

static void on_signal(int signal) { told += signal == SIGUSR2; }

static pid_t stands_for(int fd) {
  char path[64], text[32];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  field_of(path, "Pid", text, sizeof text);
  return atoi(text);
}

static bool is_same(pid_t pid, int fd) { return syscall(SYS_kcmp, getpid(), pid, 0, handle, fd) == 0; }

static void check(void) {
  EXPECT_EQ(stands_for(handle), child);
  EXPECT(is_same(getpid(), twin), "the duplicate is another file");
  EXPECT(is_same(child, handle), "the child's is another file");
  EXPECT_EQ(fcntl(twin, F_GETFD), FD_CLOEXEC);
  fcntl(handle, F_SETFL, O_NONBLOCK);
  EXPECT_EQ(fcntl(twin, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  fcntl(handle, F_SETFL, 0);

  char control[CMSG_SPACE(3 * sizeof(int))], byte;
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  EXPECT_EQ(recvmsg(queue[1], &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC), 1);
  int fds[3] = {-1, -1, -1};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  if (head != NULL && head->cmsg_len == CMSG_LEN(many * sizeof(int))) memcpy(fds, CMSG_DATA(head), many * sizeof(int));
  EXPECT_EQ(stands_for(fds[0]), zombie);
  siginfo_t info = {0};
  EXPECT_EQ(waitid(P_PIDFD, (id_t)fds[0], &info, WEXITED | WNOWAIT | WNOHANG), 0);
  EXPECT_EQ(info.si_status, 7);
  if (many > 1) {
    struct itimerspec left = {0};
    timerfd_gettime(fds[1], &left);
    EXPECT(left.it_value.tv_sec > 500 && left.it_interval.tv_sec == 3, "%ld s are left", (long)left.it_value.tv_sec);
    told = 0;
    EXPECT_EQ(write(writer, "x", 1), 1);
    EXPECT(WITHIN(5000, told == 1), "the reader in flight sends no signal");
    EXPECT_EQ(read(fds[2], &byte, 1), 1);
  }
  for (int i = 0; i < many; i++) close(fds[i]);
  struct epoll_event event;
  EXPECT(epoll_wait(poller, &event, 1, 0) == 0, "the child has ended");
  ask_child(child);
  if (!final_round) return;
  end_child(child);
  EXPECT_EQ(epoll_wait(poller, &event, 1, 5000), 1);
}

static void spoil(void) { handle = (int)MUST(dup(queue[0])); }

static void check_child(void) { EXPECT_EQ(stands_for(handle), getpid()); }

static void put(const int *fds, int count) {
  size_t size = (size_t)count * sizeof(int);
  char control[CMSG_SPACE(3 * sizeof(int))] = {0};
  struct iovec part = {"x", 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(size)};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(size), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(head), fds, size);
  MUST(sendmsg(queue[0], &message, 0));
}

// The handle comes to the child over a note of its own: it is made when the child is there.
static void take_handle(void) {
  char byte, control[CMSG_SPACE(sizeof(int))];
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  tell_number("self", getpid());
  MUST(recvmsg(queue[1], &message, 0));
  memcpy(&handle, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof handle);
  handle = (int)MUST(dup2(handle, 50));
}

static void *give_handle(void *nothing) {
  handle = (int)MUST(syscall(SYS_pidfd_open, hear_number("self"), 0));
  put(&handle, 1);
  return nothing;
}

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  if (argc > 1 && strcmp(argv[1], "others") == 0) many = 3;
  signal(SIGUSR2, on_signal);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, queue));
  pthread_t giver;
  MUST(pthread_create(&giver, NULL, give_handle, NULL) == 0 ? 0 : -1);
  child = start_child(take_handle, check_child);
  pthread_join(giver, NULL);
  handle = (int)MUST(dup2(handle, 50));
  twin = (int)MUST(fcntl(handle, F_DUPFD_CLOEXEC, 0));
  zombie = (pid_t)MUST(fork());
  if (zombie == 0) _exit(7);
  siginfo_t info;
  MUST(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT));
  poller = (int)MUST(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN};
  MUST(epoll_ctl(poller, EPOLL_CTL_ADD, twin, &event));
  int in_flight[3] = {(int)MUST(syscall(SYS_pidfd_open, zombie, 0))}, ends[2];
  if (many > 1) {
    struct itimerspec set = {{3, 0}, {1000, 0}};
    in_flight[1] = (int)MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    MUST(timerfd_settime(in_flight[1], 0, &set, NULL));
    MUST(pipe(ends));
    writer = ends[1];
    in_flight[2] = ends[0];
    MUST(fcntl(ends[0], F_SETOWN, getpid()));
    MUST(fcntl(ends[0], F_SETSIG, SIGUSR2));
    MUST(fcntl(ends[0], F_SETFL, O_ASYNC));
  }
  put(in_flight, many);
  for (int i = 0; i < many; i++) close(in_flight[i]);
  serve(check);
}
