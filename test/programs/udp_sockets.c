// UDP, UDP-Lite, ping and raw sockets of IPv4 and IPv6 with nothing to read: addresses, connected or not, shut down, options.
#include "inet.h"
#include <netinet/ip_icmp.h>

static int v4, v6, connected, shut, lite, fresh, ping, raw, raw6;
static int ports[5];

static int udp_at(int family, int proto) {
  int fd = (int)MUST(socket(family, SOCK_DGRAM, proto));
  address a = loopback(family, false, 0);
  MUST(bind(fd, &a.any, size_of(&a)));
  return fd;
}

static void expect_datagram(int from, int to, int family, const char *text) {
  address a = loopback(family, false, port_of(to));
  EXPECT(sendto(from, text, strlen(text), 0, &a.any, size_of(&a)) == (ssize_t)strlen(text), "sendto: %m");
  expect_text(to, text);
}

static void check_ping(void) {
  if (ping < 0) return;
  struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.sequence = htons(7)}, answer = {0};
  address here = loopback(AF_INET, false, 0);
  EXPECT_EQ(sendto(ping, &echo, sizeof echo, 0, &here.any, size_of(&here)), (long)sizeof echo);
  struct pollfd ready = {.fd = ping, .events = POLLIN};
  EXPECT_EQ(poll(&ready, 1, 5000), 1);
  EXPECT_EQ(recv(ping, &answer, sizeof answer, MSG_DONTWAIT), (long)sizeof answer);
  EXPECT_EQ(answer.type, ICMP_ECHOREPLY);
}

static void check(void) {
  EXPECT_EQ(port_of(v4), ports[0]);
  EXPECT_EQ(port_of(v6), ports[1]);
  EXPECT_EQ(port_of(connected), ports[2]);
  EXPECT_EQ(remote_port_of(connected), ports[0]);
  EXPECT_EQ(port_of(lite), ports[3]);
  EXPECT_EQ(port_of(fresh), 0);
  EXPECT_EQ(remote_port_of(v4), -1);
  expect_datagram(connected, v4, AF_INET, "to four");
  expect_datagram(v4, connected, AF_INET, "to the connected");
  expect_datagram(v6, v6, AF_INET6, "to myself");
  EXPECT(send(shut, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "shut, it can be written");
  EXPECT_EQ(get_option(v4, SOL_SOCKET, SO_BROADCAST), 1);
  EXPECT_EQ(get_option(v4, IPPROTO_IP, IP_TTL), 9);
  EXPECT_EQ(get_option(v4, IPPROTO_IP, IP_TOS), 0x10);
  EXPECT_EQ(get_option(v4, IPPROTO_IP, IP_PKTINFO), 1);
  EXPECT_EQ(get_option(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO), 1);
  EXPECT_EQ(get_option(v6, SOL_SOCKET, SO_MARK), 77);
  check_ping();
  EXPECT_EQ(get_option(raw, IPPROTO_IP, IP_HDRINCL), 1);
  unsigned int filter = 0;
  socklen_t size = sizeof filter;
  EXPECT_EQ(getsockopt(raw, 255 /* SOL_RAW */, 1 /* ICMP_FILTER */, &filter, &size), 0);
  EXPECT_EQ(filter, 0xfffffffeU);
  EXPECT_EQ(get_option(raw6, SOL_SOCKET, SO_PROTOCOL), IPPROTO_ICMPV6);
}

static void spoil(void) { set_option(v4, IPPROTO_IP, IP_TTL, 10); }

int main(void) {
  begin();
  v4 = udp_at(AF_INET, 0);
  v6 = udp_at(AF_INET6, 0);
  connected = udp_at(AF_INET, 0);
  lite = udp_at(AF_INET, IPPROTO_UDPLITE);
  shut = udp_at(AF_INET, 0);
  fresh = (int)MUST(socket(AF_INET6, SOCK_DGRAM, 0));
  ports[0] = port_of(v4);
  ports[1] = port_of(v6);
  ports[2] = port_of(connected);
  ports[3] = port_of(lite);
  address peer = loopback(AF_INET, false, ports[0]);
  MUST(connect(connected, &peer.any, size_of(&peer)));
  MUST(connect(shut, &peer.any, size_of(&peer)));
  MUST(shutdown(shut, SHUT_WR));
  set_option(v4, SOL_SOCKET, SO_BROADCAST, 1);
  set_option(v4, IPPROTO_IP, IP_TTL, 9);
  set_option(v4, IPPROTO_IP, IP_TOS, 0x10);
  set_option(v4, IPPROTO_IP, IP_PKTINFO, 1);
  set_option(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
  set_option(v6, SOL_SOCKET, SO_MARK, 77);
  ping = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
  raw = (int)MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
  set_option(raw, IPPROTO_IP, IP_HDRINCL, 1);
  unsigned int filter = 0xfffffffeU;
  MUST(setsockopt(raw, 255, 1, &filter, sizeof filter));
  raw6 = (int)MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
  tamper = spoil;
  serve(check);
}
