// Settings of a process that are in files of /proc or in calls of their own: what a core dump holds, the login user, the nice value of the
// session's autogroup, membarrier registrations, and that it writes back for others (PR_SET_IO_FLUSHER). Where a setting is not
// permitted or not there, there is none to keep.
#include "test.h"
#include <linux/membarrier.h>

#define GET_REGISTRATIONS (1 << 9) // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3

static struct {
  char filter[64], user[64], group[64];
  long registrations, flusher;
} was;

static void write_own(const char *name, const char *text) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/%s", name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  if (write(fd, text, strlen(text)) < 0) errno = 0;
  close(fd);
}

// "/autogroup-123 nice 5": the number is the kernel's.
static void read_nice(char *text, size_t size) {
  char line[64];
  text[0] = 0;
  read_text("/proc/self/autogroup", line, sizeof line);
  char *nice = strstr(line, "nice");
  if (nice != NULL) snprintf(text, size, "%s", nice);
}

static long call_membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

static void check(void) {
  char text[64];
  read_text("/proc/self/coredump_filter", text, sizeof text);
  EXPECT(strcmp(text, was.filter) == 0, "the core dump filter is %s, and was %s", text, was.filter);
  read_text("/proc/self/loginuid", text, sizeof text);
  EXPECT(strcmp(text, was.user) == 0, "the login user is %s, and was %s", text, was.user);
  read_nice(text, sizeof text);
  EXPECT(strcmp(text, was.group) == 0, "the autogroup is %s, and was %s", text, was.group);
  EXPECT_EQ(call_membarrier(GET_REGISTRATIONS), was.registrations);
  EXPECT_EQ(call_membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED), 0);
  EXPECT_EQ(prctl(58 /* PR_GET_IO_FLUSHER */, 0, 0, 0, 0), was.flusher);
}

static void spoil(void) { write_own("coredump_filter", "0x11"); }

int main(void) {
  begin();
  tamper = spoil;
  write_own("coredump_filter", "0x2f");
  write_own("loginuid", "1234");
  write_own("autogroup", "5");
  MUST(call_membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
  MUST(call_membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
  prctl(57 /* PR_SET_IO_FLUSHER */, 1, 0, 0, 0);
  read_text("/proc/self/coredump_filter", was.filter, sizeof was.filter);
  read_text("/proc/self/loginuid", was.user, sizeof was.user);
  read_nice(was.group, sizeof was.group);
  was.registrations = call_membarrier(GET_REGISTRATIONS);
  was.flusher = prctl(58, 0, 0, 0, 0);
  serve(check);
}
