// Character devices of memory: /dev/null, zero, full, urandom, with their modes and flags. There is no
// controlling terminal, before and after.
#include "test.h"
#include <sys/sysmacros.h>

static const struct {
  const char *path;
  int flags;
  unsigned minor;
} devices[] = {
    {"/dev/null", O_RDWR, 3},
    {"/dev/null", O_WRONLY | O_APPEND, 3},
    {"/dev/zero", O_RDONLY | O_NONBLOCK, 5},
    {"/dev/full", O_RDWR, 7},
    {"/dev/urandom", O_RDONLY, 9},
};
enum { NULL_BOTH, NULL_APPEND, ZERO, FULL, RANDOM };
static int fds[COUNT(devices)];
static char *zero_map;

static void check(void) {
  char text[256], other[256];
  for (size_t i = 0; i < COUNT(devices); i++) {
    struct stat status;
    EXPECT(fstat(fds[i], &status) == 0 && S_ISCHR(status.st_mode), "%s: no device", devices[i].path);
    EXPECT(status.st_rdev == makedev(1, devices[i].minor), "%s: another device", devices[i].path);
    int mask = O_ACCMODE | O_APPEND | O_NONBLOCK, flags = fcntl(fds[i], F_GETFL);
    EXPECT((flags & mask) == devices[i].flags, "%s: flags %o", devices[i].path, flags);
  }
  EXPECT(read(fds[NULL_BOTH], text, 1) == 0 && write(fds[NULL_APPEND], "x", 1) == 1, "/dev/null");
  EXPECT(read(fds[ZERO], text, sizeof text) == sizeof text && all_zero(text, sizeof text), "/dev/zero");
  EXPECT(write(fds[FULL], "x", 1) == -1 && errno == ENOSPC, "/dev/full");
  EXPECT(read(fds[RANDOM], text, sizeof text) == sizeof text, "/dev/urandom");
  EXPECT(read(fds[RANDOM], other, sizeof other) == sizeof other, "/dev/urandom");
  EXPECT(memcmp(text, other, sizeof text) != 0, "/dev/urandom repeats itself");
  EXPECT(filled(zero_map, PAGE, 3) && all_zero(zero_map + PAGE, PAGE), "the map of /dev/zero changed");
  EXPECT(open("/dev/tty", O_RDWR | O_NOCTTY) == -1, "there is a controlling terminal");
}

static void swap(void) { dup2(fds[NULL_BOTH], fds[ZERO]); }

int main(void) {
  begin();
  tamper = swap;
  for (size_t i = 0; i < COUNT(devices); i++) fds[i] = MUST(open(devices[i].path, devices[i].flags));
  int zero = MUST(open("/dev/zero", O_RDWR));
  zero_map = (char *)MUST(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
  close(zero);
  fill(zero_map, PAGE, 3);
  serve(check);
}
