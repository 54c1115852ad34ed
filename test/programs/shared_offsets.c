// Many descriptors that parent and child share: the parent reads through them all the time (every M milliseconds, the argument; 1
// without one), the child sleeps, so that what it has open changes under its hands.
#include "test.h"

enum { FILES = 160, FIRST = 20 };
static pid_t child;
static off_t *wanted;
static int rounds;

static void tick(void) {
  char byte;
  for (int i = 0; i < 8; i++) {
    int number = pattern_word(++rounds, i) % FILES;
    MUST(read(FIRST + number, &byte, 1));
    wanted[number]++;
  }
}

static void check_offsets(void) {
  for (int i = 0; i < FILES; i++) {
    off_t at = lseek(FIRST + i, 0, SEEK_CUR);
    EXPECT(at == wanted[i], "descriptor %d is at %ld, wanted %ld", FIRST + i, (long)at, (long)wanted[i]);
  }
}

static void check(void) {
  check_offsets();
  ask_child(child);
}

static void move_one(void) { lseek(FIRST + 3, 5, SEEK_CUR); }

int main(int argc, char **argv) {
  begin();
  tamper = move_one;
  wanted = (void *)MUST(mmap(NULL, FILES * sizeof *wanted, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < FILES; i++) {
    char name[32];
    snprintf(name, sizeof name, "shared-%d", i % 4);
    int file = MUST(open(name, O_RDWR | O_CREAT, 0600));
    if (i < 4) MUST(ftruncate(file, 16 * MIB));
    MUST(dup3(file, FIRST + i, 0));
    close(file);
  }
  child = start_child(NULL, check_offsets);
  serve_ticking(check, argc > 1 ? atoi(argv[1]) : 1, tick);
}
