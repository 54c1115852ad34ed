// Users of sockets: what SO_PEERCRED tells of the peer (a pair, a listener and its client, a client that is not accepted yet), and
// whose the socket itself is. Needs root.
#include "test.h"
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PAIR_USER = 1111, LISTENER = 2222, CLIENT = 3333, WAITING = 4444, GROUP = 55 };
static int pair[2], listener, client, accepted, waiting, inet;
static struct sockaddr_un name = {.sun_family = AF_UNIX};
static socklen_t length;

static void become(uid_t user) {
  MUST(setresuid(-1, 0, -1));
  MUST(setresgid(-1, user == 0 ? 0 : GROUP, -1));
  MUST(setresuid(-1, user, -1));
}

static void expect_peer(int fd, uid_t user) {
  struct ucred peer = {0};
  socklen_t size = sizeof peer;
  EXPECT_EQ(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size), 0);
  EXPECT_EQ(peer.uid, user);
  EXPECT_EQ(peer.gid, GROUP);
}

static void expect_owner(int fd, uid_t user) {
  struct stat status;
  EXPECT_EQ(fstat(fd, &status), 0);
  EXPECT_EQ(status.st_uid, user);
}

static int connect_as(uid_t user) {
  become(user);
  int fd = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  MUST(connect(fd, (void *)&name, length));
  become(0);
  return fd;
}

static void check(void) {
  for (int i = 0; i < 2; i++) {
    expect_peer(pair[i], PAIR_USER);
    expect_owner(pair[i], PAIR_USER);
  }
  expect_owner(listener, LISTENER);
  expect_owner(client, CLIENT);
  expect_owner(accepted, 0);
  expect_owner(inet, CLIENT);
  expect_peer(client, LISTENER);
  expect_peer(accepted, CLIENT);
  expect_peer(waiting, LISTENER);
  int taken = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  EXPECT(taken >= 0, "nobody waits: %m");
  expect_peer(taken, WAITING);
  close(taken);
  close(waiting);
  waiting = connect_as(WAITING);
}

static void spoil(void) {
  close(client);
  client = connect_as(CLIENT);
  close(accepted);
  accepted = connect_as(WAITING);
}

int main(void) {
  begin();
  become(PAIR_USER);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  become(LISTENER);
  listener = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                       (size_t)snprintf(name.sun_path + 1, 50, "reprise-peers-%d", getpid()));
  MUST(bind(listener, (void *)&name, length));
  MUST(listen(listener, 5));
  client = connect_as(CLIENT);
  accepted = (int)MUST(accept(listener, NULL, NULL));
  waiting = connect_as(WAITING);
  become(CLIENT);
  inet = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  become(0);
  MUST(prctl(PR_SET_DUMPABLE, 1));
  tamper = spoil;
  serve(check);
}
