// Resource limits: each soft and hard limit lowered to a value of its own, and two of them felt.
#include "test.h"
#include <sys/resource.h>

static struct {
  int resource;
  const char *name;
  rlim_t soft, hard;
} limits[] = {
    {RLIMIT_CPU, "CPU", 100000, 200000},
    {RLIMIT_FSIZE, "FSIZE", 64 * MIB, 65 * MIB},
    {RLIMIT_DATA, "DATA", 1024 * MIB, 1025 * MIB},
    {RLIMIT_STACK, "STACK", 6 * MIB, 7 * MIB},
    {RLIMIT_CORE, "CORE", 0, 0},
    {RLIMIT_RSS, "RSS", 800 * MIB, 801 * MIB},
    {RLIMIT_NPROC, "NPROC", 5000, 5001},
    {RLIMIT_NOFILE, "NOFILE", 100, 200},
    {RLIMIT_MEMLOCK, "MEMLOCK", 1 * MIB, 2 * MIB},
    {RLIMIT_AS, "AS", 2000 * MIB, 2001 * MIB},
    {RLIMIT_LOCKS, "LOCKS", 300, 301},
    {RLIMIT_SIGPENDING, "SIGPENDING", 400, 401},
    {RLIMIT_MSGQUEUE, "MSGQUEUE", 50000, 60000},
    {RLIMIT_NICE, "NICE", 10, 11},
    {RLIMIT_RTPRIO, "RTPRIO", 5, 6},
    {RLIMIT_RTTIME, "RTTIME", 7000000, RLIM_INFINITY},
};

static void check(void) {
  for (size_t i = 0; i < COUNT(limits); i++) {
    struct rlimit now;
    EXPECT(getrlimit(limits[i].resource, &now) == 0, "getrlimit: %m");
    EXPECT(now.rlim_cur == limits[i].soft && now.rlim_max == limits[i].hard,
           "%s is %lu and %lu, wanted %lu and %lu", limits[i].name, now.rlim_cur, now.rlim_max,
           limits[i].soft, limits[i].hard);
  }
  EXPECT(fcntl(0, F_DUPFD, 99) == 99 && close(99) == 0, "descriptor 99 is not possible: %m");
  EXPECT(fcntl(0, F_DUPFD, 100) == -1 && errno == EINVAL, "descriptor 100 is possible");
  EXPECT(mmap(NULL, 3000 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED,
         "the address space has no limit");
}

static void lower(void) { setrlimit(RLIMIT_RSS, &(struct rlimit){MIB, 801 * MIB}); }

int main(void) {
  begin();
  tamper = lower;
  for (size_t i = 0; i < COUNT(limits); i++) {
    struct rlimit set;
    // What is lower already stays: we may not be allowed to raise it.
    MUST(getrlimit(limits[i].resource, &set));
    if (limits[i].hard > set.rlim_max) limits[i].hard = set.rlim_max;
    if (limits[i].soft > limits[i].hard) limits[i].soft = limits[i].hard;
    set = (struct rlimit){limits[i].soft, limits[i].hard};
    MUST(setrlimit(limits[i].resource, &set));
  }
  serve(check);
}
