// NUMA policies: of this thread and of another one, of areas of every kind, and none where none was set. There is a node 0 everywhere.
#include "test.h"
#include <linux/mempolicy.h>

enum { AREAS = 4, MASK_WORDS = 16 };
static const struct {
  int mode;
  bool nodes;
} wanted[AREAS] = {
    {MPOL_BIND | MPOL_F_STATIC_NODES, true},
    {MPOL_INTERLEAVE, true},
    {MPOL_LOCAL, false},
    {MPOL_PREFERRED_MANY | MPOL_F_RELATIVE_NODES, true},
};
static char *areas[AREAS], *plain, *shared;
static pthread_t other;
static _Atomic int asked, other_mode = -1;

static int policy_at(void *address, unsigned long *nodes) {
  unsigned long mask[MASK_WORDS] = {0};
  int mode = -1;
  EXPECT(syscall(SYS_get_mempolicy, &mode, mask, MASK_WORDS * 64 + 1, address, address == NULL ? 0 : MPOL_F_ADDR) == 0,
         "get_mempolicy: %m");
  *nodes = mask[0];
  return mode;
}

static void *own_policy(void *nothing) {
  unsigned long nodes = 1;
  MUST(syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, 64));
  for (;;) {
    other_mode = policy_at(NULL, &nodes);
    while (asked == 0) sleep_ms(1);
    asked = 0;
  }
  return nothing;
}

static void check(void) {
  unsigned long nodes = 0;
  EXPECT_EQ(policy_at(NULL, &nodes), MPOL_PREFERRED | MPOL_F_STATIC_NODES);
  EXPECT_EQ(nodes, 1);
  other_mode = -1;
  asked = 1;
  EXPECT(WITHIN(10000, other_mode != -1), "the other thread is silent");
  EXPECT_EQ(other_mode, MPOL_BIND);
  for (int i = 0; i < AREAS; i++) {
    EXPECT_EQ(policy_at(areas[i], &nodes), wanted[i].mode);
    EXPECT_EQ(nodes, wanted[i].nodes ? 1 : 0);
    EXPECT(filled(areas[i], PAGE, (unsigned)i) && all_zero(areas[i] + PAGE, PAGE), "area %d has another content", i);
  }
  EXPECT_EQ(policy_at(plain, &nodes), MPOL_DEFAULT);
  EXPECT_EQ(policy_at(shared, &nodes), MPOL_BIND);
  EXPECT(filled(shared, PAGE, 9), "the shared area has another content");
}

static void forget(void) { MUST(syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0)); }

int main(void) {
  begin();
  tamper = forget;
  unsigned long node = 1;
  for (int i = 0; i < AREAS; i++) {
    areas[i] = map_anon(2 * PAGE, PROT_READ | PROT_WRITE);
    MUST(syscall(SYS_mbind, areas[i], 2 * PAGE, wanted[i].mode, wanted[i].nodes ? &node : NULL, wanted[i].nodes ? 64 : 0, 0));
    fill(areas[i], PAGE, (unsigned)i);
  }
  plain = map_anon(2 * PAGE, PROT_READ | PROT_EXEC);
  shared = (char *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  MUST(syscall(SYS_mbind, shared, PAGE, MPOL_BIND, &node, 64, 0));
  fill(shared, PAGE, 9);
  MUST(pthread_create(&other, NULL, own_policy, NULL) == 0 ? 0 : -1);
  MUST(syscall(SYS_set_mempolicy, MPOL_PREFERRED | MPOL_F_STATIC_NODES, &node, 64));
  MUST(WITHIN(5000, other_mode == MPOL_BIND) ? 0 : -1);
  serve(check);
}
