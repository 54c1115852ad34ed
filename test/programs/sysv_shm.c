// System V shared memory of the namespace that everybody shares: a segment with a key, attached by two tasks, once with a hole and
// once read-only; and one that is removed already and lives only as long as somebody has it attached.
#include "test.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { PAGES = 8 };
static int keyed, removed;
static char *whole, *holed, *readonly, *last, *guest, *beside;
static pid_t child;

static void expect_segment(int id, unsigned long attached) {
  struct shmid_ds status = {0};
  EXPECT(shmctl(id, IPC_STAT, &status) == 0, "segment %d: %m", id);
  EXPECT_EQ(status.shm_segsz, PAGES * PAGE - 100);
  EXPECT_EQ(status.shm_nattch, attached);
}

static void check_child(void) {
  EXPECT(filled(whole + PAGE, PAGE, 5), "the child sees other memory");
  fill(last + 2 * PAGE, PAGE, 6);
}

static void check(void) {
  char permissions[5];
  maps_permissions(whole, permissions);
  EXPECT(strcmp(permissions, "rw-s") == 0, "the segment is %s", permissions);
  maps_permissions(readonly, permissions);
  EXPECT(strcmp(permissions, "r--s") == 0, "the read-only segment is %s", permissions);
  maps_permissions(holed + 4 * PAGE, permissions);
  EXPECT(strcmp(permissions, "none") == 0, "the hole is %s", permissions);
  maps_permissions(holed + 5 * PAGE, permissions);
  EXPECT(strcmp(permissions, "r--s") == 0, "the protected page is %s", permissions);
  EXPECT(mprotect(readonly, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "mprotect: %m");
  EXPECT(filled(whole, PAGE, 1) && filled(last, PAGE, 2), "content changed");
  EXPECT(all_zero(whole + 6 * PAGE, PAGE), "a page came from nowhere");
  EXPECT(filled(guest, PAGE, 9) && filled(beside, PAGE, 8), "what lies in the hole changed");
  fill(whole + PAGE, PAGE, 5);
  EXPECT(filled(holed + PAGE, PAGE, 5) && filled(readonly + PAGE, PAGE, 5), "not the same memory");
  ask_child(child);
  EXPECT(filled(last + 2 * PAGE, PAGE, 6), "the removed segment is not shared with the child");
  fill(last + 2 * PAGE, PAGE, 7);
  // The kernel counts areas: 5 of each task, for the hole and the protected page make three of one attachment.
  expect_segment(keyed, 10);
  EXPECT_EQ(shmget((key_t)getpid(), 0, 0), keyed);
  struct shmid_ds status = {0};
  EXPECT(shmctl(removed, IPC_STAT, &status) == 0, "the removed segment: %m");
  EXPECT((status.shm_perm.mode & SHM_DEST) != 0, "the removed segment has the mode %o", status.shm_perm.mode);
  if (final_round) shmctl(keyed, IPC_RMID, NULL);
}

// In the hole of one segment lie a page of another, which has a hole around it, and a page that is no segment's.
static void put_into_hole(void) {
  int other = (int)MUST(shmget(IPC_PRIVATE, PAGES * PAGE, 0600));
  char *all = (char *)MUST(shmat(other, NULL, 0));
  MUST(shmctl(other, IPC_RMID, NULL));
  fill(all + PAGE, PAGE, 9);
  guest = (char *)MUST(mremap(all + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, holed + 2 * PAGE));
  MUST(munmap(all, PAGES * PAGE));
  beside = (char *)MUST(mmap(holed + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  fill(beside, PAGE, 8);
}

static void spoil(void) { whole[7] ^= 1; }

int main(void) {
  begin();
  tamper = spoil;
  keyed = (int)MUST(shmget((key_t)getpid(), PAGES * PAGE - 100, IPC_CREAT | IPC_EXCL | 0600));
  removed = (int)MUST(shmget(IPC_PRIVATE, PAGES * PAGE - 100, 0600));
  whole = (char *)MUST(shmat(keyed, NULL, 0));
  holed = (char *)MUST(shmat(keyed, NULL, 0));
  readonly = (char *)MUST(shmat(keyed, NULL, SHM_RDONLY));
  last = (char *)MUST(shmat(removed, NULL, 0));
  MUST(shmctl(removed, IPC_RMID, NULL));
  MUST(munmap(holed + 2 * PAGE, 3 * PAGE));
  put_into_hole();
  MUST(mprotect(holed + 5 * PAGE, PAGE, PROT_READ));
  fill(whole, PAGE, 1);
  fill(last, PAGE, 2);
  child = start_child(NULL, check_child);
  serve(check);
}
