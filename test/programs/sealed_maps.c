// Sealed maps (mseal(2), Linux 6.10): anonymous, shared, of a file, without access. They can never be changed again, nor unmapped.
#include "test.h"

enum { KINDS = 4 };
static char *maps[KINDS];
static bool sealed;

static void check(void) {
  for (int i = 0; i < KINDS; i++) {
    if (!sealed) break;
    bool refused = munmap(maps[i], PAGE) == -1 && errno == EPERM;
    EXPECT(refused, "map %d can be unmapped: %m", i);
    if (!refused) return; // it is gone now
    EXPECT(mprotect(maps[i], PAGE, PROT_READ) == -1 && errno == EPERM, "map %d can be protected: %m", i);
  }
  EXPECT(filled(maps[0], PAGE, 1), "the private map changed");
  EXPECT(filled(maps[1], PAGE, 2), "the shared map changed");
  fill(maps[1] + PAGE, PAGE, 3);
}

static void spoil(void) { maps[0][5] ^= 1; }

int main(void) {
  begin();
  tamper = spoil;
  maps[0] = map_anon(2 * PAGE, PROT_READ | PROT_WRITE);
  fill(maps[0], PAGE, 1);
  maps[1] = (char *)MUST(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  fill(maps[1], PAGE, 2);
  int fd = (int)MUST(open("/bin/true", O_RDONLY | O_CLOEXEC));
  maps[2] = (char *)MUST(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
  maps[3] = map_anon(PAGE, PROT_NONE);
  sealed = true;
  for (int i = 0; i < KINDS; i++) sealed &= syscall(462 /* mseal */, maps[i], PAGE, 0) == 0;
  serve(check);
}
