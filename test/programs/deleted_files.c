// Open files whose name is gone: a regular one with content and an offset, one opened twice, a sparse
// one, one that is mapped only, a directory, a FIFO with data, and one whose name was taken by another file.
#include "test.h"

static int file, writer, reader, sparse, directory, fifo_reader, fifo_writer, replaced;
static char *mapped;

static void check(void) {
  char text[64] = "";
  struct stat status;
  EXPECT_EQ(lseek(file, 0, SEEK_CUR), 6);
  EXPECT(fstat(file, &status) == 0 && status.st_nlink == 0, "it has %ld names", (long)status.st_nlink);
  EXPECT((status.st_mode & 0777) == 0640, "its mode is %o", status.st_mode & 0777);
  EXPECT(read(file, text, 8) == 8 && memcmp(text, "unlinked", 8) == 0, "its content changed");
  lseek(file, 6, SEEK_SET);
  EXPECT(access("gone", F_OK) == -1, "the name is there again");
  static char letter = 'a';
  letter++;
  EXPECT(pwrite(writer, &letter, 1, 3) == 1, "cannot write: %m");
  EXPECT(pread(reader, text, 1, 3) == 1 && text[0] == letter, "opened twice, it is two files now");
  EXPECT(write(reader, "x", 1) == -1 && errno == EBADF, "the reader can write");
  fstat(sparse, &status);
  EXPECT(status.st_size == (off_t)(64 * MIB) + 3, "the sparse file has %ld bytes", (long)status.st_size);
  EXPECT(status.st_blocks * 512 < (blkcnt_t)MIB, "the sparse file takes %ld blocks", (long)status.st_blocks);
  EXPECT(pread(sparse, text, 3, 64 * MIB) == 3 && memcmp(text, "end", 3) == 0, "sparse: the end");
  EXPECT(pread(sparse, text, 3, 32 * MIB) == 3 && memcmp(text, "mid", 3) == 0, "sparse: the middle");
  EXPECT(filled(mapped, 4 * PAGE, 8), "the map of a deleted file changed");
  EXPECT(fstat(directory, &status) == 0 && S_ISDIR(status.st_mode), "it is no directory");
  EXPECT(openat(directory, "new", O_CREAT | O_WRONLY, 0600) == -1, "a deleted directory has room");
  EXPECT(read(fifo_reader, text, 4) == 4 && memcmp(text, "data", 4) == 0, "the FIFO's data changed");
  EXPECT(write(fifo_writer, "data", 4) == 4, "the FIFO cannot be written: %m");
  EXPECT(pread(replaced, text, 3, 0) == 3 && memcmp(text, "old", 3) == 0, "the old file is the new");
  read_text("replaced", text, sizeof text);
  EXPECT(strcmp(text, "new") == 0, "the new file holds %s", text);
}

static void truncate_it(void) { MUST(ftruncate(file, 0)); }

static int make(const char *name, const char *text) {
  int fd = MUST(open(name, O_RDWR | O_CREAT | O_EXCL, 0640));
  MUST(write(fd, text, strlen(text)));
  return fd;
}

int main(void) {
  begin();
  tamper = truncate_it;
  file = make("gone", "I was unlinked long ago");
  MUST(lseek(file, 6, SEEK_SET));
  writer = make("twice", "abcdefgh");
  reader = MUST(open("twice", O_RDONLY));
  sparse = make("sparse", "start");
  MUST(pwrite(sparse, "mid", 3, 32 * MIB));
  MUST(pwrite(sparse, "end", 3, 64 * MIB));
  int fd = make("mapped", "");
  MUST(ftruncate(fd, 4 * PAGE));
  mapped = (char *)MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  fill(mapped, 4 * PAGE, 8);
  close(fd);
  MUST(mkdir("directory", 0700));
  directory = MUST(open("directory", O_RDONLY | O_DIRECTORY));
  MUST(mkfifo("fifo", 0600));
  fifo_reader = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
  fifo_writer = MUST(open("fifo", O_WRONLY));
  MUST(write(fifo_writer, "data", 4));
  replaced = make("replaced", "old");
  const char *const names[] = {"gone", "twice", "sparse", "mapped", "fifo", "replaced"};
  for (size_t i = 0; i < COUNT(names); i++) MUST(unlink(names[i]));
  MUST(rmdir("directory"));
  close(make("replaced", "new"));
  serve(check);
}
