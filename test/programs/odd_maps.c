// Maps that cannot be made again in the plain way: locked ones whose pages cannot all be brought in (no access, behind the end of the
// file), reservations larger than the memory of the machine, guard pages in shared memory and in maps of a file, a file
// that was cut off under its maps, both ways of mapping /dev/zero, memory that may be dropped, and the vsyscall page.
#include "test.h"
#include <setjmp.h>
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { PAGES = 4 };
static const size_t HUGE_RESERVATION = 1024 * 1024 * MIB; // 1 TiB
static char *locked, *locked_empty, *locked_short, *reserved, *inside, *shared, *private_map, *cut, *cut_shared;
static char *zero_private, *zero_shared;
static bool guards;
static void *droppable; // MAP_FAILED before Linux 6.11
static bool has_vsyscall;

#define VSYSCALL_TIME ((time_t(*)(time_t *))0xffffffffff600400UL)

static sigjmp_buf back;

static void fault(int signal) { siglongjmp(back, signal); }

// The signal that a read gives, or 0.
static int reads(const volatile char *address) {
  int signal = sigsetjmp(back, 1);
  if (signal == 0) (void)*address;
  return signal;
}

static void expect_flag(const char *what, const char *address, const char *flag) {
  char flags[256];
  smaps_field(address, "VmFlags", flags, sizeof flags);
  EXPECT(strstr(flags, flag) != NULL, "%s has the flags %s", what, flags);
}

static void expect_pages(const char *what, const char *start) {
  EXPECT(filled(start, PAGE, 1) && filled(start + 2 * PAGE, PAGE, 3), "%s changed", what);
  if (guards) EXPECT_EQ(reads(start + PAGE), SIGSEGV);
}

static bool sees_vsyscall(void) {
  char line[512];
  bool seen = false;
  FILE *file = fopen("/proc/self/maps", "re");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) seen |= strstr(line, "[vsyscall]") != NULL;
  if (file != NULL) fclose(file);
  return seen;
}

static void check(void) {
  char permissions[5];
  expect_flag("the locked map without access", locked, "lo");
  expect_flag("the locked map that was never touched", locked_empty, "lo");
  expect_flag("the locked map of a short file", locked_short, "lo");
  maps_permissions(locked, permissions);
  EXPECT(strcmp(permissions, "---p") == 0, "the locked map is %s", permissions);
  mprotect(locked, PAGES * PAGE, PROT_READ);
  EXPECT(filled(locked, PAGES * PAGE, 5), "the locked map changed");
  mprotect(locked, PAGES * PAGE, PROT_NONE);
  maps_permissions(reserved, permissions);
  EXPECT(strcmp(permissions, "---p") == 0, "the reservation is %s", permissions);
  EXPECT(filled(inside, PAGE, 6), "the page in the reservation changed");
  expect_pages("shared memory", shared);
  expect_pages("the private map", private_map);
  EXPECT(filled(cut, PAGE, 7), "the private page before the cut changed");
  EXPECT(filled(cut_shared, PAGE, 8), "the shared page before the cut changed");
  EXPECT_EQ(reads(cut + 2 * PAGE), SIGBUS);
  EXPECT_EQ(reads(cut_shared + 2 * PAGE), SIGBUS);
  if (droppable != MAP_FAILED) expect_flag("memory that may be dropped", droppable, "dp");
  EXPECT(sees_vsyscall() == has_vsyscall, "the vsyscall page is %d", !has_vsyscall);
  if (has_vsyscall) EXPECT(VSYSCALL_TIME(NULL) - time(NULL) <= 0, "time(): it is %ld", (long)VSYSCALL_TIME(NULL));
  EXPECT(filled(zero_private, PAGES * PAGE, 9), "private /dev/zero changed");
  EXPECT(filled(zero_shared, PAGES * PAGE, 10), "shared /dev/zero changed");
}

static void *map(int flags, int fd) {
  return (void *)MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0));
}

static int file_of(const char *name, size_t size) {
  int fd = (int)MUST(open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  MUST(ftruncate(fd, (off_t)size));
  return fd;
}

static void fill_guarded(char *start) {
  fill(start, PAGE, 1);
  fill(start + 2 * PAGE, PAGE, 3);
  // Linux 6.15 knows them in maps of files, too.
  guards = madvise(start + PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
}

static void spoil(void) { zero_shared[3] ^= 1; }

int main(void) {
  begin();
  tamper = spoil;
  signal(SIGSEGV, fault);
  signal(SIGBUS, fault);
  locked = map_anon(PAGES * PAGE, PROT_READ | PROT_WRITE);
  fill(locked, PAGES * PAGE, 5);
  MUST(mlock(locked, PAGES * PAGE));
  MUST(mprotect(locked, PAGES * PAGE, PROT_NONE));
  locked_empty = map_anon(PAGES * PAGE, PROT_NONE);
  mlock(locked_empty, PAGES * PAGE); // ENOMEM, and locked
  int fd = file_of("short", PAGE);
  locked_short = map(MAP_SHARED, fd);
  mlock(locked_short, PAGES * PAGE);
  reserved = map_anon(HUGE_RESERVATION, PROT_NONE);
  inside = reserved + HUGE_RESERVATION / 2;
  MUST(mprotect(inside, PAGE, PROT_READ | PROT_WRITE));
  fill(inside, PAGE, 6);
  shared = map(MAP_SHARED | MAP_ANONYMOUS, -1);
  fill_guarded(shared);
  private_map = map(MAP_PRIVATE, file_of("private", PAGES * PAGE));
  fill_guarded(private_map);
  fd = file_of("cut", PAGES * PAGE);
  cut_shared = map(MAP_SHARED, fd);
  fill(cut_shared, PAGES * PAGE, 8);
  cut = map(MAP_PRIVATE, fd);
  fill(cut, PAGES * PAGE, 7);
  MUST(ftruncate(fd, PAGE + 100));
  droppable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, 8 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1, 0);
  has_vsyscall = sees_vsyscall();
  fd = (int)MUST(open("/dev/zero", O_RDWR | O_CLOEXEC));
  zero_private = map(MAP_PRIVATE, fd);
  fill(zero_private, PAGES * PAGE, 9);
  zero_shared = map(MAP_SHARED, fd);
  fill(zero_shared, PAGES * PAGE, 10);
  serve(check);
}
