// Stacks that the kernel grows: the main thread's, by deep recursion after the restore, and a map with
// MAP_GROWSDOWN, which grows when the page below is touched. Contents of deep frames stay.
#include "test.h"

static char *grows;
static long lowest;  // how many pages below its first the map has been touched
static pid_t child;

static __attribute__((noinline)) uint64_t deep(int depth) {
  volatile uint64_t frame[128];
  for (size_t i = 0; i < COUNT(frame); i++) frame[i] = pattern_word(depth, i);
  uint64_t below = depth == 0 ? 0 : deep(depth - 1);
  for (size_t i = 0; i < COUNT(frame); i++)
    EXPECT(frame[i] == pattern_word(depth, i), "frame %d changed", depth);
  return below + frame[0];
}

static void check(void) {
  static int megabytes = 1;
  char flags[256], limit[256];
  deep(megabytes++ * 1000 % 6000); // a frame is a bit more than 1 KiB
  for (long i = 0; i <= lowest; i++)
    EXPECT(filled(grows - i * PAGE, PAGE, i), "page %ld of the growing map changed", i);
  lowest++;
  fill(grows - lowest * PAGE, PAGE, lowest);
  smaps_field(grows, "VmFlags", flags, sizeof flags);
  EXPECT(strstr(flags, "gd") != NULL, "the map does not grow down: %s", flags);
  smaps_field(limit, "VmFlags", flags, sizeof flags);
  EXPECT(strstr(flags, "gd") != NULL, "the stack does not grow down: %s", flags);
  ask_child(child);
}

// The child waits for its requests on top of 2 MiB of frames.
static __attribute__((noinline)) void child_deep(int depth) {
  volatile uint64_t frame[128];
  for (size_t i = 0; i < COUNT(frame); i++) frame[i] = pattern_word(depth, i);
  if (depth == 0) {
    tell("deep", "yes");
    while (wait_request(-1) == CHECK) tell("deep", "yes");
  } else child_deep(depth - 1);
  for (size_t i = 0; i < COUNT(frame); i++)
    if (frame[i] != pattern_word(depth, i)) _exit(1);
}

static void deep_check(void) {
  char text[16];
  kill(child, SIGUSR1);
  EXPECT(hear("deep", text, sizeof text), "the deep child does not answer");
  if (!final_round) return;
  int status;
  kill(child, SIGTERM);
  waitpid(child, &status, 0);
  forget_child(child);
  EXPECT(status == 0, "the deep child's frames changed");
}

static void check_all(void) {
  pid_t deep_child = child;
  child = start_child(NULL, NULL); // a new process, its stack is a copy of ours
  check();
  end_child(child);
  child = deep_child;
  deep_check();
}

static void no_stack(void) { fill(grows - PAGE, PAGE, 77); }

int main(void) {
  begin();
  tamper = no_stack;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN;
  // Room below the map, which nothing else may take: it is taken, and given back.
  char *room = map_anon(64 * MIB, PROT_NONE);
  MUST(munmap(room, 64 * MIB));
  grows = (char *)MUST(
      mmap(room + 63 * MIB, PAGE, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0));
  fill(grows, PAGE, 0);
  for (lowest = 1; lowest < 4; lowest++) fill(grows - lowest * PAGE, PAGE, lowest);
  lowest--;
  child = (pid_t)MUST(fork());
  if (child == 0) {
    child_deep(2000);
    _exit(0);
  }
  keep_child(child);
  char text[16];
  MUST(hear("deep", text, sizeof text) ? 0 : -1);
  serve(check_all);
}
