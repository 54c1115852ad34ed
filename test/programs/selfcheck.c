// A process that nobody may harm: all the time it compares its registers, 4 MiB of memory, signal
// mask, descriptors and number of mappings with what they were, and appends a heartbeat to a file.
// For trials in which a checkpointer is killed at any moment: it must simply go on.
#include "registers.h"
#include <dirent.h>

static struct register_set set;
static struct registers pattern;
static unsigned char *memory;
static int heartbeat_file;
static long heartbeat;
static sigset_t first_mask;
static char first_descriptors[4096], now_descriptors[4096];
static int first_maps;

// One line `number target` for each descriptor, without the one that lists them.
static void list_descriptors(char *text, size_t size) {
  char target[256], path[64];
  size_t length = 0;
  DIR *directory = opendir("/proc/self/fd");
  EXPECT(directory != NULL, "cannot open /proc/self/fd: %m");
  if (directory == NULL) return;
  for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    int fd = atoi(entry->d_name);
    if (entry->d_name[0] == '.' || fd == dirfd(directory)) continue;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(path, target, sizeof target - 1);
    target[got < 0 ? 0 : got] = 0;
    length += snprintf(text + length, size - length, "%d %s\n", fd, target);
  }
  closedir(directory);
}

// Mappings, each with those right behind it that differ in nothing: the kernel splits and joins them as it likes.
static int count_maps(void) {
  static char text[64 * 1024];
  char last_kind[256] = "", kind[256];
  unsigned long last_end = 0, start, end;
  int count = 0, length;
  read_text("/proc/self/maps", text, sizeof text);
  for (char *line = text; line != NULL && *line; line = strchr(line, '\n'), line += line != NULL) {
    char permissions[5], device[16];
    unsigned long inode;
    if (sscanf(line, "%lx-%lx %4s %*x %15s %lu%n", &start, &end, permissions, device, &inode, &length) != 5) continue;
    snprintf(kind, sizeof kind, "%s %s %lu%.*s", permissions, device, inode,
             (int)strcspn(line + length, "\n"), line + length);
    if (start != last_end || strcmp(kind, last_kind) != 0) count++;
    strcpy(last_kind, kind);
    last_end = end;
  }
  return count;
}

static void look(void) {
  sigset_t mask;
  char line[32];
  registers_pattern(&pattern, heartbeat);
  registers_verify(&set, &pattern, 2000000);
  EXPECT(filled(memory, 4 * MIB, 77), "the memory changed");
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  for (int i = 1; i < 65; i++)
    EXPECT(sigismember(&mask, i) == sigismember(&first_mask, i), "signal %d in the mask changed", i);
  list_descriptors(now_descriptors, sizeof now_descriptors);
  EXPECT(strcmp(first_descriptors, now_descriptors) == 0, "descriptors are now %s", now_descriptors);
  EXPECT_EQ(count_maps(), first_maps);
  int length = snprintf(line, sizeof line, "%ld\n", ++heartbeat);
  EXPECT(write(heartbeat_file, line, length) == length, "cannot append: %m");
}

static void check(void) {
  look();
  // The heartbeats in the file are all there, in order.
  FILE *file = fopen("selfcheck.heartbeat", "re");
  long seen = 0, number;
  while (file != NULL && fscanf(file, "%ld", &number) == 1)
    EXPECT(number == ++seen, "heartbeat %ld stands in line %ld", number, seen);
  if (file != NULL) fclose(file);
  EXPECT_EQ(seen, heartbeat);
}

static void flip_bit(void) { memory[MIB] ^= 1; }

int main(void) {
  begin();
  tamper = flip_bit;
  set = registers_available();
  memory = map_anon(4 * MIB, PROT_READ | PROT_WRITE);
  fill(memory, 4 * MIB, 77);
  heartbeat_file = MUST(open("selfcheck.heartbeat", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644));
  sigset_t some;
  sigemptyset(&some);
  sigaddset(&some, SIGRTMIN + 3);
  sigprocmask(SIG_BLOCK, &some, NULL);
  pthread_sigmask(SIG_SETMASK, NULL, &first_mask);
  look();
  failure_taken = 0; // the first look had nothing to compare with
  list_descriptors(first_descriptors, sizeof first_descriptors);
  first_maps = count_maps();
  serve_ticking(check, 1, look);
}
