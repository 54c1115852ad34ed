// Options that CRIU's images have no field for, of sockets of every family: all that a kernel lets us set, as they read back.
// Datagrams wait in two of them, one of which is being peeked into (SO_PEEK_OFF).
#include "inet.h"
#include <linux/if_packet.h>
#include <netinet/udp.h>
#include <sys/un.h>

static const struct {
  int family, type, protocol;
} kinds[] = {
    {AF_UNIX, SOCK_STREAM, 0},     {AF_UNIX, SOCK_DGRAM, 0},   {AF_UNIX, SOCK_SEQPACKET, 0}, {AF_INET, SOCK_STREAM, 0},
    {AF_INET, SOCK_DGRAM, 0},      {AF_INET, SOCK_RAW, 1},     {AF_INET6, SOCK_STREAM, 0},   {AF_INET6, SOCK_DGRAM, 0},
    {AF_INET6, SOCK_RAW, 58},      {AF_PACKET, SOCK_RAW, 0},   {AF_NETLINK, SOCK_RAW, 0},
};

// Numbers, since headers lack the newer ones.
static const struct {
  int level, name, value, family;
} options[] = {
    {SOL_SOCKET, 1, 1, 0},         // SO_DEBUG
    {SOL_SOCKET, SO_TIMESTAMP, 1, 0},
    {SOL_SOCKET, 37, 0x18, 0},     // SO_TIMESTAMPING
    {SOL_SOCKET, 40, 1, 0},        // SO_RXQ_OVFL
    {SOL_SOCKET, 41, 1, 0},        // SO_WIFI_STATUS
    {SOL_SOCKET, 43, 1, 0},        // SO_NOFCS
    {SOL_SOCKET, 45, 1, 0},        // SO_SELECT_ERR_QUEUE
    {SOL_SOCKET, 46, 50, 0},       // SO_BUSY_POLL
    {SOL_SOCKET, 47, 100000, 0},   // SO_MAX_PACING_RATE
    {SOL_SOCKET, 49, 1, 0},        // SO_INCOMING_CPU
    {SOL_SOCKET, 69, 1, 0},        // SO_PREFER_BUSY_POLL
    {SOL_SOCKET, 74, 0, 0},        // SO_TXREHASH
    {SOL_SOCKET, 75, 1, 0},        // SO_RCVMARK
    {SOL_SOCKET, 76, 1, 0},        // SO_PASSPIDFD
    {SOL_SOCKET, 82, 1, 0},        // SO_RCVPRIORITY
    {SOL_SOCKET, 83, 0, 0},        // SO_PASSRIGHTS
    {IPPROTO_IP, 18, 1, AF_INET},  // IP_PASSSEC
    {IPPROTO_IP, IP_PKTINFO, 1, AF_INET6},
    {IPPROTO_TCP, 34, 1, 0},       // TCP_FASTOPEN_NO_COOKIE
    {IPPROTO_TCP, 37, 1000, 0},    // TCP_TX_DELAY
    {IPPROTO_TCP, 44, 5000, 0},    // TCP_RTO_MAX_MS
    {IPPROTO_IPV6, 2, 1, AF_INET6},  // IPV6_2292PKTINFO
    {IPPROTO_IPV6, 11, 1, AF_INET6}, // IPV6_FLOWINFO
    {IPPROTO_IPV6, 33, 1, AF_INET6}, // IPV6_FLOWINFO_SEND
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, 1, AF_INET6},
    {IPPROTO_IPV6, IPV6_RECVRTHDR, 1, AF_INET6},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1, AF_INET6},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU, 1, AF_INET6},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, 1, AF_INET6},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT, 3, AF_INET6},
};

static int sockets[COUNT(kinds)], values[COUNT(kinds)][COUNT(options)];
static int hop_options = -1, connected[2], unix_pair[2], udp_pair[2];
static const unsigned char hops[8] = {0, 0, 1, 4, 0, 0, 0, 0}; // a header of padding

static void check_queue(int fd, const char *name) {
  char text[16] = "";
  EXPECT_EQ(get_option(fd, SOL_SOCKET, SO_PEEK_OFF), 2);
  EXPECT_EQ(recv(fd, text, sizeof text, MSG_PEEK | MSG_DONTWAIT), 3);
  EXPECT(strcmp(text, "345") == 0, "%s shows %s", name, text);
  set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 2);
}

static void check(void) {
  for (size_t kind = 0; kind < COUNT(kinds); kind++)
    for (size_t at = 0; at < COUNT(options); at++) {
      int value = get_option(sockets[kind], options[at].level, options[at].name);
      EXPECT(value == values[kind][at], "option %d:%d of kind %zu is %d, was %d", options[at].level, options[at].name, kind,
             value, values[kind][at]);
    }
  unsigned char header[sizeof hops] = {0};
  socklen_t size = sizeof header;
  EXPECT_EQ(getsockopt(hop_options, IPPROTO_IPV6, IPV6_HOPOPTS, header, &size), 0);
  EXPECT(size == sizeof hops && memcmp(header, hops, sizeof hops) == 0, "the header for each hop is lost");
  EXPECT_EQ(get_option(connected[0], IPPROTO_TCP, TCP_WINDOW_CLAMP), 20000);
  check_queue(unix_pair[1], "the unix socket");
  check_queue(udp_pair[1], "the UDP socket");
}

static void spoil(void) { set_option(sockets[0], SOL_SOCKET, SO_TIMESTAMP, 0); }

static void wait_in(int pair[2]) {
  MUST(send(pair[0], "12345", 5, 0));
  set_option(pair[1], SOL_SOCKET, SO_PEEK_OFF, 2);
}

int main(void) {
  begin();
  for (size_t kind = 0; kind < COUNT(kinds); kind++) {
    sockets[kind] = (int)MUST(socket(kinds[kind].family, kinds[kind].type, kinds[kind].protocol));
    for (size_t at = 0; at < COUNT(options); at++) {
      if (options[at].family != 0 && options[at].family != kinds[kind].family) continue;
      int64_t value = options[at].value; // the longest have 8 bytes
      socklen_t size = options[at].name == 47 ? 8 : 4;
      setsockopt(sockets[kind], options[at].level, options[at].name, &value, size);
    }
    for (size_t at = 0; at < COUNT(options); at++)
      values[kind][at] = get_option(sockets[kind], options[at].level, options[at].name);
  }
  hop_options = (int)MUST(socket(AF_INET6, SOCK_DGRAM, 0));
  MUST(setsockopt(hop_options, IPPROTO_IPV6, IPV6_HOPOPTS, hops, sizeof hops));
  int listener = listen_at(AF_INET, false, 1);
  connect_pair(listener, AF_INET, false, connected);
  close(listener);
  set_option(connected[0], IPPROTO_TCP, TCP_WINDOW_CLAMP, 20000);
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, unix_pair));
  set_option(unix_pair[1], SOL_SOCKET, 76, 1); // SO_PASSPIDFD
  wait_in(unix_pair);
  address here = loopback(AF_INET, false, 0);
  for (int i = 0; i < 2; i++) {
    udp_pair[i] = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(udp_pair[i], &here.any, size_of(&here)));
  }
  socklen_t size = sizeof here;
  MUST(getsockname(udp_pair[1], &here.any, &size));
  MUST(connect(udp_pair[0], &here.any, size));
  wait_in(udp_pair);
  tamper = spoil;
  serve(check);
}
