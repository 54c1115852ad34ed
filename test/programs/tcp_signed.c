// Keys that sign TCP segments (TCP_MD5SIG): of a listener, for one address and for a network, and of connections in several states
// over IPv4, IPv6 and IPv4 in an IPv6 socket. Who has no key, or another one, does not get through.
#include "inet.h"

enum { V4, V6, MAPPED, HALF_CLOSED, MANY };
static int listeners[MANY], pairs[MANY][2], network;
static const char *const keys[MANY] = {"first key", "another", "of the mapped one", "half"};

static int family_of(int i) { return i == V6 || i == MAPPED ? AF_INET6 : AF_INET; }

static int give_key(int fd, const address *peer, int prefix, const char *key) {
  struct tcp_md5sig argument = {0};
  memcpy(&argument.tcpm_addr, peer, sizeof *peer);
  argument.tcpm_keylen = (uint16_t)strlen(key);
  memcpy(argument.tcpm_key, key, strlen(key));
  argument.tcpm_flags = prefix < 0 ? 0 : TCP_MD5SIG_FLAG_PREFIX;
  argument.tcpm_prefixlen = (uint8_t)(prefix < 0 ? 0 : prefix);
  return setsockopt(fd, IPPROTO_TCP, prefix < 0 ? TCP_MD5SIG : TCP_MD5SIG_EXT, &argument, sizeof argument);
}

// A connection within a moment, with a key or none; -1 when there is no answer.
static int try_connect(int i, int port, const char *key) {
  int fd = (int)MUST(socket(family_of(i), SOCK_STREAM | SOCK_NONBLOCK, 0));
  address a = loopback(family_of(i), i == MAPPED, port);
  if (key != NULL) MUST(give_key(fd, &a, -1, key));
  struct pollfd ready = {.fd = fd, .events = POLLOUT};
  if (connect(fd, &a.any, size_of(&a)) == 0 || poll(&ready, 1, 250) == 1) return fd;
  close(fd);
  return -1;
}

static void expect_door(int listener, int i, const char *key) {
  int fd = try_connect(i, port_of(listener), key);
  EXPECT(fd >= 0, "no connection to %d with the key", i);
  if (fd < 0) return;
  int other = (int)MUST(accept(listener, NULL, NULL));
  put_text(fd, "signed");
  expect_text(other, "signed");
  close(fd);
  close(other);
}

static void check(void) {
  for (int i = V4; i <= MAPPED; i++) {
    expect_door(listeners[i], i, keys[i]);
    put_text(pairs[i][0], "to and");
    expect_text(pairs[i][1], "to and");
    put_text(pairs[i][1], "fro");
    expect_text(pairs[i][0], "fro");
  }
  expect_door(network, V4, "the whole network's");
  EXPECT_EQ(try_connect(V4, port_of(listeners[V4]), NULL), -1);
  EXPECT_EQ(try_connect(V4, port_of(network), "a wrong one"), -1);
  EXPECT_EQ(tcp_state(pairs[HALF_CLOSED][0]), TCP_FIN_WAIT2);
  EXPECT_EQ(tcp_state(pairs[HALF_CLOSED][1]), TCP_CLOSE_WAIT);
  put_text(pairs[HALF_CLOSED][1], "still");
  expect_text(pairs[HALF_CLOSED][0], "still");
}

static void spoil(void) {
  address a = loopback(AF_INET, false, 0);
  give_key(pairs[V4][0], &a, -1, "changed");
  give_key(listeners[V4], &a, -1, "changed");
}

int main(void) {
  begin();
  for (int i = V4; i < MANY; i++) {
    listeners[i] = listen_at(family_of(i), i == MAPPED, 5);
    address a = loopback(family_of(i), i == MAPPED, 0);
    MUST(give_key(listeners[i], &a, -1, keys[i]));
    pairs[i][0] = (int)MUST(try_connect(i, port_of(listeners[i]), keys[i]));
    pairs[i][1] = (int)MUST(accept(listeners[i], NULL, NULL));
  }
  MUST(shutdown(pairs[HALF_CLOSED][0], SHUT_WR));
  MUST(WITHIN(2000, tcp_state(pairs[HALF_CLOSED][0]) == TCP_FIN_WAIT2) ? 0 : -1);
  network = listen_at(AF_INET, false, 5);
  address any = loopback(AF_INET, false, 0);
  any.v4.sin_addr.s_addr = htonl(0x7f000000);
  MUST(give_key(network, &any, 8, "the whole network's"));
  tamper = spoil;
  serve(check);
}
