// TCP connections with both ends in the process, over IPv4, IPv6 and IPv4 in an IPv6 socket: unread data in both directions,
// more data than the peer's window takes, options of both ends, one end in a child.
#include "inet.h"

enum { V4, V6, MAPPED, FULL, CHILD, MANY };
static int pairs[MANY][2];
static size_t stuffed;
static pid_t child;

static unsigned char stuff_byte(size_t at) { return (unsigned char)(at * 7 + at / 251); }

// Fills both queues of a connection whose reader sleeps.
static void stuff(int fd) {
  unsigned char block[1000];
  for (stuffed = 0;;) {
    for (size_t i = 0; i < sizeof block; i++) block[i] = stuff_byte(stuffed + i);
    ssize_t sent = send(fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) break;
    stuffed += (size_t)sent;
  }
}

static void expect_stuff(int fd) {
  unsigned char block[8192];
  size_t at = 0;
  struct pollfd ready = {.fd = fd, .events = POLLIN};
  while (at < stuffed && poll(&ready, 1, 5000) == 1) {
    ssize_t got = recv(fd, block, sizeof block, MSG_DONTWAIT);
    if (got <= 0) break;
    for (ssize_t i = 0; i < got; i++, at++)
      if (block[i] != stuff_byte(at)) {
        EXPECT(false, "byte %zu of %zu is wrong", at, stuffed);
        return;
      }
  }
  EXPECT_EQ(at, stuffed);
}

static void queue(int i) {
  put_text(pairs[i][0], "one");
  put_text(pairs[i][0], "three");
  put_text(pairs[i][1], "back");
}

static void child_check(void) {
  expect_text(pairs[CHILD][1], "to the child");
  put_text(pairs[CHILD][1], "to the parent");
}

static void check_options(void) {
  EXPECT_EQ(get_option(pairs[V4][0], IPPROTO_TCP, TCP_NODELAY), 1);
  EXPECT_EQ(get_option(pairs[V4][1], IPPROTO_TCP, TCP_NODELAY), 0);
  EXPECT_EQ(get_option(pairs[V4][0], SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(get_option(pairs[V4][0], IPPROTO_TCP, TCP_KEEPIDLE), 77);
  EXPECT_EQ(get_option(pairs[V4][0], IPPROTO_IP, IP_TOS), 0x10);
  EXPECT_EQ(get_option(pairs[FULL][0], SOL_SOCKET, SO_SNDBUF), 2 * 20000);
}

static void check(void) {
  for (int i = V4; i <= MAPPED; i++) {
    EXPECT_EQ(port_of(pairs[i][0]), remote_port_of(pairs[i][1]));
    EXPECT_EQ(port_of(pairs[i][1]), remote_port_of(pairs[i][0]));
    expect_text(pairs[i][1], "onethree");
    expect_text(pairs[i][0], "back");
    char byte;
    EXPECT(recv(pairs[i][0], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is queued");
    queue(i);
  }
  expect_stuff(pairs[FULL][1]);
  stuff(pairs[FULL][0]);
  put_text(pairs[CHILD][0], "to the child");
  ask_child(child);
  expect_text(pairs[CHILD][0], "to the parent");
  check_options();
}

static void spoil(void) {
  char byte;
  recv(pairs[V4][1], &byte, 1, 0);
}

int main(void) {
  begin();
  for (int i = 0; i < MANY; i++) {
    int family = i == V6 || i == MAPPED ? AF_INET6 : AF_INET;
    int listener = listen_at(family, i == MAPPED, 5);
    if (i == FULL) set_option(listener, SOL_SOCKET, SO_RCVBUF, 10000);
    connect_pair(listener, family, i == MAPPED, pairs[i]);
    close(listener);
    if (i <= MAPPED) queue(i);
  }
  set_option(pairs[FULL][0], SOL_SOCKET, SO_SNDBUF, 20000);
  stuff(pairs[FULL][0]);
  set_option(pairs[V4][0], IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(pairs[V4][0], SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(pairs[V4][0], IPPROTO_TCP, TCP_KEEPIDLE, 77);
  set_option(pairs[V4][0], IPPROTO_IP, IP_TOS, 0x10);
  child = start_child(NULL, child_check);
  close(pairs[CHILD][1]);
  tamper = spoil;
  serve(check);
}
