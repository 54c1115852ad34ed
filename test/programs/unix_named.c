// Unix sockets with names: a path, a relative path, an abstract name, one that the kernel chose, a deleted file, a file whose
// path another one has now, two of which the listener is closed. Names of both ends of connections, owner and mode of the file, and new connections to them.
#include "test.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { PATH, RELATIVE, ABSTRACT, AUTO, DELETED, REPLACED, CLOSED, CLOSED_ABSTRACT, MANY };
static int listeners[MANY], accepted[MANY], clients[MANY];
static struct sockaddr_un names[MANY];
static socklen_t lengths[MANY];
static struct sockaddr_un client_name;
static socklen_t client_length;

static socklen_t path_name(struct sockaddr_un *address, const char *path) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  strcpy(address->sun_path, path);
  return sizeof address->sun_family + strlen(path) + 1;
}

static void expect_name(int (*get)(int, struct sockaddr *, socklen_t *), int fd, int i, const char *which) {
  struct sockaddr_un got = {0};
  socklen_t length = sizeof got;
  EXPECT(get(fd, (void *)&got, &length) == 0, "the name of %s %d: %m", which, i);
  EXPECT(length == lengths[i] && memcmp(&got, &names[i], length) == 0, "name of %s %d is %s (%u bytes)",
         which, i, got.sun_path + (got.sun_path[0] == 0), length);
}

static void exchange(int a, int b, int i) {
  char byte = 0;
  EXPECT(send(a, "x", 1, MSG_NOSIGNAL) == 1 && recv(b, &byte, 1, 0) == 1 && byte == 'x', "connection %d: %m", i);
  EXPECT(send(b, "y", 1, MSG_NOSIGNAL) == 1 && recv(a, &byte, 1, 0) == 1 && byte == 'y', "back on %d: %m", i);
}

static void check(void) {
  for (int i = 0; i < MANY; i++) {
    if (i < CLOSED) expect_name(getsockname, listeners[i], i, "listener");
    expect_name(getsockname, accepted[i], i, "accepted socket");
    expect_name(getpeername, clients[i], i, "peer of client");
    exchange(clients[i], accepted[i], i);
    if (i >= DELETED) continue;
    int fresh = socket(AF_UNIX, SOCK_STREAM, 0);
    EXPECT(connect(fresh, (void *)&names[i], lengths[i]) == 0, "connect to %d: %m", i);
    int taken = accept(listeners[i], NULL, NULL);
    exchange(fresh, taken, i);
    close(fresh);
    close(taken);
  }
  struct sockaddr_un got = {0};
  socklen_t length = sizeof got;
  EXPECT(getpeername(accepted[PATH], (void *)&got, &length) == 0 && length == client_length &&
             memcmp(&got, &client_name, length) == 0,
         "the bound client's name is %s", got.sun_path);
  struct stat st;
  EXPECT(stat(names[PATH].sun_path, &st) == 0 && st.st_mode == (S_IFSOCK | 0640) && st.st_uid == 1234 &&
             st.st_gid == 4321,
         "the socket file: mode %o, owner %u:%u", st.st_mode, st.st_uid, st.st_gid);
  EXPECT(stat("deleted.sock", &st) == -1 && errno == ENOENT, "the deleted socket is there");
  EXPECT(stat("replaced.sock", &st) == 0 && S_ISFIFO(st.st_mode), "replaced.sock is no FIFO");
}

static void spoil(void) { MUST(chmod(names[PATH].sun_path, 0600)); }

int main(void) {
  begin();
  char directory[70];
  MUST(getcwd(directory, sizeof directory) == NULL ? -1 : 0);
  char path[100];
  snprintf(path, sizeof path, "%s/path.sock", directory);
  lengths[PATH] = path_name(&names[PATH], path);
  lengths[RELATIVE] = path_name(&names[RELATIVE], "relative.sock");
  names[ABSTRACT] = (struct sockaddr_un){.sun_family = AF_UNIX};
  lengths[ABSTRACT] = sizeof(sa_family_t) + 1 +
                      snprintf(names[ABSTRACT].sun_path + 1, 100, "reprise-named-%d%c-zero", getpid(), 0);
  names[AUTO] = (struct sockaddr_un){.sun_family = AF_UNIX};
  lengths[AUTO] = sizeof(sa_family_t);
  MUST(mkdir("gone", 0755));
  snprintf(path, sizeof path, "%s/deleted.sock", directory);
  lengths[DELETED] = path_name(&names[DELETED], path);
  lengths[REPLACED] = path_name(&names[REPLACED], "replaced.sock");
  lengths[CLOSED] = path_name(&names[CLOSED], "closed.sock");
  names[CLOSED_ABSTRACT] = (struct sockaddr_un){.sun_family = AF_UNIX};
  lengths[CLOSED_ABSTRACT] = sizeof(sa_family_t) + 1 +
                             snprintf(names[CLOSED_ABSTRACT].sun_path + 1, 100, "reprise-closed-%d", getpid());
  for (int i = 0; i < MANY; i++) {
    listeners[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listeners[i], (void *)&names[i], lengths[i]));
    lengths[i] = sizeof names[i];
    MUST(getsockname(listeners[i], (void *)&names[i], &lengths[i]));
    MUST(listen(listeners[i], 4));
    clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    if (i == PATH) {
      client_length = path_name(&client_name, "client.sock");
      MUST(bind(clients[i], (void *)&client_name, client_length));
    }
    MUST(connect(clients[i], (void *)&names[i], lengths[i]));
    accepted[i] = MUST(accept(listeners[i], NULL, NULL));
    if (i >= CLOSED) close(listeners[i]);
  }
  MUST(rmdir("gone"));
  MUST(unlink("deleted.sock"));
  MUST(unlink("replaced.sock"));
  MUST(mkfifo("replaced.sock", 0600));
  MUST(chown(names[PATH].sun_path, 1234, 4321));
  MUST(chmod(names[PATH].sun_path, 0640));
  tamper = spoil;
  serve(check);
}
