// For programs in a mount namespace of their own.
#pragma once
#include "test.h"
#include <sys/mount.h>

// Enters one in which nothing but the root of outside stays, and what is mounted on `outside` in the current directory, and starts
// the program anew there, with "inside" and an argument.
SHARED_HELPER void leave_outside(const char *argument) {
  char line[4096], point[1024], points[512][256], kept[1024];
  int count = 0;
  MUST(getcwd(kept, sizeof kept - 16) == NULL ? -1 : 0);
  strcat(kept, "/outside");
  MUST(unshare(CLONE_NEWNS));
  MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  FILE *file = fopen("/proc/self/mountinfo", "re");
  while (fgets(line, sizeof line, file) != NULL && count < 512)
    if (sscanf(line, "%*d %*d %*s %*s %1023s", point) == 1 && strcmp(point, "/") != 0 &&
        strcmp(point, kept) != 0)
      snprintf(points[count++], sizeof points[0], "%.255s", point);
  fclose(file);
  while (count-- > 0) umount2(points[count], MNT_DETACH);
  MUST(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
  int out = (int)MUST(open("out", O_WRONLY | O_APPEND));
  for (int fd = 0; fd < 3; fd++) MUST(dup2(out, fd));
  close(out);
  // The program itself, too, is to be a file of the new namespace: CRIU looks for its mount there.
  char self[1024] = "";
  MUST(readlink("/proc/self/exe", self, sizeof self - 1));
  MUST(execl(self, self, "inside", argument, NULL));
}
