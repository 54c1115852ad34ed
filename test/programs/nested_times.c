// Children in time namespaces of their own, below a program that stays in its own (or, with the argument own, in a further one; with the
// argument user, the second is in a user namespace): one has entered it, one has made it for its children alone, and has one in it and
// makes another at each check, and one has made it and has no child yet. Their clocks stay as far apart as they were, and timers go on.
#include "test.h"
#include <sys/timerfd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static pid_t entered, maker, fresh, inner;
static bool with_user;
static int timer;
// What the machine's clocks are off in the program's own namespace; the offsets of further ones count from the machine's, too.
static int64_t base, end_ms;
// What the program's own clocks said at its check, and how far they are from those of the machine; in nanoseconds.
static struct clocks {
  int64_t monotonic, boottime, offset;
} *outer;

static int64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ino_t inode_of(const char *path) {
  struct stat now = {0};
  EXPECT(stat(path, &now) == 0, "%s: %m", path);
  return now.st_ino;
}

static bool children_live_elsewhere(void) {
  return inode_of("/proc/self/ns/time") != inode_of("/proc/self/ns/time_for_children");
}

static void write_text(const char *path, const char *text) {
  int fd = (int)MUST(open(path, O_WRONLY | O_CLOEXEC));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static void make(long monotonic, long boottime) {
  char text[64];
  snprintf(text, sizeof text, "1 %ld 500\n7 %ld 0\n", monotonic, boottime);
  MUST(unshare(CLONE_NEWTIME));
  write_text("/proc/self/timens_offsets", text);
}

static void enter(void) {
  int fd = (int)MUST(open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC));
  MUST(setns(fd, CLONE_NEWTIME));
  close(fd);
}

static void expect_offsets(int64_t monotonic, int64_t boottime) {
  // Both were read within this request: the vdso and the kernel must say the same, too.
  struct timespec kernel;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel);
  int64_t ahead = now_ns(CLOCK_MONOTONIC) - (kernel.tv_sec * 1000000000LL + kernel.tv_nsec);
  EXPECT(ahead >= 0 && ahead < 2000000000LL, "the vdso is %lld ns ahead of the kernel", (long long)ahead);
  int64_t apart = now_ns(CLOCK_MONOTONIC) - outer->monotonic - monotonic * 1000000000LL;
  EXPECT(apart >= 0 && apart < 5000000000LL, "the monotonic clock is %lld ns off", (long long)apart);
  apart = now_ns(CLOCK_BOOTTIME) - outer->boottime - boottime * 1000000000LL;
  EXPECT(apart >= 0 && apart < 5000000000LL, "the clock since boot is %lld ns off", (long long)apart);
}

static void setup_entered(void) {
  make(1000000, 2000000);
  enter();
  timer = (int)MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  struct itimerspec at = {{0, 0}, {0, 0}};
  end_ms = now_ms(CLOCK_MONOTONIC) + 3600 * 1000;
  at.it_value.tv_sec = end_ms / 1000;
  MUST(timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL));
}

static void check_entered(void) {
  expect_offsets(1000000 - base, 2000000 - base);
  EXPECT(!children_live_elsewhere(), "children live elsewhere");
  struct itimerspec left;
  timerfd_gettime(timer, &left);
  int64_t off = now_ms(CLOCK_MONOTONIC) + left.it_value.tv_sec * 1000 - end_ms;
  // What is left of it counts, not the moment: it stands still while nobody runs.
  EXPECT(off > -2000 && off < 60000, "the timer ends %lld ms off", (long long)off);
}

static void check_inner(void) { expect_offsets(5000 - base, -1 - base); }

static void setup_maker(void) {
  if (with_user) {
    MUST(unshare(CLONE_NEWUSER));
    write_text("/proc/self/setgroups", "deny");
    write_text("/proc/self/uid_map", "0 0 1");
    write_text("/proc/self/gid_map", "0 0 1");
  }
  make(5000, -1);
  inner = start_child(NULL, check_inner);
}

/** Ends with 0 if it is in the namespace of the first child, whose clocks have the same offsets. */
static int look_as_newborn(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/time", inner);
  if (inode_of(path) != inode_of("/proc/self/ns/time")) return 1;
  int64_t apart = now_ns(CLOCK_MONOTONIC) - outer->monotonic - (5000 - base) * 1000000000LL;
  return apart >= 0 && apart < 5000000000LL ? 0 : 2;
}

static void check_maker(void) {
  expect_offsets(0, 0);
  EXPECT(children_live_elsewhere(), "children live in the same namespace");
  ask_child(inner);
  pid_t child = fork();
  if (child == 0) _exit(look_as_newborn());
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && status == 0, "a new child ended with %x", (unsigned)status);
}

/** The offset of the monotonic clock in the namespace of the next children. */
static int64_t offset_of_children(void) {
  char text[128];
  long long seconds = 0, rest = 0;
  read_text("/proc/self/timens_offsets", text, sizeof text);
  EXPECT(sscanf(text, "monotonic %lld %lld", &seconds, &rest) == 2, "timens_offsets says %s", text);
  return seconds * 1000000000LL + rest;
}

static void setup_fresh(void) { make(77, 0); }

static void check_fresh(void) {
  expect_offsets(0, 0);
  EXPECT(children_live_elsewhere(), "children live in the same namespace");
  EXPECT_EQ(offset_of_children() - outer->offset, (77 - base) * 1000000000LL + (base == 0 ? 500 : 0));
}

static void check(void) {
  outer->monotonic = now_ns(CLOCK_MONOTONIC);
  outer->boottime = now_ns(CLOCK_BOOTTIME);
  outer->offset = offset_of_children();
  ask_child(entered);
  ask_child(maker);
  ask_child(fresh);
}

static void spoil(void) { outer = map_anon(PAGE, PROT_READ | PROT_WRITE); }

int main(int argc, char **argv) {
  begin();
  if (argc > 1 && strcmp(argv[1], "own") == 0) {
    base = 300000;
    make(base, base);
    enter();
  }
  with_user = argc > 1 && strcmp(argv[1], "user") == 0;
  outer = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  entered = start_child(setup_entered, check_entered);
  maker = start_child(setup_maker, check_maker);
  fresh = start_child(setup_fresh, check_fresh);
  tamper = spoil;
  serve(check);
}
