// Datagrams that wait to be read, each with its sender: IPv4, IPv6, both in one socket, connected, UDP-Lite, two sockets at one
// port; an empty datagram.
#include "inet.h"

enum { V4, V6, BOTH, CONNECTED, TWIN_A, TWIN_B, LITE, MANY };
static int sockets[MANY], ports[MANY];
static int sender4, sender6, sender_lite;
static int sender_ports[3];

static int udp_at(int family, bool any, int port, int proto) {
  int fd = (int)MUST(socket(family, SOCK_DGRAM, proto));
  if (port >= 0) set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  address a = loopback(family, false, port < 0 ? 0 : port);
  if (any && family == AF_INET) a.v4.sin_addr.s_addr = 0;
  if (any && family == AF_INET6) a.v6.sin6_addr = in6addr_any;
  MUST(bind(fd, &a.any, size_of(&a)));
  return fd;
}

static void send_from(int fd, int family, int port, const char *text) {
  address a = loopback(family, false, port);
  EXPECT(sendto(fd, text, strlen(text), 0, &a.any, size_of(&a)) == (ssize_t)strlen(text), "sendto: %m");
}

static void expect_from(int fd, int port, const char *wanted) {
  char text[64] = "";
  address a = {0};
  socklen_t size = sizeof a;
  ssize_t got = recvfrom(fd, text, sizeof text - 1, MSG_DONTWAIT, &a.any, &size);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s", got, text, wanted);
  EXPECT_EQ(ntohs(a.v4.sin_port), port);
}

static void expect_nothing(int fd) {
  char byte;
  EXPECT(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is queued");
}

static void queue(void) {
  send_from(sender4, AF_INET, ports[V4], "one");
  send_from(sender4, AF_INET, ports[V4], "");
  send_from(sender4, AF_INET, ports[V4], "three");
  send_from(sender6, AF_INET6, ports[V6], "six");
  send_from(sender6, AF_INET6, ports[BOTH], "from six");
  send_from(sender4, AF_INET, ports[BOTH], "from four");
  send_from(sender4, AF_INET, ports[CONNECTED], "to my peer");
  send_from(sender_lite, AF_INET, ports[LITE], "light");
}

// Which of the twins gets it is the kernel's choice.
static void check_twins(void) {
  char text[64] = "";
  int total = 0;
  for (int i = TWIN_A; i <= TWIN_B; i++)
    while (recv(sockets[i], text, sizeof text, MSG_DONTWAIT) > 0) total++;
  EXPECT_EQ(total, 4);
  for (int i = 0; i < 4; i++) send_from(sender4, AF_INET, ports[TWIN_A], "twin");
}

static void check(void) {
  for (int i = 0; i < MANY; i++) EXPECT_EQ(port_of(sockets[i]), ports[i]);
  EXPECT_EQ(remote_port_of(sockets[CONNECTED]), sender_ports[0]);
  expect_from(sockets[V4], sender_ports[0], "one");
  expect_from(sockets[V4], sender_ports[0], "");
  expect_from(sockets[V4], sender_ports[0], "three");
  expect_from(sockets[V6], sender_ports[1], "six");
  expect_from(sockets[BOTH], sender_ports[1], "from six");
  expect_from(sockets[BOTH], sender_ports[0], "from four");
  expect_from(sockets[CONNECTED], sender_ports[0], "to my peer");
  expect_from(sockets[LITE], sender_ports[2], "light");
  for (int i = 0; i <= CONNECTED; i++) expect_nothing(sockets[i]);
  check_twins();
  queue();
}

static void spoil(void) {
  char byte;
  recv(sockets[V4], &byte, 1, MSG_DONTWAIT);
}

int main(void) {
  begin();
  sender4 = udp_at(AF_INET, false, -1, 0);
  sender6 = udp_at(AF_INET6, false, -1, 0);
  sender_lite = udp_at(AF_INET, false, -1, IPPROTO_UDPLITE);
  sender_ports[0] = port_of(sender4);
  sender_ports[1] = port_of(sender6);
  sender_ports[2] = port_of(sender_lite);
  sockets[V4] = udp_at(AF_INET, false, -1, 0);
  sockets[V6] = udp_at(AF_INET6, false, -1, 0);
  sockets[BOTH] = udp_at(AF_INET6, true, -1, 0);
  sockets[CONNECTED] = udp_at(AF_INET, true, -1, 0);
  sockets[TWIN_A] = udp_at(AF_INET, false, 0, 0);
  sockets[TWIN_B] = udp_at(AF_INET, false, port_of(sockets[TWIN_A]), 0);
  sockets[LITE] = udp_at(AF_INET, false, -1, IPPROTO_UDPLITE);
  for (int i = 0; i < MANY; i++) ports[i] = port_of(sockets[i]);
  address peer = loopback(AF_INET, false, sender_ports[0]);
  MUST(connect(sockets[CONNECTED], &peer.any, size_of(&peer)));
  queue();
  for (int i = 0; i < 4; i++) send_from(sender4, AF_INET, ports[TWIN_A], "twin");
  tamper = spoil;
  serve(check);
}
