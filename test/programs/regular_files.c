// Regular files: offset, access mode, O_APPEND and other status flags, FD_CLOEXEC, owner and signal of
// F_SETOWN and F_SETSIG. A duplicated descriptor shares its offset, and so does a child's.
#include "test.h"

enum { READ, WRITE, BOTH, APPEND, FLAGS, MANY };
static int files[MANY], twin, again;
static int first_flags[MANY];
static pid_t child;
static off_t offset = 1000;  // of files[BOTH], in every process

static void child_check(void) {
  char byte;
  EXPECT(read(files[BOTH], &byte, 1) == 1, "the child cannot read: %m");
}

static void check(void) {
  char text[64];
  struct stat status;
  for (int i = 0; i < MANY; i++)
    EXPECT(fcntl(files[i], F_GETFL) == first_flags[i], "file %d has the flags %o, wanted %o", i,
           fcntl(files[i], F_GETFL), first_flags[i]);
  EXPECT(lseek(files[READ], 0, SEEK_CUR) == 17, "the offset for reading changed");
  EXPECT(write(files[READ], "x", 1) == -1 && errno == EBADF, "a read-only file can be written");
  EXPECT(read(files[READ], text, 5) == 5 && memcmp(text, "rstuv", 5) == 0, "read other bytes");
  lseek(files[READ], 17, SEEK_SET);
  EXPECT(read(files[WRITE], text, 1) == -1 && errno == EBADF, "a write-only file can be read");
  EXPECT(lseek(files[WRITE], 0, SEEK_CUR) == 5, "the offset for writing changed");
  EXPECT(lseek(again, 0, SEEK_CUR) == 2, "an offset of the same file, opened twice, changed");
  EXPECT_EQ(lseek(files[BOTH], 0, SEEK_CUR), offset);
  lseek(twin, 7, SEEK_CUR);
  EXPECT(lseek(files[BOTH], 0, SEEK_CUR) == offset + 7, "the duplicate has an offset of its own");
  ask_child(child);
  offset += 8;
  EXPECT(lseek(files[BOTH], 0, SEEK_CUR) == offset, "the child has an offset of its own");
  lseek(files[APPEND], 0, SEEK_SET);
  fstat(files[APPEND], &status);
  EXPECT(write(files[APPEND], "z", 1) == 1, "cannot append: %m");
  EXPECT(lseek(files[APPEND], 0, SEEK_CUR) == status.st_size + 1, "a write did not go to the end");
  EXPECT(fcntl(files[READ], F_GETFD) == FD_CLOEXEC && fcntl(files[WRITE], F_GETFD) == 0, "FD_CLOEXEC");
  EXPECT(fcntl(twin, F_GETFD) == FD_CLOEXEC && fcntl(files[BOTH], F_GETFD) == 0,
         "FD_CLOEXEC belongs to the descriptor, not to the open file");
  EXPECT_EQ(fcntl(files[FLAGS], F_GETOWN), getpid());
  EXPECT_EQ(fcntl(files[FLAGS], F_GETSIG), SIGRTMIN + 1);
  EXPECT_EQ(fcntl(files[READ], F_GETOWN), 0);
}

static void split(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", twin);
  int other = open(path, O_RDWR);
  lseek(other, offset, SEEK_SET);
  dup3(other, twin, O_CLOEXEC);
}

static int open_file(const char *name, int flags, off_t at) {
  int fd = MUST(open(name, flags | O_CREAT, 0644));
  lseek(fd, at, SEEK_SET);
  return fd;
}

int main(void) {
  begin();
  int fd = open_file("letters", O_WRONLY, 0);
  MUST(write(fd, "abcdefghijklmnopqrstuvwxyz", 26));
  MUST(ftruncate(fd, 100000));
  close(fd);
  files[READ] = open_file("letters", O_RDONLY | O_CLOEXEC, 17);
  files[WRITE] = open_file("written", O_WRONLY | O_TRUNC, 5);
  again = open_file("written", O_RDONLY, 2);
  files[BOTH] = open_file("letters", O_RDWR, offset);
  twin = MUST(fcntl(files[BOTH], F_DUPFD_CLOEXEC, 20));
  files[APPEND] = open_file("appended", O_WRONLY | O_APPEND, 0);
  files[FLAGS] = open_file("flags", O_RDWR | O_NONBLOCK | O_SYNC | O_NOATIME | O_NOFOLLOW, 0);
  MUST(fcntl(files[FLAGS], F_SETOWN, getpid()));
  MUST(fcntl(files[FLAGS], F_SETSIG, SIGRTMIN + 1));
  for (int i = 0; i < MANY; i++) first_flags[i] = fcntl(files[i], F_GETFL);
  child = start_child(NULL, child_check);
  tamper = split;
  serve(check);
}
