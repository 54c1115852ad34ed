// Operations on sockets.
#pragma once
#include "random_files.h"
#include <linux/netlink.h>
#include <net/if.h>

static socklen_t unix_address(struct sockaddr_un *address, unsigned which) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  if (which & 1) return offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)
    snprintf(address->sun_path + 1, 100, "random.%d.%u", page->actors[0].pid, which / 2 % 4);
  snprintf(address->sun_path, 100, "u%u", which / 2 % 4);
  return sizeof *address;
}

static int socket_type(unsigned which) {
  static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
  return types[which % 3] | (which & 8 ? SOCK_NONBLOCK : 0) | (which & 16 ? SOCK_CLOEXEC : 0);
}

static void do_socketpair(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fds[2];
  if (socketpair(AF_UNIX, socket_type(a), 0, fds) == -1) return;
  for (unsigned i = 0; i < b % 4; i++) send(fds[i & 1], "in flight before all", c % 20, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (d % 6 == 0) shutdown(fds[0], (int)(c % 3));
  if (d % 6 == 1) close(fds[0]);
  if (d % 6 == 2) close(fds[1]);
  note("socketpair %d %d", fds[0], fds[1]);
}

static void do_unix_bind(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  struct sockaddr_un address;
  int fd = socket(AF_UNIX, socket_type(a), 0);
  socklen_t length = unix_address(&address, b);
  int bound = bind(fd, (struct sockaddr *)&address, length);
  if (bound == 0 && a % 3 != 1 && c % 4 != 0) listen(fd, (int)(c % 5));
  if (bound == 0 && !(b & 1) && c % 9 == 0) unlink(address.sun_path);
  note("unix socket -> %d, bound to %c%s: %d", fd, b & 1 ? '@' : ' ', address.sun_path + (b & 1), bound);
}

static void do_unix_connect(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  struct sockaddr_un address;
  int fd = socket(AF_UNIX, socket_type(a) | SOCK_NONBLOCK, 0);
  socklen_t length = unix_address(&address, b);
  int connected = connect(fd, (struct sockaddr *)&address, length);
  if (c % 3 == 0) send(fd, "hello from a client", c % 19, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (c & 1) fcntl(fd, F_SETFL, 0);
  note("unix socket -> %d, connected: %d", fd, connected);
}

static void do_accept(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = PICKED(SOCKETS, a), listening = 0;
  socklen_t length = sizeof listening;
  getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length);
  struct pollfd ready = {fd, POLLIN, 0};
  if (!listening || poll(&ready, 1, 0) != 1) return;
  note("accept from %d -> %d", fd, accept4(fd, NULL, NULL, b & 1 ? SOCK_CLOEXEC : 0));
}

static void do_send(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fd = PICKED(SOCKETS, a);
  char bytes[700], control[64] = {0};
  snprintf(bytes, sizeof bytes, "from actor %d in step %d", me, now_step);
  struct iovec part = {bytes, b % 8 == 0 ? 0 : c % sizeof bytes};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  int passed = pick(ALL, d);
  if (b % 4 == 1 && passed >= 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &passed, sizeof passed);
  }
  ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent >= 0 && b % 4 == 1 && c % 3 == 0) close(passed);
  note("send to %d, with %d -> %zd", fd, b % 4 == 1 ? passed : -1, sent);
}

static void do_receive(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = PICKED(SOCKETS | PIPES, a);
  char bytes[100];
  struct pollfd ready = {fd, POLLIN, 0};
  if (poll(&ready, 1, 0) != 1) return;
  note("receive from %d -> %zd", fd, read(fd, bytes, 1 + b % 99));
}

static void do_shutdown(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = PICKED(SOCKETS, a);
  note("shutdown %d %u -> %d", fd, b % 3, shutdown(fd, (int)(b % 3)));
}

