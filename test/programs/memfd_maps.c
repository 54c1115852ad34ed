// memfd: contents, size, seals, offset of the descriptor, a shared and a private map of it (the
// private one with pages of its own), and a memfd that only a map still holds.
#include "test.h"

static int file, sealed, future;
static char *mapped_before, *shared, *private, *held;

static void check(void) {
  struct stat status;
  char page[PAGE], link[64];
  EXPECT(fstat(file, &status) == 0 && status.st_size == 8 * (off_t)PAGE, "the size changed");
  EXPECT_EQ(lseek(file, 0, SEEK_CUR), 1234);
  EXPECT(filled(shared, PAGE, 1), "the shared map changed");
  EXPECT(pread(file, page, PAGE, 0) == (ssize_t)PAGE && filled(page, PAGE, 1), "file content");
  EXPECT(filled(private, PAGE, 2), "the private page changed");
  EXPECT(filled(private + PAGE, PAGE, 3), "the private map's file page changed");
  static char letter = 'a';
  shared[3 * PAGE] = ++letter;
  EXPECT(pread(file, page, 1, 3 * PAGE) == 1 && page[0] == letter, "file and map are apart");
  EXPECT(private[3 * PAGE] == letter, "the private map does not follow the file");
  EXPECT_EQ(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  EXPECT(write(sealed, "x", 1) == -1 && errno == EPERM, "the sealed file can be written");
  EXPECT(pread(sealed, page, PAGE, 0) == 6 && memcmp(page, "sealed", 6) == 0, "sealed content");
  EXPECT_EQ(fcntl(file, F_GET_SEALS), 0);
  EXPECT_EQ(fcntl(future, F_GET_SEALS), F_SEAL_FUTURE_WRITE);
  EXPECT(pwrite(future, "x", 1, 0) == -1 && errno == EPERM, "what is sealed for the future can be written");
  mapped_before[1]++;
  EXPECT(pread(future, page, 2, 0) == 2 && page[1] == mapped_before[1], "the map from before the seal is apart");
  EXPECT_EQ(fcntl(file, F_GETFD), FD_CLOEXEC);
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, page, sizeof page - 1);
  page[length < 0 ? 0 : length] = 0;
  EXPECT(strstr(page, "memfd:first") != NULL, "the name is now %s", page);
  EXPECT(filled(held, 2 * PAGE, 4), "the memory of the closed memfd changed");
}

static void move_offset(void) { lseek(file, 0, SEEK_SET); }

int main(void) {
  begin();
  tamper = move_offset;
  int writable = PROT_READ | PROT_WRITE;
  file = MUST(memfd_create("first", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  MUST(ftruncate(file, 8 * PAGE));
  shared = (char *)MUST(mmap(NULL, 8 * PAGE, writable, MAP_SHARED, file, 0));
  private = (char *)MUST(mmap(NULL, 8 * PAGE, writable, MAP_PRIVATE, file, 0));
  fill(shared, PAGE, 1);
  fill(shared + PAGE, PAGE, 3);
  fill(private, PAGE, 2);
  MUST(lseek(file, 1234, SEEK_SET));
  sealed = MUST(memfd_create("second", MFD_ALLOW_SEALING));
  MUST(write(sealed, "sealed", 6));
  MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
  future = MUST(memfd_create("future", MFD_ALLOW_SEALING));
  MUST(ftruncate(future, PAGE));
  mapped_before = (char *)MUST(mmap(NULL, PAGE, writable, MAP_SHARED, future, 0));
  MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
  int closed = MUST(memfd_create("third", 0));
  MUST(ftruncate(closed, 2 * PAGE));
  held = (char *)MUST(mmap(NULL, 2 * PAGE, writable, MAP_SHARED, closed, 0));
  fill(held, 2 * PAGE, 4);
  close(closed);
  serve(check);
}
