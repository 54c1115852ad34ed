// Much memory (N MiB, the first argument; 80 without one) of which some pages change every M milliseconds (the second; 1
// without one): so the program sleeps for longer or shorter than it takes to write its memory to a disk.
#include "test.h"

#define WORDS (PAGE / 8)

static size_t pages;
static uint64_t *heap, *wanted, rounds;

static void put(size_t page, uint64_t value) { heap[page * WORDS + page % WORDS] = wanted[page] = value; }

static void tick(void) {
  rounds++;
  for (int i = 0; i < 32; i++) put(pattern_word(rounds, i) % pages, rounds);
}

static void check(void) {
  for (size_t page = 0; page < pages; page++) EXPECT_EQ(heap[page * WORDS + page % WORDS], wanted[page]);
}

static void spoil(void) { heap[7 * WORDS + 7] ^= 1; }

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  pages = (argc > 1 ? atoi(argv[1]) : 80) * MIB / PAGE;
  heap = map_anon(pages * PAGE, PROT_READ | PROT_WRITE);
  wanted = map_anon(pages * 8, PROT_READ | PROT_WRITE);
  for (size_t page = 0; page < pages; page++) put(page, page + 1);
  serve_ticking(check, argc > 2 ? atoi(argv[2]) : 1, tick);
}
