// Listening unix sockets: connections that nobody has accepted yet, in their order; a backlog that is full; an accepted
// connection with data whose client has gone; a client without its listener.
#include "test.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { WAITING = 3 };
static int listener, packets, clients[WAITING], packet_client, left, orphan[2];
static struct sockaddr_un name = {.sun_family = AF_UNIX}, packet_name = {.sun_family = AF_UNIX};
static socklen_t length, packet_length;
static bool asked;

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s", got, text, wanted);
}

static int connect_to(struct sockaddr_un *address, socklen_t size, int type) {
  int fd = MUST(socket(AF_UNIX, type | SOCK_NONBLOCK, 0));
  MUST(connect(fd, (void *)address, size));
  return fd;
}

static void check(void) {
  int late = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  EXPECT(connect(late, (void *)&name, length) == -1 && errno == EAGAIN, "the backlog has room: %m");
  close(late);
  for (int i = 0; i < WAITING; i++) {
    // The queue's order: who is accepted now is the i-th client.
    int taken = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    EXPECT(taken >= 0, "no connection %d to accept: %m", i);
    EXPECT(send(taken, &(char){'a' + i}, 1, MSG_NOSIGNAL) == 1, "send to client %d: %m", i);
    expect_text(clients[i], (char[]){'a' + i, 0});
    EXPECT(send(clients[i], "hello", 5, MSG_NOSIGNAL) == 5, "send of client %d: %m", i);
    expect_text(taken, "hello");
    close(taken);
    close(clients[i]);
  }
  for (int i = 0; i < WAITING; i++) clients[i] = connect_to(&name, length, SOCK_STREAM);
  int taken = accept4(packets, NULL, NULL, SOCK_NONBLOCK);
  EXPECT(taken >= 0, "no packet connection: %m");
  close(taken);
  char byte;
  EXPECT(recv(packet_client, &byte, 1, MSG_DONTWAIT) == 0, "no end after the close");
  close(packet_client);
  packet_client = connect_to(&packet_name, packet_length, SOCK_SEQPACKET);
  if (!asked) expect_text(left, "left behind");
  asked = true;
  EXPECT(recv(left, &byte, 1, MSG_DONTWAIT) == 0, "no end of the closed connection");
  EXPECT(send(orphan[0], "z", 1, MSG_NOSIGNAL) == 1, "the connection without listener: %m");
  expect_text(orphan[1], "z");
}

static void drop(void) { MUST(accept(listener, NULL, NULL)); }

static void abstract(struct sockaddr_un *address, socklen_t *size, const char *what) {
  *size = sizeof(sa_family_t) + 1 + snprintf(address->sun_path + 1, 100, "reprise-%s-%d", what, getpid());
}

static int listen_at(struct sockaddr_un *address, socklen_t size, int type, int backlog) {
  int fd = MUST(socket(AF_UNIX, type, 0));
  MUST(bind(fd, (void *)address, size));
  MUST(listen(fd, backlog));
  return fd;
}

int main(void) {
  begin();
  abstract(&name, &length, "listen");
  abstract(&packet_name, &packet_length, "packets");
  struct sockaddr_un gone = {.sun_family = AF_UNIX};
  socklen_t gone_length;
  abstract(&gone, &gone_length, "gone");
  int temporary = listen_at(&gone, gone_length, SOCK_STREAM, 1);
  orphan[0] = connect_to(&gone, gone_length, SOCK_STREAM);
  orphan[1] = MUST(accept(temporary, NULL, NULL));
  close(temporary);
  // One more than the backlog may wait.
  listener = listen_at(&name, length, SOCK_STREAM, WAITING - 1);
  int client = connect_to(&name, length, SOCK_STREAM);
  left = MUST(accept(listener, NULL, NULL));
  MUST(send(client, "left behind", 11, 0));
  close(client);
  packets = listen_at(&packet_name, packet_length, SOCK_SEQPACKET, 5);
  // Made in the other order: their inodes do not tell who came first.
  for (int i = WAITING - 1; i >= 0; i--) clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
  for (int i = 0; i < WAITING; i++) MUST(connect(clients[i], (void *)&name, length));
  packet_client = connect_to(&packet_name, packet_length, SOCK_SEQPACKET);
  tamper = drop;
  serve(check);
}
