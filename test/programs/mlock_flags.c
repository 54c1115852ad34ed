// Locked memory: mlock (all pages come in at once) and mlock2 with MLOCK_ONFAULT (each when touched).
// Seen in VmFlags (lo, lf), in VmLck, and in which pages are resident.
#include "test.h"

enum { SIZE = 16 * 4096 };
static char *locked, *on_fault, *plain;
static char first_locked[64];

static int resident_pages(char *map) {
  unsigned char pages[SIZE / 4096];
  int sum = 0;
  EXPECT(mincore(map, SIZE, pages) == 0, "mincore: %m");
  for (size_t i = 0; i < sizeof pages; i++) sum += pages[i] & 1;
  return sum;
}

static void expect_flags(char *map, const char *name, bool lock, bool fault) {
  char flags[256];
  smaps_field(map, "VmFlags", flags, sizeof flags);
  EXPECT((strstr(flags, "lo") != NULL) == lock, "flags of the %s map are %s", name, flags);
  EXPECT((strstr(flags, "lf") != NULL) == fault, "flags of the %s map are %s", name, flags);
}

static void check(void) {
  char now[64];
  expect_flags(locked, "locked", true, false);
  expect_flags(on_fault, "on-fault", true, true);
  expect_flags(plain, "plain", false, false);
  field_of("/proc/self/status", "VmLck", now, sizeof now);
  EXPECT(strcmp(now, first_locked) == 0, "%s is locked, wanted %s", now, first_locked);
  EXPECT_EQ(resident_pages(locked), SIZE / 4096);
  EXPECT_EQ(resident_pages(on_fault), 1);
  EXPECT(filled(locked, PAGE, 1) && filled(on_fault + 3 * PAGE, PAGE, 2), "content changed");
}

static void unlock(void) { munlock(locked, SIZE); }

int main(void) {
  begin();
  tamper = unlock;
  // Maps of a size of their own, so that the kernel does not make one of two.
  locked = map_anon(SIZE, PROT_READ | PROT_WRITE);
  on_fault = map_anon(SIZE, PROT_READ | PROT_WRITE);
  plain = map_anon(SIZE, PROT_READ | PROT_WRITE);
  MUST(madvise(on_fault, SIZE, MADV_NOHUGEPAGE));
  MUST(mlock(locked, SIZE));
  MUST(mlock2(on_fault, SIZE, MLOCK_ONFAULT));
  fill(locked, PAGE, 1);
  fill(on_fault + 3 * PAGE, PAGE, 2);
  field_of("/proc/self/status", "VmLck", first_locked, sizeof first_locked);
  serve(check);
}
