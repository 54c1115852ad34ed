// Private anonymous memory: each protection, content behind PROT_NONE, guard pages made by mprotect and
// by MADV_GUARD_INSTALL (Linux 6.13), pages never touched, MAP_NORESERVE, read-only after a write.
#include "test.h"
#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static const struct {
  int protection;
  const char *text;
} kinds[] = {
    {PROT_NONE, "---p"},
    {PROT_READ, "r--p"},
    {PROT_READ | PROT_WRITE, "rw-p"},
    {PROT_READ | PROT_EXEC, "r-xp"},
    {PROT_EXEC, "--xp"},
    {PROT_READ | PROT_WRITE | PROT_EXEC, "rwxp"},
};
static char *maps[COUNT(kinds)], *guarded, *light_guarded, *untouched, *sparse, *single;
static bool has_light_guards;
static sigjmp_buf after_fault;

static void on_fault(int signal) {
  (void)signal;
  siglongjmp(after_fault, 1);
}

static bool faults(volatile char *address) {
  if (sigsetjmp(after_fault, 1) != 0) return true;
  (void)*address;
  return false;
}

static void check(void) {
  char permissions[5];
  for (size_t i = 0; i < COUNT(kinds); i++) {
    maps_permissions(maps[i], permissions);
    EXPECT(strcmp(permissions, kinds[i].text) == 0, "map %zu is %s", i, permissions);
    if ((kinds[i].protection & PROT_READ) == 0) {
      EXPECT((kinds[i].protection != PROT_NONE) || faults(maps[i]), "map %zu can be read", i);
      mprotect(maps[i], 4 * PAGE, PROT_READ);
    }
    EXPECT(filled(maps[i], 4 * PAGE, i), "content of map %zu changed", i);
    mprotect(maps[i], 4 * PAGE, kinds[i].protection);
  }
  EXPECT(faults(guarded + PAGE) && faults(guarded + 2 * PAGE), "the guard pages can be read");
  EXPECT(filled(guarded, PAGE, 50) && filled(guarded + 3 * PAGE, PAGE, 51), "around guards");
  if (has_light_guards) {
    EXPECT(faults(light_guarded + PAGE), "the light guard page can be read");
    EXPECT(filled(light_guarded, PAGE, 52), "content before the light guard changed");
    EXPECT(filled(light_guarded + 2 * PAGE, PAGE, 53), "content after the light guard changed");
  }
  EXPECT(all_zero(untouched, 8 * PAGE), "pages never touched are not zero");
  for (size_t i = 0; i < 64 * MIB; i += 8 * MIB)
    EXPECT(filled(sparse + i, PAGE, i) && all_zero(sparse + i + PAGE, PAGE), "sparse at %zx", i);
  EXPECT(filled(single, PAGE, 54), "the single page changed");
  *(volatile char *)single = *single; // it can be written
}

static void spoil(void) { single[17] ^= 1; }

int main(void) {
  begin();
  tamper = spoil;
  signal(SIGSEGV, on_fault);
  for (size_t i = 0; i < COUNT(kinds); i++) {
    maps[i] = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
    fill(maps[i], 4 * PAGE, i);
    MUST(mprotect(maps[i], 4 * PAGE, kinds[i].protection));
  }
  guarded = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  fill(guarded, PAGE, 50);
  fill(guarded + 3 * PAGE, PAGE, 51);
  MUST(mprotect(guarded + PAGE, 2 * PAGE, PROT_NONE));
  light_guarded = map_anon(3 * PAGE, PROT_READ | PROT_WRITE);
  fill(light_guarded, PAGE, 52);
  fill(light_guarded + 2 * PAGE, PAGE, 53);
  // NO_LIGHT_GUARDS=1 leaves them out, for engines and kernels that do not know them.
  has_light_guards = getenv("NO_LIGHT_GUARDS") == NULL &&
                     madvise(light_guarded + PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
  untouched = map_anon(8 * PAGE, PROT_READ | PROT_WRITE);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  sparse = (char *)MUST(mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, flags, -1, 0));
  for (size_t i = 0; i < 64 * MIB; i += 8 * MIB) fill(sparse + i, PAGE, i);
  single = map_anon(PAGE, PROT_READ | PROT_WRITE);
  fill(single, PAGE, 54);
  serve(check);
}
