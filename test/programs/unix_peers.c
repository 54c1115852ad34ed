// Who is on the other side: what SO_PEERCRED tells of the peer (a pair, a listener and its client, a client that is not accepted
// yet), whose the socket itself is, and the senders of datagrams that wait to be read, one of them gone. Needs root.
#include "test.h"
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PAIR_USER = 1111, LISTENER = 2222, CLIENT = 3333, WAITING = 4444, GROUP = 55 };
static int pair[2], listener, client, accepted, waiting, inet, receiver, sender;
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

// An abstract name, its own for each process.
static socklen_t set_name(struct sockaddr_un *address, const char *what) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  int size = snprintf(address->sun_path + 1, 50, "reprise-%s-%d", what, getpid());
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size);
}

static int datagram_socket(const char *what) {
  struct sockaddr_un address;
  socklen_t size = set_name(&address, what);
  int fd = (int)MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
  MUST(bind(fd, (void *)&address, size));
  return fd;
}

static void send_datagrams(void) {
  struct sockaddr_un to;
  socklen_t size = set_name(&to, "receiver");
  EXPECT_EQ(sendto(sender, "stays", 5, MSG_DONTWAIT, (void *)&to, size), 5);
  int gone = datagram_socket("gone");
  EXPECT_EQ(sendto(gone, "goes", 4, MSG_DONTWAIT, (void *)&to, size), 4);
  close(gone);
}

static void expect_sender(const char *what, const char *wanted) {
  struct sockaddr_un expected, from = {0};
  socklen_t length_wanted = set_name(&expected, what), size = sizeof from;
  char text[16] = "";
  ssize_t got = recvfrom(receiver, text, sizeof text - 1, MSG_DONTWAIT, (void *)&from, &size);
  EXPECT(got > 0 && strcmp(text, wanted) == 0, "received %zd: %s, wanted %s", got, text, wanted);
  EXPECT(size == length_wanted && memcmp(&from, &expected, size) == 0, "%s comes from %.*s", wanted,
         size < 3 ? 0 : (int)size - 3, from.sun_path + 1);
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
  expect_sender("sender", "stays");
  expect_sender("gone", "goes");
  send_datagrams();
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
  receiver = datagram_socket("receiver");
  sender = datagram_socket("sender");
  send_datagrams();
  become(CLIENT);
  inet = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  become(0);
  MUST(prctl(PR_SET_DUMPABLE, 1));
  tamper = spoil;
  serve(check);
}
