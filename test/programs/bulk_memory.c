// Much memory of many kinds, side by side so that runs of pages reach over several areas: protections, locks, advice, holes of a
// page and of many. A child has as much of its own, and shares some with its parent. What the kernel tells of each area is compared.
#include "test.h"
#include <sys/prctl.h>

#define AREA (4 * MIB)

enum kind { PLAIN, READ_ONLY, NO_ACCESS, SPARSE, LOCKED, SMALL_PAGES, HUGE_PAGES, NOT_FORKED,
            CODE, HALF, ONE_PAGE, NAMED, KINDS };

static char *areas, *shared;
static uint64_t seed;
static char before[KINDS][3][512];

static bool has_page(int kind, size_t page) {
  if (kind == SPARSE) return page % 2 == 0 || page < AREA / PAGE / 2;
  if (kind == HALF) return page >= AREA / PAGE / 2;
  return kind != ONE_PAGE || page == 3;
}

static void facts(int kind, char text[3][512]) {
  const char *names[] = {"Anonymous", "Locked", "VmFlags"};
  for (int i = 0; i < 3; i++) smaps_field(areas + kind * AREA, names[i], text[i], sizeof(text[i]));
  char *dirty = strstr(text[2], " sd"); // written to since somebody asked: not the program's
  if (dirty != NULL) memmove(dirty, dirty + 3, strlen(dirty + 3) + 1);
}

static void make_areas(void) {
  areas = map_anon(KINDS * AREA, PROT_READ | PROT_WRITE);
  for (int kind = 0; kind < KINDS; kind++) {
    char *area = areas + kind * AREA;
    if (kind == SMALL_PAGES) MUST(madvise(area, AREA, MADV_NOHUGEPAGE));
    if (kind == HUGE_PAGES) MUST(madvise(area, AREA, MADV_HUGEPAGE));
    if (kind == NOT_FORKED) MUST(madvise(area, AREA, MADV_DONTFORK));
    for (size_t page = 0; page < AREA / PAGE; page++)
      if (has_page(kind, page)) fill(area + page * PAGE, PAGE, seed + kind * AREA + page);
    if (kind == LOCKED) MUST(mlock(area, AREA));
    if (kind == READ_ONLY) MUST(mprotect(area, AREA, PROT_READ));
    if (kind == NO_ACCESS) MUST(mprotect(area, AREA, PROT_NONE));
    if (kind == CODE) MUST(mprotect(area, AREA, PROT_READ | PROT_EXEC));
    if (kind == NAMED) prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, area, AREA, "bulk");
  }
  for (int kind = 0; kind < KINDS; kind++) facts(kind, before[kind]);
}

static void check(void) {
  char now[3][512];
  for (int kind = 0; kind < KINDS; kind++) {
    char *area = areas + kind * AREA;
    facts(kind, now);
    for (int i = 0; i < 3; i++)
      EXPECT(strcmp(before[kind][i], now[i]) == 0, "area %d: %s, was %s", kind, now[i], before[kind][i]);
    if (kind == NO_ACCESS) MUST(mprotect(area, AREA, PROT_READ));
    for (size_t page = 0; page < AREA / PAGE; page++) {
      char *start = area + page * PAGE;
      if (has_page(kind, page)) EXPECT(filled(start, PAGE, seed + kind * AREA + page), "area %d page %zu", kind, page);
      else EXPECT(all_zero(start, PAGE), "area %d page %zu is not zero", kind, page);
    }
    if (kind == NO_ACCESS) MUST(mprotect(area, AREA, PROT_NONE));
  }
  EXPECT(filled(shared, AREA, 7), "the shared pages changed");
  EXPECT(filled(shared + AREA, PAGE, seed), "the page that was shared once changed");
}

static void spoil(void) { areas[SPARSE * AREA] ^= 1; }

static void fork_off(void) {
  seed = 1 << 28;
  fill(shared + AREA, PAGE, seed);
  make_areas();
}

int main(void) {
  begin();
  tamper = spoil;
  shared = map_anon(2 * AREA, PROT_READ | PROT_WRITE);
  fill(shared, 2 * AREA, 7);
  start_child(fork_off, check);
  seed = 1 << 27;
  fill(shared + AREA, PAGE, seed);
  make_areas();
  serve(check);
}
