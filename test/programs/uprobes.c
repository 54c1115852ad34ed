// A function of this program with a uprobe, which somebody outside of the tree has set: a process that is nobody's child. The function
// works, and is probed again when the program is back. With "unused" the probe is not hit before, so that the kernel has made no area for
// it; with "return" it waits for the return of a function. The watcher leaves at the note "leave", and then says "left".
#include "test.h"
#include <linux/perf_event.h>
#include <sys/ioctl.h>

static const char *how;

// The first instruction is one that the kernel steps out of line, so it makes its area for it.
__asm__(".text\n.type probed, @function\nprobed:\n lea 1(%rdi), %rax\n ret\n.size probed, .-probed\n");
long probed(long value);

__attribute__((noinline)) static void *waits(void *unused) {
  for (;;) pause();
  return unused;
}

static uint64_t offset_in_file(const void *address) {
  char line[1024];
  uint64_t found = 0;
  FILE *file = fopen("/proc/self/maps", "re");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    unsigned long start, end, offset;
    if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 && (uintptr_t)address >= start && (uintptr_t)address < end)
      found = (uintptr_t)address - start + offset;
  }
  if (file != NULL) fclose(file);
  return found;
}

// Sets the probe, and holds it until the note "leave", or until the directory of the test is gone.
static void watch(void) {
  char text[32], path[4096] = "";
  struct perf_event_attr attr = {.size = sizeof attr};
  MUST(read_text("/sys/bus/event_source/devices/uprobe/type", text, sizeof text));
  MUST(readlink("/proc/self/exe", path, sizeof path - 1));
  attr.type = (uint32_t)atoi(text);
  attr.config1 = (uintptr_t)path;
  bool of_return = strcmp(how, "return") == 0;
  attr.config = of_return;
  attr.config2 = offset_in_file(of_return ? (void *)waits : (void *)probed);
  // On one processor is on all: the breakpoint is in the file's pages for everybody.
  int event = (int)syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
  tell_number("watching", event < 0 ? -errno : event);
  while (access(".", F_OK) == 0 && access("leave", F_OK) != 0) sleep_ms(10);
  close(event);
  if (access(".", F_OK) == 0) tell_number("left", 1);
  _exit(0);
}

static bool has_area(void) {
  char line[1024];
  bool found = false;
  FILE *file = fopen("/proc/self/maps", "re");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) found |= strstr(line, "[uprobes") != NULL;
  if (file != NULL) fclose(file);
  return found;
}

static void check(void) {
  bool watched = access("left", F_OK) != 0;
  if (strcmp(how, "unused") == 0 && !final_round) return;
  EXPECT_EQ(probed(41), 42);
  EXPECT_EQ(has_area(), watched);
  if (final_round) tell_number("leave", 1);
}

int main(int argc, char **argv) {
  begin();
  how = argc > 1 ? argv[1] : "";
  pid_t middle = (pid_t)MUST(fork());
  if (middle == 0) {
    if (fork() != 0) _exit(0);
    setsid();
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    watch();
  }
  waitpid(middle, NULL, 0);
  errno = -(int)hear_number("watching");
  MUST(errno <= 0 ? 0 : -1);
  if (strcmp(how, "return") == 0) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, waits, NULL) == 0 ? 0 : -1);
    MUST(WITHIN(5000, has_area()) ? 0 : -1);
  }
  if (strcmp(how, "unused") != 0) EXPECT_EQ(probed(1), 2);
  serve(check);
}
