// Memory that changes all the time in every way that an incremental dump must see: pages written, given back
// (MADV_DONTNEED), replaced by new maps, made unreadable, and private pages of a file.
#include "test.h"

#define WORDS (PAGE / 8)

static uint64_t *heap, *file_map, *hidden, *replaced;
static uint64_t *wanted, rounds, replaced_value;
static size_t pages = 1024; // or as many as the argument says

static void tick(void) {
  rounds++;
  for (int i = 0; i < 8; i++) {
    size_t page = pattern_word(rounds, i) % pages;
    wanted[page] = rounds * pages + i;
    heap[page * WORDS + page % WORDS] = wanted[page];
  }
  size_t given_back = pattern_word(rounds, 99) % pages;
  MUST(madvise(heap + given_back * WORDS, PAGE, MADV_DONTNEED));
  wanted[given_back] = 0;
  file_map[rounds % 4 * WORDS] = rounds;
  if (rounds % 16 == 0) {
    MUST(munmap(replaced, 4 * PAGE));
    MUST(mmap(replaced, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    replaced[rounds / 16 % 4 * WORDS] = replaced_value = rounds;
  }
}

static void check(void) {
  for (size_t page = 0; page < pages; page++) {
    uint64_t *start = heap + page * WORDS;
    EXPECT_EQ(start[page % WORDS], wanted[page]);
    start[page % WORDS] = 0;
    EXPECT(all_zero(start, PAGE), "page %zu has more than was written", page);
    start[page % WORDS] = wanted[page];
  }
  for (uint64_t i = 0; i < 4 && rounds >= 4; i++) {
    uint64_t last = rounds - (rounds - i) % 4;
    EXPECT_EQ(file_map[i * WORDS], last);
    EXPECT_EQ(file_map[i * WORDS + 1], i);
  }
  uint64_t sum = 0;
  for (size_t i = 0; i < 4 * WORDS; i++) sum += replaced[i];
  EXPECT_EQ(sum, replaced_value);
  MUST(mprotect(hidden, 4 * PAGE, PROT_READ));
  EXPECT(filled(hidden, 4 * PAGE, 3), "unreadable memory changed");
  MUST(mprotect(hidden, 4 * PAGE, PROT_NONE));
}

static void spoil(void) { heap[5 * WORDS + 7] ^= 1; }

int main(int argc, char **argv) {
  begin();
  if (argc > 1) pages = (size_t)atol(argv[1]);
  wanted = calloc(pages, sizeof *wanted);
  tamper = spoil;
  heap = map_anon(pages * PAGE, PROT_READ | PROT_WRITE);
  replaced = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  hidden = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  fill(hidden, 4 * PAGE, 3);
  MUST(mprotect(hidden, 4 * PAGE, PROT_NONE));
  int fd = (int)MUST(open("changing_pages.data", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  uint64_t text[4 * WORDS] = {0};
  for (uint64_t i = 0; i < 4; i++) text[i * WORDS + 1] = i;
  MUST(write(fd, text, sizeof text));
  file_map = (void *)MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  close(fd);
  for (size_t page = 0; page < pages; page += 2) heap[page * WORDS + page % WORDS] = wanted[page] = page;
  serve_ticking(check, 1, tick);
}
