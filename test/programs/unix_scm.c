// Open files in flight in queues of unix sockets: one that the process has too, one that nobody has, several in one message,
// a pipe with data, a socket with an own queue, the socket itself; in a stream, between bytes without files.
#include "test.h"
#include <sys/socket.h>

static int dgram[2], stream[2], kept, ring[2];

static void put(int via, const char *text, int count, const int *fds) {
  char control[CMSG_SPACE(4 * sizeof(int))] = {0};
  struct iovec part = {(char *)text, strlen(text)};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  }
  EXPECT(sendmsg(via, &message, MSG_NOSIGNAL) == (ssize_t)strlen(text), "send of %s: %m", text);
}

static void take(int via, size_t size, const char *wanted, int count, int *fds) {
  char control[CMSG_SPACE(8 * sizeof(int))] = {0}, text[64] = "";
  struct iovec part = {text, size};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(via, &message, MSG_DONTWAIT);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s", got, text, wanted);
  struct cmsghdr *head = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
  int came = head == NULL ? 0 : (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  EXPECT(came == count, "%d files came with %s, wanted %d", came, wanted, count);
  for (int i = 0; i < count; i++) fds[i] = -1;
  if (came == count && count > 0) memcpy(fds, CMSG_DATA(head), count * sizeof(int));
}

static bool same_file(int a, int b) { return syscall(SYS_kcmp, getpid(), getpid(), 0, a, b) == 0; }

static void expect_read(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = read(fd, text, strlen(wanted));
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "read %zd: %s, wanted %s", got, text, wanted);
}

static void send_all(void) {
  put(dgram[0], "kept", 1, &kept);
  int file = MUST(open("alone", O_RDWR | O_CREAT | O_TRUNC, 0600)), ends[2], inner[2];
  MUST(write(file, "0123456789", 10));
  MUST(lseek(file, 4, SEEK_SET));
  MUST(pipe2(ends, O_NONBLOCK));
  MUST(write(ends[1], "in the pipe", 11));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
  put(inner[0], "inner", 1, &file);
  put(dgram[0], "", 0, NULL);
  put(dgram[0], "three", 3, (int[]){file, ends[0], inner[1]});
  put(stream[0], "before ", 0, NULL);
  put(stream[0], "with", 1, &ends[1]);
  put(stream[0], " after", 0, NULL);
  put(stream[0], "two", 2, (int[]){kept, stream[1]});
  int all[] = {file, ends[0], ends[1], inner[0], inner[1]};
  for (size_t i = 0; i < COUNT(all); i++) close(all[i]);
}

static void check(void) {
  int fds[4], pipe_end, inner_file;
  take(dgram[1], 60, "kept", 1, fds);
  EXPECT(same_file(fds[0], kept), "the file that is kept came back as another one");
  close(fds[0]);
  take(dgram[1], 60, "", 0, NULL);
  take(dgram[1], 60, "three", 3, fds);
  expect_read(fds[0], "45");
  expect_read(fds[1], "in the pipe");
  take(fds[2], 60, "inner", 1, &inner_file);
  EXPECT(same_file(inner_file, fds[0]), "one file in two queues became two");
  // One byte does not take the file that comes after it.
  take(stream[1], 1, "b", 0, NULL);
  take(stream[1], 6, "efore ", 0, NULL);
  take(stream[1], 60, "with", 1, &pipe_end);
  EXPECT(write(pipe_end, "p", 1) == 1, "the end of the pipe: %m");
  expect_read(fds[1], "p");
  take(stream[1], 6, " after", 0, NULL);
  int two[2];
  take(stream[1], 60, "two", 2, two);
  EXPECT(same_file(two[1], stream[1]), "the socket in its own queue is another one");
  int all[] = {fds[0], fds[1], fds[2], inner_file, pipe_end, two[0], two[1]};
  for (size_t i = 0; i < COUNT(all); i++) close(all[i]);
  take(ring[1], 60, "ring", 1, &fds[0]);
  close(fds[0]);
  put(ring[0], "ring", 1, &ring[1]);
  send_all();
}

static void lose(void) { take(dgram[1], 60, "kept", 1, &(int){0}); }

int main(void) {
  begin();
  kept = MUST(open("kept", O_RDWR | O_CREAT, 0600));
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ring));
  put(ring[0], "ring", 1, &ring[1]);
  send_all();
  tamper = lose;
  serve(check);
}
