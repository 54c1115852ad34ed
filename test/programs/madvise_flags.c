// Advice that stays with a mapping: DONTFORK, WIPEONFORK, DONTDUMP, HUGEPAGE, NOHUGEPAGE, MERGEABLE,
// SEQUENTIAL, RANDOM. Seen in the VmFlags of smaps, and in what a fork gets.
#include "test.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static struct {
  int advice;
  const char *flag;  // its name in VmFlags
  char *map;
  bool known;        // this kernel has it
} maps[] = {
    {MADV_DONTFORK, "dc", NULL, false},   {MADV_WIPEONFORK, "wf", NULL, false},
    {MADV_DONTDUMP, "dd", NULL, false},   {MADV_HUGEPAGE, "hg", NULL, false},
    {MADV_NOHUGEPAGE, "nh", NULL, false}, {MADV_MERGEABLE, "mg", NULL, false},
    {MADV_SEQUENTIAL, "sr", NULL, false}, {MADV_RANDOM, "rr", NULL, false},
    {MADV_NORMAL, "", NULL, false},
};
enum { SIZE = 16 * 4096 };

static void check(void) {
  char flags[256];
  for (size_t i = 0; i < COUNT(maps); i++) {
    smaps_field(maps[i].map, "VmFlags", flags, sizeof flags);
    for (size_t j = 0; j < COUNT(maps) - 1; j++) {
      bool wanted = i == j && maps[i].known, found = strstr(flags, maps[j].flag) != NULL;
      EXPECT(found == wanted, "map %s has the flags %s", maps[i].flag, flags);
    }
    EXPECT(filled(maps[i].map, SIZE, i), "content of map %zu changed", i);
  }
  pid_t child = fork();
  if (child == 0) {
    unsigned char resident[SIZE / 4096];
    bool gone = mincore(maps[0].map, SIZE, resident) == -1 && errno == ENOMEM;
    bool wiped = !maps[1].known || all_zero(maps[1].map, SIZE);
    _exit((gone ? 0 : 1) | (wiped ? 0 : 2) | (filled(maps[2].map, SIZE, 2) ? 0 : 4));
  }
  int status;
  waitpid(child, &status, 0);
  EXPECT((status & 0x100) == 0, "a fork has the DONTFORK map");
  EXPECT((status & 0x200) == 0, "a fork has the content of the WIPEONFORK map");
  EXPECT((status & ~0x300) == 0, "a fork ended with %x", status);
}

static void forget_one(void) { madvise(maps[2].map, SIZE, MADV_DODUMP); }

int main(void) {
  begin();
  tamper = forget_one;
  for (size_t i = 0; i < COUNT(maps); i++) {
    maps[i].map = map_anon(SIZE, PROT_READ | PROT_WRITE);
    fill(maps[i].map, SIZE, i);
    maps[i].known = madvise(maps[i].map, SIZE, maps[i].advice) == 0;
  }
  serve(check);
}
