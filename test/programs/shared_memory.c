// Shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS): one object, mapped by parent and child, by the
// child read-only as well. What one writes, the other sees; a page nobody touched stays zero.
#include "test.h"

enum { SIZE = 64 * 4096 };
static char *memory, *view;
static volatile uint64_t *from_parent, *from_child;
static pid_t child;

static void child_setup(void) {
  view = (char *)MUST(mremap(memory + 4 * PAGE, 0, 4 * PAGE, MREMAP_MAYMOVE)); // a second mapping
  MUST(mprotect(view, 4 * PAGE, PROT_READ));
  fill(memory + 8 * PAGE, PAGE, 2);
}

static void child_check(void) {
  EXPECT(filled(memory + 4 * PAGE, PAGE, 1), "the child lost the parent's page");
  EXPECT(filled(view, PAGE, 1), "the child's second view differs");
  EXPECT(*from_parent == *(volatile uint64_t *)(view + PAGE), "the views are not one object");
  *from_child = *from_parent * 3;
}

static void check(void) {
  EXPECT(filled(memory + 4 * PAGE, PAGE, 1), "the parent lost its page");
  EXPECT(filled(memory + 8 * PAGE, PAGE, 2), "the parent lost the child's page");
  EXPECT(all_zero(memory + 32 * PAGE, 32 * PAGE), "the untouched half is not zero");
  ++*from_parent;
  ask_child(child);
  EXPECT(*from_child == *from_parent * 3, "what the child wrote is not seen here");
  char permissions[5];
  maps_permissions(memory, permissions);
  EXPECT(strcmp(permissions, "rw-s") == 0, "the memory is mapped %s", permissions);
}

// As a restore would that gave each process memory of its own.
static void unshare_memory(void) {
  char copy[PAGE];
  memcpy(copy, memory + 4 * PAGE, PAGE);
  int flags = MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS;
  mmap(memory + 4 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  memcpy(memory + 4 * PAGE, copy, PAGE);
}

int main(void) {
  begin();
  memory = (char *)MUST(
      mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  fill(memory + 4 * PAGE, PAGE, 1);
  from_parent = (uint64_t *)(memory + 5 * PAGE);
  from_child = (uint64_t *)(memory + 6 * PAGE);
  child = start_child(child_setup, child_check);
  tamper = unshare_memory;
  serve(check);
}
