// Sleeping threads: clock_nanosleep relative and absolute, nanosleep, on several clocks. A sleep that a
// checkpoint falls into goes on after it: it is never short, and never ends with EINTR.
#include "test.h"

enum { SLEEP_MS = 250 };
static const struct {
  clockid_t clock;
  bool absolute;
  const char *name;
} kinds[] = {
    {CLOCK_MONOTONIC, false, "relative monotonic"},
    {CLOCK_MONOTONIC, true, "absolute monotonic"},
    {CLOCK_REALTIME, false, "relative realtime"},
    {CLOCK_REALTIME, true, "absolute realtime"},
    {CLOCK_BOOTTIME, false, "relative boottime"},
    {-1, false, "nanosleep"},
};
static atomic_long rounds[COUNT(kinds)];
static pthread_t threads[COUNT(kinds)];

static void *sleeper(void *argument) {
  size_t kind = (size_t)argument;
  clockid_t clock = kinds[kind].clock == -1 ? CLOCK_MONOTONIC : kinds[kind].clock;
  for (;;) {
    struct timespec wanted = {0, SLEEP_MS * 1000000L}, left;
    int64_t start = now_ms(clock);
    int result;
    if (kinds[kind].clock == -1) result = nanosleep(&wanted, &left) == 0 ? 0 : errno;
    else if (!kinds[kind].absolute) result = clock_nanosleep(clock, 0, &wanted, &left);
    else {
      int64_t end = start + SLEEP_MS + 1;
      wanted = (struct timespec){end / 1000, end % 1000 * 1000000};
      result = clock_nanosleep(clock, TIMER_ABSTIME, &wanted, &left);
    }
    int64_t slept = now_ms(clock) - start;
    EXPECT(result == 0, "%s: ended with %s", kinds[kind].name, strerror(result));
    EXPECT(slept >= SLEEP_MS - 1, "%s: slept %ld ms only", kinds[kind].name, (long)slept);
    rounds[kind]++;
  }
  return NULL;
}

static void check(void) {
  for (size_t i = 0; i < COUNT(kinds); i++) {
    long before = rounds[i];
    // The sleep that was going on may be as long as it was; one more must come soon after.
    EXPECT(WITHIN(5000, rounds[i] > before), "%s: does not end", kinds[i].name);
  }
}

static void on_interrupt(int signal) { (void)signal; }
static void interrupt(void) { pthread_kill(threads[0], SIGUSR2); }

int main(void) {
  begin();
  tamper = interrupt;
  signal(SIGUSR2, on_interrupt);
  for (size_t i = 0; i < COUNT(kinds); i++)
    pthread_create(&threads[i], NULL, sleeper, (void *)i);
  serve(check);
}
