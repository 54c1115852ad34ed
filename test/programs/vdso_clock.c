// The clocks that glibc reads through the vdso, and which processor we are on: what they say is what the system calls say.
// After a restore on another kernel they go through jumps (test/live/vdso.test.ts).
#include "test.h"
#include <sys/auxv.h>
#include <sys/time.h>

static unsigned long base;

// The vdso's reading lies between two readings by system call.
static void check_clock(clockid_t clock) {
  struct timespec before, seen, after;
  syscall(SYS_clock_gettime, clock, &before);
  EXPECT_EQ(clock_gettime(clock, &seen), 0);
  syscall(SYS_clock_gettime, clock, &after);
  int64_t low = before.tv_sec * 1000000000LL + before.tv_nsec;
  int64_t mid = seen.tv_sec * 1000000000LL + seen.tv_nsec;
  int64_t high = after.tv_sec * 1000000000LL + after.tv_nsec;
  EXPECT(low <= mid && mid <= high, "clock %d: %ld is not in %ld-%ld", clock, (long)mid, (long)low,
         (long)high);
}

static void check(void) {
  check_clock(CLOCK_REALTIME);
  check_clock(CLOCK_MONOTONIC);
  check_clock(CLOCK_BOOTTIME);
  check_clock(CLOCK_MONOTONIC_COARSE);
  struct timeval now;
  EXPECT_EQ(gettimeofday(&now, NULL), 0);
  time_t seconds = time(NULL);
  EXPECT(seconds - now.tv_sec <= 1 && now.tv_sec <= seconds + 1, "time() is %ld, gettimeofday %ld",
         (long)seconds, (long)now.tv_sec);
  struct timespec resolution;
  EXPECT_EQ(clock_getres(CLOCK_MONOTONIC, &resolution), 0);
  EXPECT(resolution.tv_sec == 0 && resolution.tv_nsec > 0, "resolution is %ld ns", resolution.tv_nsec);
  unsigned processor = 99999, node;
  EXPECT_EQ(getcpu(&processor, &node), 0);
  EXPECT(processor < 99999, "getcpu does not say a processor");
  char permissions[5];
  maps_permissions((void *)base, permissions);
  EXPECT(strcmp(permissions, "r-xp") == 0, "the vdso is %s", permissions);
  EXPECT_EQ(getauxval(AT_SYSINFO_EHDR), base);
}

int main(void) {
  begin();
  base = getauxval(AT_SYSINFO_EHDR);
  serve(check);
}
