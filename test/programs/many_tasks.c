// A tree of N processes (the argument; 20 without one), each with two children as long as there are
// some left. Every one knows its own pid, its parent's and its children's.
#include "test.h"

static int total, own_index = -1;
static pid_t own, parent, children[2];
static int child_count;

static void grow(void);

static void check(void) {
  char text[64];
  EXPECT_EQ(getpid(), own);
  // The root's parent is whoever started or restored it.
  if (own_index != 0) EXPECT_EQ(getppid(), parent);
  for (int i = 0; i < child_count; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", children[i]);
    field_of(path, "PPid", text, sizeof text);
    EXPECT(atoi(text) == own, "child %d has the parent %s, wanted %d", children[i], text, own);
    ask_child(children[i]);
  }
}

static void child_setup(void) {
  own_index = 2 * own_index + 1 + child_count;
  grow();
}

// Makes the children of the process with `own_index`.
static void grow(void) {
  own = getpid();
  parent = getppid();
  for (child_count = 0; child_count < 2 && 2 * own_index + 1 + child_count < total; child_count++)
    children[child_count] = start_child(child_setup, check);
}

static void lose_child(void) { kill(children[0], SIGKILL); }

int main(int argc, char **argv) {
  begin();
  total = argc > 1 ? atoi(argv[1]) : 20;
  own_index = 0;
  grow();
  tamper = lose_child;
  serve(check);
}
