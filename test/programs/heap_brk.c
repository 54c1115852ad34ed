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
  EXPECT(all_zero(more, 256 * KIB), "new heap is not zero");
  fill(more, 256 * KIB, 6);
  EXPECT(sbrk(-(256 * KIB)) != (void *)-1, "the heap does not shrink: %m");
  end = sbrk(0);
  char name[32] = "", text[64 * KIB], *line;
  read_text("/proc/self/maps", text, sizeof text);
  line = strstr(text, "[heap]");
  EXPECT(line != NULL, "no map is called [heap] %s", name);
}

static void shrink(void) { sbrk(-(512 * (long)KIB)); }

int main(void) {
  begin();
  tamper = shrink;
  sbrk(24); // an end that is not on a page
  sbrk(1); 
  sbrk(7);
  start = sbrk(1 * MIB);
  MUST(start);
  start = (char *)(((uintptr_t)start + 7) & ~7UL);
  sbrk(8);
  fill(start, 1 * MIB, 5);
  end = sbrk(0);
  // stdio would put its buffers on this heap: the program uses malloc's own maps from here on.
  serve(check);
}
