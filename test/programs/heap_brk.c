// The heap of brk: where it starts, where it ends (also when the end is not on a page), that it goes on
// growing and shrinking from there, and its content.
#include "test.h"

static char *start, *end;

static void check(void) {
  EXPECT(sbrk(0) == end, "the break is at %p, wanted %p", sbrk(0), end);
  EXPECT(filled(start, 1 * MIB, 5), "the heap changed");
  char *more = sbrk(256 * KIB + 16);
  EXPECT(more == end, "the heap goes on at %p", (void *)more);
  if (more != end) return;
  char *page = (char *)(((uintptr_t)more + PAGE - 1) & ~(PAGE - 1));
  EXPECT(all_zero(page, 252 * KIB), "new heap is not zero");
  fill(more, 256 * KIB, 6);
  EXPECT(sbrk(-(256 * KIB)) != (void *)-1, "the heap does not shrink: %m");
  end = sbrk(0);
  static char text[64 * KIB];
  read_text("/proc/self/maps", text, sizeof text);
  EXPECT(strstr(text, "[heap]") != NULL, "no map is called [heap]");
}

static void grow(void) { sbrk(512 * KIB); }

int main(void) {
  begin();
  tamper = grow;
  void *volatile first = malloc(100); // malloc takes its part of the heap first, and needs no more of it
  free(first);
  start = sbrk(1 * MIB);
  MUST(start);
  start = (char *)(((uintptr_t)start + 7) & ~7UL);
  sbrk(24); // an end that is not on a page
  fill(start, 1 * MIB, 5);
  end = sbrk(0);
  serve(check);
}
