// N descriptors (the argument; 200 without one) on regular files: every second is a duplicate of the one
// before it and shares its offset. Sixteen files, so that many descriptors have one file each on its own.
// With "sockets" as second argument: pairs of unix sockets, and UDP sockets of which every third has a priority of its own.
#include "test.h"
#include <sys/resource.h>
#include <sys/socket.h>

enum { FILES = 16, FIRST = 20 };
static int total;

static off_t wanted_offset(int i) { return (i & ~1) * 3; }

static void check(void) {
  for (int i = 0; i < total; i++) {
    char byte, wanted = (char)('a' + i / 2 % FILES);
    int fd = FIRST + i;
    EXPECT(lseek(fd, 0, SEEK_CUR) == wanted_offset(i), "descriptor %d is at %ld, wanted %ld", fd,
           (long)lseek(fd, 0, SEEK_CUR), (long)wanted_offset(i));
    EXPECT(pread(fd, &byte, 1, 0) == 1 && byte == wanted, "descriptor %d has another file", fd);
    EXPECT(fcntl(fd, F_GETFD) == (i % 5 == 0 ? FD_CLOEXEC : 0), "descriptor %d: FD_CLOEXEC", fd);
    if (i % 2 == 0) continue;
    lseek(fd, 1, SEEK_CUR);
    EXPECT(lseek(fd - 1, 0, SEEK_CUR) == wanted_offset(i) + 1, "descriptor %d shares nothing", fd);
    lseek(fd, -1, SEEK_CUR);
  }
  EXPECT(fcntl(FIRST + total, F_GETFD) == -1, "there is a descriptor too many");
}

static int wanted_priority(int i) { return i % 3 == 0 ? i % 7 : 0; }

static int priority(int fd) {
  int value = -1;
  socklen_t length = sizeof value;
  return getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &value, &length) == 0 ? value : -1;
}

static void check_sockets(void) {
  for (int i = 0; i < total; i++) {
    int fd = FIRST + i, other = i % 2 == 0 ? fd + 1 : fd - 1;
    char sent = (char)i, got;
    if (i % 4 > 1) {
      EXPECT(priority(fd) == wanted_priority(i), "socket %d has priority %d, wanted %d", fd, priority(fd),
             wanted_priority(i));
      continue;
    }
    EXPECT(send(fd, &sent, 1, 0) == 1 && recv(other, &got, 1, MSG_DONTWAIT) == 1 && got == sent,
           "socket %d is not connected to %d", fd, other);
  }
  EXPECT(fcntl(FIRST + total, F_GETFD) == -1, "there is a descriptor too many");
}

static void make_sockets(void) {
  for (int i = 0; i < total; i += 2) {
    int ends[2];
    if (i % 4 == 0) MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    else for (int k = 0; k < 2; k++) {
      int value = wanted_priority(i + k);
      ends[k] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
      MUST(setsockopt(ends[k], SOL_SOCKET, SO_PRIORITY, &value, sizeof value));
    }
    for (int k = 0; k < 2; k++) {
      MUST(dup3(ends[k], FIRST + total + k, 0));
      close(ends[k]);
    }
    for (int k = 0; k < 2; k++) {
      MUST(dup3(FIRST + total + k, FIRST + i + k, 0));
      close(FIRST + total + k);
    }
  }
}

static void close_one(void) { close(FIRST + total / 2); }

int main(int argc, char **argv) {
  begin();
  tamper = close_one;
  total = argc > 1 ? atoi(argv[1]) : 200;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (argc > 2 && strcmp(argv[2], "sockets") == 0) {
    make_sockets();
    serve(check_sockets);
  }
  for (int i = 0; i < total; i++) {
    char name[32], letter = (char)('a' + i / 2 % FILES);
    int fd = FIRST + i, file;
    snprintf(name, sizeof name, "file-%c", letter);
    if (i % 2 == 1) file = MUST(dup(fd - 1));
    else {
      file = MUST(open(name, O_RDWR | O_CREAT, 0600));
      MUST(pwrite(file, &letter, 1, 0));
      MUST(lseek(file, wanted_offset(i), SEEK_SET));
    }
    MUST(dup3(file, fd, i % 5 == 0 ? O_CLOEXEC : 0));
    close(file);
  }
  serve(check);
}
