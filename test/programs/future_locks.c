// Memory that is mapped later is locked (mlockall with MCL_FUTURE): at once in this process, when touched (MCL_ONFAULT) in one child, and
// not at all in another.
#include "test.h"

static pid_t on_fault, free_child;

static void expect_new_map(bool lock, bool fault) {
  char flags[256];
  char *map = map_anon(PAGE, PROT_READ | PROT_WRITE);
  smaps_field(map, "VmFlags", flags, sizeof flags);
  bool isLocked = strstr(flags, "lo") != NULL, isLate = strstr(flags, "lf") != NULL;
  EXPECT(isLocked == lock && isLate == fault, "a new map has %s", flags);
  munmap(map, PAGE);
}

static void check(void) {
  expect_new_map(true, false);
  ask_child(on_fault);
  ask_child(free_child);
}

static void lock_on_fault(void) { MUST(mlockall(MCL_FUTURE | MCL_ONFAULT)); }
static void check_on_fault(void) { expect_new_map(true, true); }
static void check_free(void) { expect_new_map(false, false); }
static void unlock(void) { munlockall(); }

int main(void) {
  begin();
  on_fault = start_child(lock_on_fault, check_on_fault);
  free_child = start_child(NULL, check_free);
  MUST(mlockall(MCL_FUTURE));
  tamper = unlock;
  serve(check);
}