static void do_option(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const int options[][2] = {
    {SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_BROADCAST}, {SOL_SOCKET, SO_OOBINLINE},
    {SOL_SOCKET, SO_SNDBUF}, {SOL_SOCKET, SO_RCVBUF}, {SOL_SOCKET, SO_RCVLOWAT}, {SOL_SOCKET, SO_PRIORITY},
    {SOL_SOCKET, SO_PASSCRED}, {SOL_SOCKET, SO_TIMESTAMP}, {SOL_SOCKET, SO_TIMESTAMPNS}, {SOL_SOCKET, SO_MARK},
    {SOL_SOCKET, SO_PEEK_OFF}, {SOL_SOCKET, SO_REUSEPORT}, {SOL_SOCKET, SO_DONTROUTE}, {SOL_SOCKET, SO_NO_CHECK},
    {SOL_SOCKET, SO_RXQ_OVFL}, {SOL_SOCKET, SO_BUSY_POLL}, {SOL_SOCKET, SO_SELECT_ERR_QUEUE}, {SOL_SOCKET, SO_ZEROCOPY},
    {SOL_SOCKET, SO_INCOMING_CPU}, {SOL_SOCKET, SO_PASSSEC},
    {IPPROTO_IP, IP_TOS}, {IPPROTO_IP, IP_TTL}, {IPPROTO_IP, IP_PKTINFO}, {IPPROTO_IP, IP_RECVTTL}, {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_MTU_DISCOVER}, {IPPROTO_IP, IP_FREEBIND}, {IPPROTO_IP, IP_TRANSPARENT}, {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP}, {IPPROTO_IP, IP_RECVTOS}, {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT}, {IPPROTO_IP, IP_MINTTL},
    {IPPROTO_IPV6, IPV6_V6ONLY}, {IPPROTO_IPV6, IPV6_TCLASS}, {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO}, {IPPROTO_IPV6, IPV6_MTU_DISCOVER}, {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_CORK}, {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_TCP, TCP_KEEPINTVL},
    {IPPROTO_TCP, TCP_KEEPCNT}, {IPPROTO_TCP, TCP_DEFER_ACCEPT}, {IPPROTO_TCP, TCP_LINGER2}, {IPPROTO_TCP, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_USER_TIMEOUT}, {IPPROTO_TCP, TCP_NOTSENT_LOWAT}, {IPPROTO_TCP, TCP_FASTOPEN},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP}, {IPPROTO_TCP, TCP_SAVE_SYN}, {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT}, {IPPROTO_TCP, TCP_INQ}, {IPPROTO_TCP, TCP_TX_DELAY}};
  static const int values[] = {0, 1, 1, 2, 5, 60, 3000, 100000};
  int fd = PICKED(SOCKETS, a), value = values[c % COUNT(values)];
  const int *option = options[b % COUNT(options)];
  if (d % 9 == 0) {
    struct timeval time = {1000 + c % 9, 0};
    setsockopt(fd, SOL_SOCKET, d & 1 ? SO_RCVTIMEO : SO_SNDTIMEO, &time, sizeof time);
  } else if (d % 9 == 1) {
    struct linger linger = {(int)(c & 1), (int)(c % 7)};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  }
  note("option %d %d of %d = %d -> %d", option[0], option[1], fd, value,
       setsockopt(fd, option[0], option[1], &value, sizeof value));
}

// Ports are the kernel's choice, and kept in the page of nobody: who connects looks for a listener among its descriptors.
static socklen_t loopback(struct sockaddr_storage *address, bool six, int port) {
  *address = (struct sockaddr_storage){0};
  if (six) *(struct sockaddr_in6 *)address = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT, .sin6_port = htons((uint16_t)port)};
  else *(struct sockaddr_in *)address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons((uint16_t)port)};
  return six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

static void do_inet_bind(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  struct sockaddr_storage address;
  bool six = a & 1;
  int fd = socket(six ? AF_INET6 : AF_INET, (b % 3 == 0 ? SOCK_DGRAM : SOCK_STREAM) | (b & 4 ? SOCK_NONBLOCK : 0), 0);
  if (c % 5 != 0) bind(fd, (struct sockaddr *)&address, loopback(&address, six, 0));
  if (b % 3 != 0 && c % 5 > 1) listen(fd, (int)(c % 6));
  note("inet socket -> %d", fd);
}

static void do_inet_connect(unsigned a, unsigned b, unsigned c, unsigned d) {
  int peer = PICKED(SOCKETS, a), type = 0;
  struct sockaddr_storage address = {0};
  socklen_t length = sizeof address, size = sizeof type;
  if (getsockname(peer, (struct sockaddr *)&address, &length) == -1) return;
  getsockopt(peer, SOL_SOCKET, SO_TYPE, &type, &size);
  if (address.ss_family != AF_INET && address.ss_family != AF_INET6) return;
  int fd = socket(address.ss_family, type | SOCK_NONBLOCK, 0), accepted = -1;
  int result = connect(fd, (struct sockaddr *)&address, length);
  struct pollfd ready = {peer, POLLIN, 0};
  if (type == SOCK_STREAM && b % 3 != 0 && poll(&ready, 1, 20) == 1) accepted = accept4(peer, NULL, NULL, 0);
  if (c % 3 != 0) send(fd, "across the loopback", c % 19, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (accepted >= 0 && d % 5 == 0) send(accepted, "and back again", d % 14, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (accepted >= 0 && d % 5 == 1) close(accepted);
  if (d % 5 == 2) shutdown(fd, (int)(d % 3));
  if (b & 4) fcntl(fd, F_SETFL, 0);
  usleep(2000); // what goes over the loopback arrives
  note("connect to the name of %d -> %d: %d, accepted as %d", peer, fd, result, accepted);
}

static void do_netlink(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  static const int protocols[] = {NETLINK_ROUTE, NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_SOCK_DIAG};
  int fd = socket(AF_NETLINK, SOCK_RAW | (a & 1 ? SOCK_CLOEXEC : 0), protocols[b % COUNT(protocols)]);
  struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = c % 4 == 1 ? 1 : 0};
  if (c & 1) bind(fd, (struct sockaddr *)&address, sizeof address);
  int one = 1;
  if (c & 2) setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
  note("netlink -> %d", fd);
}

static void do_raw(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = b & 1 ? socket(AF_INET, SOCK_RAW, a & 1 ? 253 : 254) : socket(AF_PACKET, a & 1 ? SOCK_RAW : SOCK_DGRAM, 0);
  note("raw -> %d", fd);
}

#define SOCKET_OPERATIONS                                                                                              \
  {"socketpair", do_socketpair}, {"unix_bind", do_unix_bind}, {"unix_connect", do_unix_connect}, {"accept", do_accept}, \
    {"send", do_send}, {"receive", do_receive}, {"shutdown", do_shutdown}, {"option", do_option},                      \
    {"inet_bind", do_inet_bind}, {"inet_connect", do_inet_connect}, {"netlink", do_netlink}, {"raw", do_raw}
