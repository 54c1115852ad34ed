// Every register of a running thread: integers, x87 with control word, mxcsr, SSE, AVX or AVX-512
// with mask registers, and the gs base (see registers.h). A thread spins in user mode all the time.
#include "registers.h"
#include <asm/prctl.h>

static struct register_set set;
static struct registers wanted;
static atomic_long rounds;

static void *spin(void *unused) {
  (void)unused;
  unsigned long base = 0;
  MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x7654321000UL));
  for (uint64_t seed = 0;; seed++) {
    registers_pattern(&wanted, seed);
    registers_verify(&set, &wanted, 5000000);
    syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
    EXPECT(base == 0x7654321000UL, "gs base is %lx", base);
    rounds++;
  }
  return NULL;
}

static void check(void) {
  long before = rounds;
  EXPECT(WITHIN(10000, rounds >= before + 2), "the spinning thread does not run");
}

// Seen from the thread: what it spins with is no longer what it loaded.
static void flip_bit(void) {
  while (registers_spins < 1000000 || registers_spins > 4000000) continue;
  wanted.vector[3][5] ^= 1;
}

int main(void) {
  begin();
  tamper = flip_bit;
  set = registers_available();
  pthread_t thread;
  pthread_create(&thread, NULL, spin, NULL);
  serve(check);
}
