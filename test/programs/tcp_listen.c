// TCP sockets that are not connected: listeners of IPv4, of IPv6 alone and of both, two at one port (SO_REUSEPORT), one whose
// SO_REUSEADDR was taken back, a port that is taken and not listened at, a fresh socket.
#include "inet.h"

static int plain, both, only6, shared[2], bound, fresh;
static int ports[5];

static int listen_anywhere(int family, int port, int proto) {
  int fd = (int)MUST(socket(family, SOCK_STREAM, proto));
  if (family == AF_INET6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, port < 0);
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  address a = {0};
  a.any.sa_family = (sa_family_t)family;
  MUST(bind(fd, &a.any, size_of(&a)));
  MUST(listen(fd, 7));
  return fd;
}

static void talk(int listener, int family, bool mapped) {
  int pair[2];
  pair[0] = socket(family, SOCK_STREAM, 0);
  address a = loopback(family, mapped, port_of(listener));
  EXPECT(connect(pair[0], &a.any, size_of(&a)) == 0, "connect to port %d: %m", port_of(listener));
  struct pollfd ready = {.fd = listener, .events = POLLIN};
  EXPECT_EQ(poll(&ready, 1, 5000), 1);
  pair[1] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  put_text(pair[0], "hello");
  expect_text(pair[1], "hello");
  // The accepting side ends last, so that nothing is left waiting at our port.
  close(pair[0]);
  close(pair[1]);
}

static int backlog_of(int listener) {
  struct tcp_info info = {0};
  socklen_t size = sizeof info;
  getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size);
  return (int)info.tcpi_sacked;
}

static void check(void) {
  EXPECT_EQ(port_of(plain), ports[0]);
  EXPECT_EQ(backlog_of(plain), 5);
  EXPECT_EQ(get_option(plain, SOL_SOCKET, SO_REUSEADDR), 0);
  EXPECT_EQ(get_option(plain, IPPROTO_TCP, TCP_DEFER_ACCEPT), 0);
  talk(plain, AF_INET, false);
  EXPECT_EQ(port_of(both), ports[1]);
  EXPECT_EQ(backlog_of(both), 7);
  EXPECT_EQ(get_option(both, IPPROTO_IPV6, IPV6_V6ONLY), 0);
  talk(both, AF_INET6, false);
  talk(both, AF_INET, false);
  EXPECT_EQ(port_of(only6), ports[2]);
  EXPECT_EQ(get_option(only6, IPPROTO_IPV6, IPV6_V6ONLY), 1);
  talk(only6, AF_INET6, false);
  for (int i = 0; i < 2; i++) {
    EXPECT_EQ(port_of(shared[i]), ports[3]);
    EXPECT_EQ(tcp_state(shared[i]), TCP_LISTEN);
    EXPECT_EQ(get_option(shared[i], SOL_SOCKET, SO_REUSEPORT), i == 0);
  }
  EXPECT_EQ(port_of(bound), ports[4]);
  EXPECT_EQ(tcp_state(bound), TCP_CLOSE);
  EXPECT_EQ(port_of(fresh), 0);
}

static void spoil(void) { shutdown(plain, SHUT_RDWR); }

int main(void) {
  begin();
  plain = listen_at(AF_INET, false, 5);
  ports[0] = port_of(plain);
  both = listen_anywhere(AF_INET6, 0, 0);
  ports[1] = port_of(both);
  only6 = listen_anywhere(AF_INET6, -1, 0);
  ports[2] = port_of(only6);
  for (int i = 0; i < 2; i++) {
    shared[i] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    set_option(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
    address a = loopback(AF_INET, false, i == 0 ? 0 : ports[3]);
    MUST(bind(shared[i], &a.any, size_of(&a)));
    MUST(listen(shared[i], 3));
    ports[3] = port_of(shared[i]);
  }
  set_option(shared[1], SOL_SOCKET, SO_REUSEPORT, 0);
  bound = (int)MUST(socket(AF_INET6, SOCK_STREAM, 0));
  address a = loopback(AF_INET6, false, 0);
  MUST(bind(bound, &a.any, size_of(&a)));
  ports[4] = port_of(bound);
  fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  tamper = spoil;
  serve(check);
}
