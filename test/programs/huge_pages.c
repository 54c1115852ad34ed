// Memory of huge pages: private, shared with a child, of a memfd, and a System V segment; with content, with pages of which there is none
// yet, and with content behind no access.
#include "test.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { HUGE = 2 << 20, MFD_HUGE = 4 };
static char *own, *shared, *mapped, *copied, *segment, *hidden;
static int memfd;
static pid_t child;

static void expect_huge(const void *map, const char *name) {
  char size[64];
  smaps_field(map, "KernelPageSize", size, sizeof size);
  EXPECT(strncmp(size, "2048 kB", 7) == 0, "the %s map has pages of %s", name, size);
}

static void check_child(void) {
  EXPECT(filled(shared, HUGE, 7), "the child sees other shared memory");
  EXPECT(filled(own, PAGE, 1), "the child's own memory changed");
  EXPECT(filled(segment, PAGE, 5), "the child sees another segment");
}

static void check(void) {
  expect_huge(own, "private");
  expect_huge(shared, "shared");
  expect_huge(mapped, "memfd");
  expect_huge(copied, "copied");
  expect_huge(segment, "segment's");
  expect_huge(hidden, "hidden");
  EXPECT(filled(segment, PAGE, 5), "the segment changed");
  MUST(mprotect(hidden, HUGE, PROT_READ));
  EXPECT(filled(hidden, PAGE, 6), "what is behind no access changed");
  MUST(mprotect(hidden, HUGE, PROT_NONE));
  EXPECT(filled(own, HUGE, 1) && all_zero(own + HUGE, HUGE), "private memory changed");
  EXPECT(filled(mapped, HUGE, 3), "the memfd changed");
  EXPECT(filled(copied, PAGE, 4) && filled(copied + PAGE, PAGE, 3) == false, "the copy changed");
  EXPECT(memcmp(copied + 2 * PAGE, mapped + 2 * PAGE, HUGE - 2 * PAGE) == 0, "the copy is none");
  fill(shared, HUGE, 7);
  ask_child(child);
  fill(shared, HUGE, 8);
}

static void spoil(void) { own[5] ^= 1; }

int main(void) {
  begin();
  tamper = spoil;
  // Nothing is set aside by this: the kernel may only make huge pages when they are asked for.
  char text[32];
  read_text("/proc/sys/vm/nr_overcommit_hugepages", text, sizeof text);
  if (atoi(text) < 16) {
    int fd = (int)MUST(open("/proc/sys/vm/nr_overcommit_hugepages", O_WRONLY));
    MUST(write(fd, "16", 2));
    close(fd);
  }
  int pages = MAP_HUGETLB | MAP_ANONYMOUS, access = PROT_READ | PROT_WRITE;
  own = (char *)MUST(mmap(NULL, 2 * HUGE, access, pages | MAP_PRIVATE, -1, 0));
  shared = (char *)MUST(mmap(NULL, HUGE, access, pages | MAP_SHARED, -1, 0));
  memfd = (int)MUST(memfd_create("huge", MFD_HUGE));
  MUST(ftruncate(memfd, HUGE));
  mapped = (char *)MUST(mmap(NULL, HUGE, access, MAP_SHARED, memfd, 0));
  copied = (char *)MUST(mmap(NULL, HUGE, access, MAP_PRIVATE, memfd, 0));
  fill(own, HUGE, 1);
  fill(mapped, HUGE, 3);
  fill(copied, PAGE, 4);
  MUST(unshare(CLONE_NEWIPC));
  int id = (int)MUST(shmget(IPC_PRIVATE, HUGE, SHM_HUGETLB | 0600));
  segment = (char *)MUST(shmat(id, NULL, 0));
  fill(segment, PAGE, 5);
  hidden = (char *)MUST(mmap(NULL, HUGE, access, pages | MAP_PRIVATE | 21 << 26 /* MAP_HUGE_2MB */, -1, 0));
  fill(hidden, PAGE, 6);
  MUST(mprotect(hidden, HUGE, PROT_NONE));
  child = start_child(NULL, check_child);
  serve(check);
}
