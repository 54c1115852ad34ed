// Internet sockets with what CRIU's images have no place for: options of TCP, UDP, IPv4 and IPv6, multicast groups, a corked UDP
// socket, an address of elsewhere (IP_FREEBIND), a listener of Multipath TCP; a priority that was set after IP_TOS, which sets one too;
// a connection that is being peeked into (SO_PEEK_OFF).
#include "inet.h"
#include <netinet/udp.h>
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int pair[2], peeked[2], fresh, freebound, multipath, udp, udp6, lite;

static bool in_group(const char *group) {
  struct ip_mreqn request = {.imr_ifindex = 1};
  inet_pton(AF_INET, group, &request.imr_multiaddr);
  return setsockopt(udp, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request) == -1 && errno == EADDRINUSE;
}

static bool in_group6(const char *group) {
  struct ipv6_mreq request = {.ipv6mr_interface = 1};
  inet_pton(AF_INET6, group, &request.ipv6mr_multiaddr);
  return setsockopt(udp6, IPPROTO_IPV6, IPV6_JOIN_GROUP, &request, sizeof request) == -1 && errno == EADDRINUSE;
}

static void check(void) {
  EXPECT_EQ(get_option(pair[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 54321);
  EXPECT_EQ(get_option(pair[0], IPPROTO_IPV6, IPV6_TCLASS), 0x20);
  EXPECT_EQ(get_option(pair[0], IPPROTO_TCP, TCP_NOTSENT_LOWAT), 12345);
  char name[16] = "";
  socklen_t size = sizeof name;
  getsockopt(pair[0], IPPROTO_TCP, TCP_CONGESTION, name, &size);
  EXPECT(strcmp(name, "reno") == 0, "congestion control is %s", name);
  EXPECT_EQ(get_option(udp, IPPROTO_IP, IP_TOS), 0x10);
  EXPECT_EQ(get_option(udp, SOL_SOCKET, SO_PRIORITY), 3);
  if (peeked[0] > 0) {
    char text[8] = "";
    EXPECT_EQ(recv(peeked[1], text, sizeof text, MSG_PEEK | MSG_DONTWAIT), 3);
    EXPECT(strcmp(text, "345") == 0, "the connection shows %s", text);
    set_option(peeked[1], SOL_SOCKET, SO_PEEK_OFF, 2);
  }
  EXPECT_EQ(get_option(fresh, IPPROTO_TCP, TCP_MAXSEG), 1000);
  EXPECT_EQ(get_option(fresh, IPPROTO_TCP, TCP_FASTOPEN_CONNECT), 1);
  EXPECT_EQ(get_option(freebound, IPPROTO_IP, IP_FREEBIND), 1);
  address a;
  size = sizeof a;
  EXPECT_EQ(getsockname(freebound, &a.any, &size), 0);
  EXPECT_EQ(ntohl(a.v4.sin_addr.s_addr), 0xc0000201); // 192.0.2.1
  if (multipath >= 0) {
    EXPECT_EQ(get_option(multipath, SOL_SOCKET, SO_PROTOCOL), IPPROTO_MPTCP);
    int ends[2];
    connect_pair(multipath, AF_INET, false, ends);
    put_text(ends[0], "hello");
    expect_text(ends[1], "hello");
    close(ends[0]);
    close(ends[1]);
  }
  EXPECT_EQ(get_option(udp, IPPROTO_UDP, UDP_CORK), 1);
  EXPECT_EQ(get_option(udp, IPPROTO_IP, IP_RECVTTL), 1);
  EXPECT_EQ(get_option(udp, IPPROTO_IP, IP_MULTICAST_TTL), 5);
  EXPECT_EQ(get_option(udp, SOL_SOCKET, SO_TIMESTAMP), 1);
  EXPECT(in_group("239.7.7.7"), "the multicast group is left");
  EXPECT_EQ(get_option(udp6, IPPROTO_IPV6, IPV6_UNICAST_HOPS), 11);
  EXPECT(in_group6("ff15::7:7"), "the multicast group of IPv6 is left");
  EXPECT_EQ(get_option(lite, IPPROTO_UDPLITE, 10 /* UDPLITE_SEND_CSCOV */), 8);
}

static void spoil(void) { set_option(pair[0], IPPROTO_TCP, TCP_USER_TIMEOUT, 1); }

int main(void) {
  begin();
  int listener = listen_at(AF_INET6, false, 5);
  connect_pair(listener, AF_INET6, false, pair);
  connect_pair(listener, AF_INET6, false, peeked);
  close(listener);
  put_text(peeked[0], "12345");
  struct pollfd ready = {peeked[1], POLLIN, 0};
  MUST(poll(&ready, 1, 5000) == 1 ? 0 : -1);
  int offset = 2;
  // Of TCP since Linux 6.9.
  if (setsockopt(peeked[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) < 0) peeked[0] = -1;
  set_option(pair[0], IPPROTO_TCP, TCP_USER_TIMEOUT, 54321);
  set_option(pair[0], IPPROTO_TCP, TCP_NOTSENT_LOWAT, 12345);
  set_option(pair[0], IPPROTO_IPV6, IPV6_TCLASS, 0x20);
  MUST(setsockopt(pair[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
  fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  set_option(fresh, IPPROTO_TCP, TCP_MAXSEG, 1000);
  set_option(fresh, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1);
  freebound = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  set_option(freebound, IPPROTO_IP, IP_FREEBIND, 1);
  address far = loopback(AF_INET, false, 0);
  far.v4.sin_addr.s_addr = htonl(0xc0000201);
  MUST(bind(freebound, &far.any, size_of(&far)));
  multipath = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
  if (multipath >= 0) {
    address m = loopback(AF_INET, false, 0);
    MUST(bind(multipath, &m.any, size_of(&m)));
    MUST(listen(multipath, 4));
  }
  udp = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
  set_option(udp, IPPROTO_UDP, UDP_CORK, 1);
  set_option(udp, IPPROTO_IP, IP_TOS, 0x10);
  set_option(udp, SOL_SOCKET, SO_PRIORITY, 3);
  set_option(udp, IPPROTO_IP, IP_RECVTTL, 1);
  set_option(udp, IPPROTO_IP, IP_MULTICAST_TTL, 5);
  set_option(udp, SOL_SOCKET, SO_TIMESTAMP, 1);
  struct ip_mreqn request = {.imr_ifindex = 1};
  inet_pton(AF_INET, "239.7.7.7", &request.imr_multiaddr);
  MUST(setsockopt(udp, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request));
  udp6 = (int)MUST(socket(AF_INET6, SOCK_DGRAM, 0));
  set_option(udp6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 11);
  struct ipv6_mreq request6 = {.ipv6mr_interface = 1};
  inet_pton(AF_INET6, "ff15::7:7", &request6.ipv6mr_multiaddr);
  MUST(setsockopt(udp6, IPPROTO_IPV6, IPV6_JOIN_GROUP, &request6, sizeof request6));
  lite = (int)MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE));
  set_option(lite, IPPROTO_UDPLITE, 10, 8);
  tamper = spoil;
  serve(check);
}
