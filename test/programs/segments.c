// Segments of its own: entries of the local descriptor table (modify_ldt) at its beginning and far behind, one of which is in a register
// and is read through.
#include "test.h"
#include <asm/ldt.h>

enum { FIRST = 1, LAST = 5000 };
static uint32_t *low; // below 4 GiB, as a segment's base is
static unsigned char first[8 * (LAST + 1)];

static uint16_t selector(int entry) { return (uint16_t)(entry << 3 | 7); }

static void check(void) {
  static unsigned char now[sizeof first];
  EXPECT_EQ(syscall(SYS_modify_ldt, 0, now, sizeof now), sizeof now);
  EXPECT(memcmp(first, now, sizeof now) == 0, "the local descriptor table is another one");
  uint16_t es;
  __asm__ volatile("mov %%es, %0" : "=r"(es));
  EXPECT_EQ(es, selector(FIRST));
  uint32_t length = 0;
  bool valid = false;
  __asm__("lsl %2, %0\n\tsetz %1" : "+r"(length), "=q"(valid) : "r"((uint32_t)selector(LAST)) : "cc");
  EXPECT(valid, "segment %d is none", LAST);
  EXPECT_EQ(length, 0x7ff);
  *low = 4711;
}

static void write_entry(int entry, unsigned limit) {
  struct user_desc segment = {
      .entry_number = (unsigned)entry, .base_addr = (unsigned)(uintptr_t)low, .limit = limit, .seg_32bit = 1, .useable = 1};
  MUST(syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment));
}

static void spoil(void) { write_entry(FIRST, 1); }

int main(void) {
  begin();
  low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  MUST(low == MAP_FAILED ? -1 : 0);
  write_entry(FIRST, 0xfff);
  write_entry(LAST, 0x7ff);
  MUST(syscall(SYS_modify_ldt, 0, first, sizeof first));
  __asm__ volatile("mov %0, %%es" : : "r"(selector(FIRST)));
  tamper = spoil;
  serve(check);
}
