// A file that is open by a name which is gone, while another hard link to it remains. It must be the
// same file as that link after a restore, not a copy of it. With "mnt" it is in a mount of the program's
// own, with "tmpfs" in a file system of its own, which is saved as a whole.
#include "test.h"
#include <sys/mount.h>

static int file;
static struct stat other;
static bool is_own;

static void check(void) {
  struct stat status, link;
  char text[32] = "";
  static char digit = '0';
  EXPECT(fstat(file, &status) == 0 && stat("other", &link) == 0, "stat: %m");
  EXPECT(status.st_ino == link.st_ino && status.st_dev == link.st_dev, "it is another file");
  EXPECT(is_own || link.st_ino == other.st_ino, "the other link was replaced");
  EXPECT(status.st_nlink == 1, "it has %ld names", (long)status.st_nlink);
  EXPECT(access("first", F_OK) == -1, "the first name is there again");
  EXPECT_EQ(lseek(file, 0, SEEK_CUR), 4);
  digit++;
  EXPECT(pwrite(file, &digit, 1, 0) == 1, "cannot write: %m");
  read_text("other", text, sizeof text);
  EXPECT(text[0] == digit && strcmp(text + 1, "ontent") == 0, "the other link holds %s", text);
}

// As a restore would that made a file of its own.
static void copy(void) {
  int fd = MUST(open("copy", O_RDWR | O_CREAT, 0644));
  MUST(write(fd, "content", 7));
  MUST(lseek(fd, 4, SEEK_SET));
  MUST(dup2(fd, file));
  MUST(unlink("copy"));
}

int main(int argc, char **argv) {
  begin();
  tamper = copy;
  is_own = argc > 1 && strcmp(argv[1], "tmpfs") == 0;
  if (argc > 1) {
    MUST(unshare(CLONE_NEWNS));
    MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  }
  if (is_own) {
    MUST(mkdir("own", 0700));
    MUST(mount("own", "own", "tmpfs", 0, NULL));
    MUST(chdir("own"));
  }
  file = MUST(open("first", O_RDWR | O_CREAT | O_EXCL, 0644));
  MUST(write(file, "content", 7));
  MUST(lseek(file, 4, SEEK_SET));
  MUST(link("first", "other"));
  MUST(unlink("first"));
  MUST(stat("other", &other));
  serve(check);
}
