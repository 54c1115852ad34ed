// Internet sockets on the loopback interface, for the programs that are about them.
#pragma once
#include "test.h"
#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef union {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
} address;

// 127.0.0.1, ::1, or with `mapped` ::ffff:127.0.0.1.
SHARED_HELPER address loopback(int family, bool mapped, int port) {
  address a = {0};
  a.any.sa_family = (sa_family_t)family;
  if (family == AF_INET) {
    a.v4.sin_port = htons((uint16_t)port);
    a.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  } else {
    a.v6.sin6_port = htons((uint16_t)port);
    MUST(inet_pton(AF_INET6, mapped ? "::ffff:127.0.0.1" : "::1", &a.v6.sin6_addr) == 1 ? 0 : -1);
  }
  return a;
}

SHARED_HELPER socklen_t size_of(const address *a) {
  return a->any.sa_family == AF_INET ? sizeof a->v4 : sizeof a->v6;
}

SHARED_HELPER int port_of(int fd) {
  address a;
  socklen_t size = sizeof a;
  MUST(getsockname(fd, &a.any, &size));
  return ntohs(a.v4.sin_port); // at the same place in both
}

SHARED_HELPER int remote_port_of(int fd) {
  address a;
  socklen_t size = sizeof a;
  return getpeername(fd, &a.any, &size) == 0 ? ntohs(a.v4.sin_port) : -1;
}

SHARED_HELPER void set_option(int fd, int level, int name, int value) {
  MUST(setsockopt(fd, level, name, &value, sizeof value));
}

SHARED_HELPER int get_option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return getsockopt(fd, level, name, &value, &size) == 0 ? value : -errno;
}

SHARED_HELPER int tcp_state(int fd) {
  struct tcp_info info = {0};
  socklen_t size = sizeof info;
  MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size));
  return info.tcpi_state;
}

SHARED_HELPER int listen_at(int family, bool mapped, int backlog) {
  int fd = (int)MUST(socket(family, SOCK_STREAM, 0));
  address a = loopback(family, mapped, 0);
  MUST(bind(fd, &a.any, size_of(&a)));
  MUST(listen(fd, backlog));
  return fd;
}

// Both ends of a connection: [0] connected, [1] accepted.
SHARED_HELPER void connect_pair(int listener, int family, bool mapped, int pair[2]) {
  pair[0] = (int)MUST(socket(family, SOCK_STREAM, 0));
  address a = loopback(family, mapped, port_of(listener));
  MUST(connect(pair[0], &a.any, size_of(&a)));
  pair[1] = (int)MUST(accept(listener, NULL, NULL));
}

SHARED_HELPER void put_text(int fd, const char *text) {
  EXPECT(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "send %s: %m", text);
}

// Waits for exactly this text.
SHARED_HELPER void expect_text(int fd, const char *wanted) {
  char text[256] = "";
  size_t length = strlen(wanted), got = 0;
  struct pollfd ready = {.fd = fd, .events = POLLIN};
  while (got < length && poll(&ready, 1, 5000) == 1) {
    ssize_t more = recv(fd, text + got, length - got, MSG_DONTWAIT);
    if (more <= 0) break;
    got += (size_t)more;
  }
  EXPECT(strcmp(text, wanted) == 0, "received %zu: %s, wanted %s", got, text, wanted);
}
