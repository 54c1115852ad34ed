// Pairs of unix sockets (stream, datagram, sequenced packets) with data queued both ways, message
// borders kept; one shut down for writing, one whose peer is closed, one shared with a child.
#include "test.h"
#include <sys/socket.h>

enum { STREAM, DATAGRAM, PACKET, SHUT, CLOSED, CHILD, MANY };
static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, SOCK_STREAM,
                            SOCK_SEQPACKET};
static int pairs[MANY][2];
static pid_t child;

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s",
         got, text, wanted);
}

static void put(int fd, const char *text) {
  EXPECT(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "send of %s: %m", text);
}

static void queue(int i) {
  put(pairs[i][0], "one");
  put(pairs[i][0], "three");
  put(pairs[i][1], "back");
}

static void child_check(void) {
  expect_text(pairs[CHILD][1], "to the child");
  put(pairs[CHILD][1], "to the parent");
}

static void check(void) {
  char byte;
  for (int i = STREAM; i <= PACKET; i++) {
    int type = 0, size = 0;
    socklen_t length = sizeof type;
    getsockopt(pairs[i][0], SOL_SOCKET, SO_TYPE, &type, &length);
    EXPECT_EQ(type, types[i]);
    getsockopt(pairs[i][0], SOL_SOCKET, SO_SNDBUF, &size, &length);
    EXPECT_EQ(size, 2 * 60000);
    if (i == STREAM) expect_text(pairs[i][1], "onethree");
    else {
      expect_text(pairs[i][1], "one");
      expect_text(pairs[i][1], "three");
    }
    expect_text(pairs[i][0], "back");
    EXPECT(recv(pairs[i][0], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is queued");
    queue(i);
  }
  EXPECT(send(pairs[SHUT][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "shut, it can be written");
  EXPECT(recv(pairs[SHUT][1], &byte, 1, MSG_DONTWAIT) == 0, "no end of file after a shutdown");
  put(pairs[SHUT][1], "half");
  expect_text(pairs[SHUT][0], "half");
  EXPECT(recv(pairs[CLOSED][0], &byte, 1, MSG_PEEK) == 1 && byte == 'l', "the last words are gone");
  EXPECT(send(pairs[CLOSED][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "closed, it can be written");
  put(pairs[CHILD][0], "to the child");
  ask_child(child);
  expect_text(pairs[CHILD][0], "to the parent");
  EXPECT(fcntl(pairs[PACKET][0], F_GETFD) == FD_CLOEXEC, "FD_CLOEXEC is gone");
  EXPECT(fcntl(pairs[STREAM][0], F_GETFL) & O_NONBLOCK, "O_NONBLOCK is gone");
}

static void lose_message(void) { expect_text(pairs[DATAGRAM][1], "one"); }

int main(void) {
  begin();
  for (int i = 0; i < MANY; i++) {
    int flags = i == STREAM ? SOCK_NONBLOCK : i == PACKET ? SOCK_CLOEXEC : 0;
    MUST(socketpair(AF_UNIX, types[i] | flags, 0, pairs[i]));
    if (i > PACKET) continue;
    MUST(setsockopt(pairs[i][0], SOL_SOCKET, SO_SNDBUF, &(int){60000}, sizeof(int)));
    queue(i);
  }
  MUST(shutdown(pairs[SHUT][0], SHUT_WR));
  put(pairs[CLOSED][1], "last words");
  close(pairs[CLOSED][1]);
  child = start_child(NULL, child_check);
  tamper = lose_message;
  serve(check);
}
