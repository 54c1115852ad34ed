// Maps of a regular file: private with some pages modified, shared with writes that reach the file,
// at an offset in the file, of a descriptor opened read-only, and beyond the end of the file.
#include "test.h"
#include <setjmp.h>

enum { PAGES = 16 };
static int file;
static char *private, *shared, *offset, *read_only, *beyond;
static sigjmp_buf after_fault;

static void on_fault(int signal) {
  (void)signal;
  siglongjmp(after_fault, 1);
}

static void check(void) {
  char byte, permissions[5];
  for (int i = 0; i < PAGES; i++) {
    if (i == 1) continue; // this page is written below
    EXPECT(filled(private + i * PAGE, PAGE, i % 3 == 0 ? 100 + i : i), "private page %d", i);
    EXPECT(filled(shared + i * PAGE, PAGE, i), "shared page %d changed", i);
  }
  EXPECT(filled(offset, PAGE, 5) && filled(offset + PAGE, PAGE, 6), "the map at an offset changed");
  EXPECT(filled(read_only, PAGE, 0), "the read-only map changed");
  static char letter = 'a';
  shared[PAGE] = ++letter;
  EXPECT(pread(file, &byte, 1, PAGE) == 1 && byte == letter, "a shared write is not in the file");
  EXPECT(private[PAGE] == letter, "an untouched private page does not follow the file");
  EXPECT(mprotect(read_only, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
         "the shared map of a read-only descriptor can be made writable");
  maps_permissions(read_only, permissions);
  EXPECT(strcmp(permissions, "r--s") == 0, "the read-only map is %s", permissions);
  maps_permissions(private, permissions);
  EXPECT(strcmp(permissions, "rw-p") == 0, "the private map is %s", permissions);
  if (sigsetjmp(after_fault, 1) == 0) {
    byte = *(volatile char *)(beyond + PAGE);
    EXPECT(false, "a page beyond the end of the file can be read");
  }
}

static void spoil(void) { fill(private + 3 * PAGE, PAGE, 3); }

int main(void) {
  begin();
  tamper = spoil;
  signal(SIGBUS, on_fault);
  int writable = PROT_READ | PROT_WRITE;
  file = MUST(open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644));
  MUST(ftruncate(file, PAGES * PAGE));
  shared = (char *)MUST(mmap(NULL, PAGES * PAGE, writable, MAP_SHARED, file, 0));
  for (int i = 0; i < PAGES; i++) fill(shared + i * PAGE, PAGE, i);
  private = (char *)MUST(mmap(NULL, PAGES * PAGE, writable, MAP_PRIVATE, file, 0));
  for (int i = 0; i < PAGES; i += 3) fill(private + i * PAGE, PAGE, 100 + i);
  offset = (char *)MUST(mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, file, 5 * PAGE));
  beyond = (char *)MUST(
      mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, file, (PAGES - 1) * PAGE));
  int reader = MUST(open("mapped", O_RDONLY));
  read_only = (char *)MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reader, 0));
  close(reader);
  serve(check);
}
