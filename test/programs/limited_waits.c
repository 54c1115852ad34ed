// Waits with a limit of which nobody but the kernel knows when they end: poll, futex, and sleeps without a place for the rest, in
// threads and in a process of its own. Each waits once, from the start of the program on. The one who asks knows how much is left.
#include "test.h"
#include <linux/futex.h>

enum { POLL_FILE, POLL_NOTHING, FUTEX_SHARED, FUTEX_OWN, NANOSLEEP, CLOCK_SLEEP, BOOT_SLEEP, IN_CHILD, KINDS, LIMIT_MS = 2000 };
static const char *const names[] = {"poll of a file", "poll of nothing",  "futex",     "private futex",
                                    "nanosleep",      "clock_nanosleep", "clock_nanosleep by boottime", "poll in a child"};
// In memory that the child has, too.
static struct {
  _Atomic int64_t took[KINDS];
  int result[KINDS], error[KINDS];
  uint32_t words[4];  // of futexes: all of it could be a time
} *shared;

static long wait_in(long kind) {
  struct timespec limit = {LIMIT_MS / 1000, LIMIT_MS % 1000 * 1000000};
  int idle[2];
  struct pollfd entry = {.events = POLLIN};
  switch (kind) {
    case POLL_FILE:
      MUST(pipe(idle));
      entry.fd = idle[0];
      return poll(&entry, 1, LIMIT_MS);
    case FUTEX_SHARED: return syscall(SYS_futex, shared->words, FUTEX_WAIT, 0, &limit, NULL, 0);
    case FUTEX_OWN: return syscall(SYS_futex, shared->words, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0);
    case NANOSLEEP: return syscall(SYS_nanosleep, &limit, NULL);
    case CLOCK_SLEEP: return clock_nanosleep(CLOCK_REALTIME, 0, &limit, NULL);
    case BOOT_SLEEP: return clock_nanosleep(CLOCK_BOOTTIME, 0, &limit, NULL);
    default: return poll(NULL, 0, LIMIT_MS);
  }
}

static void *waiter(void *argument) {
  long kind = (long)argument;
  int64_t start = now_ms(CLOCK_MONOTONIC);
  shared->result[kind] = (int)wait_in(kind);
  shared->error[kind] = shared->result[kind] == -1 ? errno : 0;
  shared->took[kind] = now_ms(CLOCK_MONOTONIC) - start;
  return NULL;
}

static bool all_ended(void) {
  for (int i = 0; i < KINDS; i++)
    if (shared->took[i] == 0) return false;
  return true;
}

static void check(void) {
  EXPECT(WITHIN(LIMIT_MS * 3, all_ended()), "not all waits have ended");
  for (int i = 0; i < KINDS; i++) {
    bool is_futex = i == FUTEX_SHARED || i == FUTEX_OWN;
    EXPECT(shared->took[i] >= LIMIT_MS - 1, "%s took %ld ms", names[i], (long)shared->took[i]);
    EXPECT_EQ(shared->error[i], is_futex ? ETIMEDOUT : 0);
  }
}

static void wake(void) { syscall(SYS_futex, shared->words, FUTEX_WAKE, 1, NULL, NULL, 0); }

int main(void) {
  begin();
  tamper = wake;
  shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (MUST(fork()) == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    waiter((void *)IN_CHILD);
    for (;;) pause();
  }
  for (long i = 0; i < IN_CHILD; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, waiter, (void *)i);
  }
  serve(check);
}
