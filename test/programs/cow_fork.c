// Memory that parent and children share by fork, copy on write: each has the content it should have,
// also where one of them has written since. The program prints its share (`Pss`) before and at each check; keeping
// the sharing is a matter of thrift, and is not demanded.
#include "test.h"

enum { CHILDREN = 3 };
static const size_t size = 16 * MIB;
static char *memory;
static pid_t children[CHILDREN];
static int own = -1;  // index of this child, or -1 in the parent

static void print_pss(const char *when) {
  char pss[64];
  smaps_field(memory, "Pss", pss, sizeof pss);
  dprintf(1, "Pss %s: %s\n", when, pss);
}

// Process i has written megabyte 4 + i; all else is as the parent made it before the forks.
static void check_content(void) {
  for (size_t i = 0; i < size / MIB; i++) {
    uint64_t seed = i == (size_t)(4 + own) ? 100 + i : i;
    EXPECT(filled(memory + i * MIB, MIB, seed), "process %d: megabyte %zu changed", own, i);
  }
}

static void child_setup(void) {
  for (own = 0; children[own] != 0;) own++;
  fill(memory + (4 + own) * MIB, MIB, 104 + own);
}

static void check(void) {
  print_pss("at the check");
  check_content();
  for (int i = 0; i < CHILDREN; i++) ask_child(children[i]);
  // A write of ours still reaches nobody else.
  fill(memory + 3 * MIB, MIB, 103);
  for (int i = 0; i < CHILDREN; i++) ask_child(children[i]);
  check_content();
}

static void spoil(void) { memory[9 * MIB] ^= 1; }

int main(void) {
  begin();
  memory = map_anon(size, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < size / MIB; i++) fill(memory + i * MIB, MIB, i);
  for (int i = 0; i < CHILDREN; i++) children[i] = start_child(child_setup, check_content);
  fill(memory + 3 * MIB, MIB, 103);
  tamper = spoil;
  print_pss("at the start");
  serve(check);
}
