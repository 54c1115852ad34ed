// Open directories: the position of a listing, use with the *at calls, and descriptors of O_PATH, of a
// directory and of a file.
#include "test.h"
#include <dirent.h>

enum { ENTRIES = 40 };
static DIR *listing;
static char rest[ENTRIES][16];  // what the listing still has to tell, as seen by the first pass
static int rest_count;
static int path_directory, path_file, plain;
static long position;

static void check(void) {
  struct dirent *entry;
  int seen = 0;
  char text[16];
  struct stat status;
  EXPECT(lseek(dirfd(listing), 0, SEEK_CUR) == position, "the position is %ld, wanted %ld",
         (long)lseek(dirfd(listing), 0, SEEK_CUR), position);
  seekdir(listing, position); // drops what libc has read ahead: the kernel tells the rest
  for (; (entry = readdir(listing)) != NULL; seen++)
    EXPECT(seen < rest_count && strcmp(entry->d_name, rest[seen]) == 0, "entry %d is %s, wanted %s",
           seen, entry->d_name, rest[seen]);
  EXPECT_EQ(seen, rest_count);
  seekdir(listing, position);
  EXPECT((fcntl(path_directory, F_GETFL) & (O_PATH | O_DIRECTORY)) == (O_PATH | O_DIRECTORY),
         "the flags of the directory are %o", fcntl(path_directory, F_GETFL));
  EXPECT((fcntl(path_file, F_GETFL) & O_PATH) == O_PATH, "the flags of the file changed");
  EXPECT(read(path_file, text, 1) == -1 && errno == EBADF, "an O_PATH descriptor can be read");
  EXPECT(fstat(path_file, &status) == 0 && S_ISREG(status.st_mode), "it is no file");
  int fd = openat(path_directory, "entry-3", O_RDONLY | O_CLOEXEC);
  EXPECT(fd >= 0 && read(fd, text, sizeof text) == 7, "openat under the O_PATH directory: %m");
  close(fd);
  EXPECT(fstatat(plain, "listed/entry-5", &status, 0) == 0, "fstatat under the directory: %m");
  EXPECT_EQ(fcntl(plain, F_GETFD), FD_CLOEXEC);
}

static void rewind_it(void) { rewinddir(listing); }

int main(void) {
  begin();
  tamper = rewind_it;
  char name[64];
  MUST(mkdir("listed", 0755));
  for (int i = 0; i < ENTRIES; i++) {
    snprintf(name, sizeof name, "listed/entry-%d", i);
    tell(name, "content");
  }
  listing = opendir("listed");
  MUST(listing == NULL ? -1 : 0);
  for (int i = 0; i < ENTRIES / 2; i++) readdir(listing);
  position = telldir(listing);
  for (struct dirent *entry; (entry = readdir(listing)) != NULL && rest_count < ENTRIES;)
    strcpy(rest[rest_count++], entry->d_name);
  seekdir(listing, position);
  path_directory = MUST(open("listed", O_PATH | O_DIRECTORY));
  path_file = MUST(open("listed/entry-3", O_PATH));
  plain = MUST(open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  serve(check);
}
