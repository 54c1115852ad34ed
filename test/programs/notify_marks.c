// Watches that the kernel knows by inode alone: an inotify on a file that is deleted and still open, and a fanotify with marks
// on a file, on a mount (with what it ignores) and on a whole file system; both of them also on a symbolic link itself.
#include "test.h"
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mount.h>

static int notify, deleted, wd, on_link, marks, on_deleted;
static char first_marks[4096];

static void sorted_marks(char *text, size_t size) {
  char path[64], line[512], lines[16][512];
  int count = 0;
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", marks);
  FILE *file = fopen(path, "re");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, "fanotify", 8) != 0 || count == 16) continue;
    // A mount may have another number after a restore in other namespaces.
    strcpy(lines[count++], line);
  }
  if (file != NULL) fclose(file);
  qsort(lines, (size_t)count, sizeof lines[0], (int (*)(const void *, const void *))strcmp);
  text[0] = 0;
  for (int i = 0; i < count; i++)
    snprintf(text + strlen(text), size - strlen(text), "%s", lines[i]);
}

static uint64_t fanotify_mask(int fd) {
  char buffer[4096];
  ssize_t got = read(fd, buffer, sizeof buffer);
  uint64_t seen = 0;
  for (struct fanotify_event_metadata *event = (void *)buffer; FAN_EVENT_OK(event, got);
       event = FAN_EVENT_NEXT(event, got)) {
    if (event->pid == getpid()) seen |= event->mask;
    close(event->fd);
  }
  return seen;
}

static void check(void) {
  char now[4096], buffer[4096];
  sorted_marks(now, sizeof now);
  for (size_t i = 0; now[i] != 0 || first_marks[i] != 0; i++)
    if (now[i] != first_marks[i]) {
      EXPECT(false, "marks are %.60s, were %.60s", now + i, first_marks + i);
      break;
    }
  EXPECT(read(notify, buffer, sizeof buffer) == -1 && errno == EAGAIN, "an event came from nowhere");
  EXPECT(pwrite(deleted, "x", 1, 0) == 1, "write to the deleted file: %m");
  ssize_t got = read(notify, buffer, sizeof buffer);
  struct inotify_event *event = (void *)buffer;
  EXPECT(got == sizeof *event && event->wd == wd && event->mask == IN_MODIFY,
         "%zd bytes of events, mask 0x%x", got, event->mask);

  const struct timespec times[2] = {{1, 0}, {1, 0}};
  EXPECT(utimensat(AT_FDCWD, "link", times, AT_SYMLINK_NOFOLLOW) == 0, "utimensat: %m");
  got = read(notify, buffer, sizeof buffer);
  EXPECT(got == sizeof *event && event->wd == on_link, "%zd bytes of events of the link", got);

  fanotify_mask(marks);
  close((int)MUST(open("marked", O_RDONLY | O_CLOEXEC)));
  EXPECT((fanotify_mask(marks) & FAN_OPEN) != 0, "no event of the marked file");
  fanotify_mask(on_deleted);
  EXPECT(pwrite(deleted, "y", 1, 0) == 1, "write to the deleted file: %m");
  EXPECT((fanotify_mask(on_deleted) & FAN_MODIFY) != 0, "no event of the deleted file");
  read(notify, buffer, sizeof buffer);
}

static void spoil(void) { inotify_rm_watch(notify, wd); }

int main(void) {
  begin();
  tamper = spoil;
  notify = (int)MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  deleted = (int)MUST(open("deleted", O_RDWR | O_CREAT, 0600));
  wd = (int)MUST(inotify_add_watch(notify, "deleted", IN_MODIFY));
  MUST(symlink("marked", "link"));
  on_link = (int)MUST(inotify_add_watch(notify, "link", IN_ATTRIB | IN_OPEN | IN_DONT_FOLLOW));
  on_deleted = (int)MUST(fanotify_init(FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC));
  MUST(fanotify_mark(on_deleted, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "deleted"));
  MUST(unlink("deleted"));
  marks = (int)MUST(fanotify_init(FAN_NONBLOCK | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE, O_RDONLY | O_CLOEXEC));
  close((int)MUST(open("marked", O_RDWR | O_CREAT | O_CLOEXEC, 0600)));
  MUST(fanotify_mark(marks, FAN_MARK_ADD, FAN_OPEN | FAN_MODIFY, AT_FDCWD, "marked"));
  MUST(fanotify_mark(on_deleted, FAN_MARK_ADD | FAN_MARK_DONT_FOLLOW, FAN_OPEN, AT_FDCWD, "link"));
  MUST(fanotify_mark(marks, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE | FAN_ONDIR, AT_FDCWD, "/dev/shm"));
  MUST(fanotify_mark(marks, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY,
                     FAN_ACCESS, AT_FDCWD, "/dev/shm"));
  MUST(fanotify_mark(marks, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE, AT_FDCWD, "/dev/shm"));
  sorted_marks(first_marks, sizeof first_marks);
  serve(check);
}
