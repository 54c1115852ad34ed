// Much memory: N MiB (the argument; 64 without one), every page with content of its own but for each
// eighth megabyte, which is never touched. A checksum is compared, and the memory can be written.
#include "test.h"

static size_t megabytes;
static char *memory;
static uint64_t sum;

static uint64_t checksum(void) {
  uint64_t total = 0;
  const uint64_t *words = (const uint64_t *)memory;
  for (size_t i = 0; i < megabytes * MIB / 8; i++) total = total * 31 + words[i];
  return total;
}

static void check(void) {
  uint64_t now = checksum();
  EXPECT(now == sum, "the checksum is %lx, wanted %lx", now, sum);
  for (size_t i = 0; i < megabytes; i++) {
    char *start = memory + i * MIB;
    if (i % 8 == 7) EXPECT(all_zero(start, MIB), "megabyte %zu is not zero", i);
    else EXPECT(filled(start, MIB, i), "megabyte %zu changed", i);
  }
  fill(memory, MIB, 0);
}

static void spoil(void) { memory[megabytes * MIB / 2] ^= 1; }

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  megabytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
  memory = map_anon(megabytes * MIB, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < megabytes; i++)
    if (i % 8 != 7) fill(memory + i * MIB, MIB, i);
  sum = checksum();
  serve(check);
}
