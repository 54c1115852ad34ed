// N descriptors (the argument; 200 without one) on regular files: every second is a duplicate of the one
// before it and shares its offset. Sixteen files, so that many descriptors have one file each on its own.
#include "test.h"
#include <sys/resource.h>

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

static void close_one(void) { close(FIRST + total / 2); }

int main(int argc, char **argv) {
  begin();
  tamper = close_one;
  total = argc > 1 ? atoi(argv[1]) : 200;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
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
