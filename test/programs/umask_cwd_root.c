// What CLONE_FS shares: file mode mask, current directory, root directory. With the argument `chroot` the
// root is a directory of ours; there is no /proc in it then.
#include "test.h"

static bool jailed;
static struct stat root, current;

static void check(void) {
  struct stat now;
  char path[4096];
  mode_t mask = umask(0);
  umask(mask);
  EXPECT(mask == 0137, "the mask is %o", mask);
  EXPECT(stat("/", &now) == 0 && now.st_ino == root.st_ino && now.st_dev == root.st_dev,
         "the root is another directory");
  EXPECT(stat(".", &now) == 0 && now.st_ino == current.st_ino && now.st_dev == current.st_dev,
         "the current directory is another one");
  EXPECT(getcwd(path, sizeof path) != NULL, "getcwd: %m");
  EXPECT(jailed ? strcmp(path, "/inner/cwd") == 0 : strstr(path, "/jail/inner/cwd") != NULL,
         "the current directory is %s", path);
  int file = open("made", O_CREAT | O_EXCL | O_WRONLY, 0777);
  EXPECT(file >= 0 && fstat(file, &now) == 0 && (now.st_mode & 0777) == 0640,
         "a new file has the mode %o", now.st_mode & 0777);
  EXPECT(access("../cwd/made", F_OK) == 0, "a new file is not where it should be");
  if (jailed) EXPECT(access("/inner/cwd/made", F_OK) == 0, "a new file is not under the root");
  close(file);
  unlink("made");
}

static void other_mask(void) { umask(022); }

int main(int argc, char **argv) {
  begin();
  tamper = other_mask;
  jailed = argc > 1 && strcmp(argv[1], "chroot") == 0;
  MUST(mkdir("jail", 0755));
  MUST(mkdir("jail/inner", 0755));
  MUST(mkdir("jail/inner/cwd", 0755));
  if (jailed) {
    MUST(chroot("jail"));
    MUST(chdir("/inner/cwd"));
  } else MUST(chdir("jail/inner/cwd"));
  umask(0137);
  MUST(stat("/", &root));
  MUST(stat(".", &current));
  serve(check);
}
