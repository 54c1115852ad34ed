// Datagram unix sockets: one with a name and several that are connected to it, a chain, a pair of which one half lets go,
// one that is connected to itself; empty datagrams among others, long ones, and as many as the queue takes.
#include "test.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { LONG = 300000, FULL = 11 };
static int server, clients[2], chain[3], half[2], self, pair[2], full;
static struct sockaddr_un full_name;
static socklen_t full_length;
static char *large;
static bool asked;

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s: %m", got, text, wanted);
}

static void put(int fd, const char *text) {
  EXPECT(send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)strlen(text), "send of %s: %m", text);
}

static int bound(const char *what, struct sockaddr_un *address, socklen_t *length) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  *length = sizeof(sa_family_t) + 1 + snprintf(address->sun_path + 1, 100, "reprise-%s-%d", what, getpid());
  int fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  MUST(bind(fd, (void *)address, *length));
  return fd;
}

static void queue(void) {
  put(clients[0], "first");
  put(clients[1], "");
  put(clients[0], "");
  put(clients[1], "last");
  put(chain[1], "to the end");
  put(half[0], "half");
  put(self, "to myself");
  put(pair[0], "");
  EXPECT(send(pair[0], large, LONG, MSG_DONTWAIT) == LONG, "send of a long one: %m");
  put(pair[0], "");
  int sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  for (int i = 0; i < FULL; i++)
    EXPECT(sendto(sender, &i, sizeof i, MSG_DONTWAIT, (void *)&full_name, full_length) == sizeof i, "datagram %d: %m", i);
  EXPECT(sendto(sender, "", 1, MSG_DONTWAIT, (void *)&full_name, full_length) == -1 && errno == EAGAIN, "not full: %m");
  close(sender);
}

static void check(void) {
  expect_text(server, "first");
  expect_text(server, "");
  expect_text(server, "");
  expect_text(server, "last");
  if (!asked) expect_text(chain[1], "to the middle");
  asked = true;
  EXPECT(send(chain[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPERM, "the middle of the chain hears its start: %m");
  expect_text(chain[2], "to the end");
  expect_text(half[1], "half");
  EXPECT(send(half[1], "x", 1, 0) == -1 && errno == ENOTCONN, "the half that let go is connected: %m");
  expect_text(self, "to myself");
  expect_text(pair[1], "");
  char *text = map_anon(LONG + PAGE, PROT_READ | PROT_WRITE);
  EXPECT(recv(pair[1], text, LONG + PAGE, MSG_DONTWAIT) == LONG && memcmp(text, large, LONG) == 0, "the long one: %m");
  munmap(text, LONG + PAGE);
  expect_text(pair[1], "");
  for (int i = 0; i < FULL; i++) {
    int number = -1;
    EXPECT(recv(full, &number, sizeof number, MSG_DONTWAIT) == sizeof number && number == i, "datagram %d is %d", i, number);
  }
  int all[] = {server, chain[1], chain[2], half[1], self, pair[1], full};
  for (size_t i = 0; i < COUNT(all); i++) {
    char byte;
    EXPECT(recv(all[i], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "queue %zu has more", i);
  }
  queue();
}

static void lose(void) { expect_text(server, "first"); }

int main(void) {
  begin();
  large = map_anon(LONG + PAGE, PROT_READ | PROT_WRITE);
  fill(large, LONG, 7);
  struct sockaddr_un name, middle, end, own;
  socklen_t length, middle_length, end_length, own_length;
  server = bound("server", &name, &length);
  for (int i = 0; i < 2; i++) {
    clients[i] = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(connect(clients[i], (void *)&name, length));
  }
  chain[2] = bound("end", &end, &end_length);
  chain[1] = bound("middle", &middle, &middle_length);
  chain[0] = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  MUST(connect(chain[0], (void *)&middle, middle_length));
  put(chain[0], "to the middle");
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, half));
  MUST(connect(half[1], &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
  self = bound("self", &own, &own_length);
  MUST(connect(self, (void *)&own, own_length));
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  MUST(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &(int){2 * LONG}, sizeof(int)));
  full = bound("full", &full_name, &full_length);
  // The middle one hears its peer alone from now on: it is connected last, and its queue is filled by who was there before.
  MUST(connect(chain[1], (void *)&end, end_length));
  shutdown(clients[0], SHUT_RD);
  queue();
  tamper = lose;
  serve(check);
}
