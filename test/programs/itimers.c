// Interval timers of setitimer: REAL ticks on with its interval; VIRTUAL and PROF, which count
// processor time, keep interval and what is left; a one-shot REAL in a child still goes off.
#include "test.h"
#include <sys/time.h>

enum { TICK_MS = 20, ONCE_MS = 2500 };
static volatile sig_atomic_t ticks, spent;
static pid_t child;
static int64_t child_start;
static int checks;

static void on_tick(int signal) {
  if (signal == SIGALRM) ticks++;
  else spent++;
}

static struct itimerval timer(long first_us, long interval_us) {
  return (struct itimerval){{interval_us / 1000000, interval_us % 1000000},
                            {first_us / 1000000, first_us % 1000000}};
}

static int64_t micros(struct timeval t) { return t.tv_sec * 1000000LL + t.tv_usec; }

static void expect_timer(const char *name, int which, int64_t most, int64_t interval) {
  struct itimerval now;
  EXPECT(getitimer(which, &now) == 0, "getitimer: %m");
  EXPECT(micros(now.it_interval) == interval, "%s: interval %ld us", name,
         (long)micros(now.it_interval));
  // The timers of processor time count in ticks, and say one more when they are read; each time they are saved and set
  // again they gain that tick.
  most += 10000 * (checks + 1);
  EXPECT(micros(now.it_value) > 0 && micros(now.it_value) <= most, "%s: %ld us are left", name,
         (long)micros(now.it_value));
}

static void child_setup(void) {
  struct itimerval once = timer(ONCE_MS * 1000, 0);
  child_start = now_ms(CLOCK_MONOTONIC);
  setitimer(ITIMER_REAL, &once, NULL);
  ticks = 0;
}

// Asked last: the timer has not gone off early, and does go off.
static void child_check(void) {
  struct itimerval now;
  getitimer(ITIMER_REAL, &now);
  int64_t passed = now_ms(CLOCK_MONOTONIC) - child_start;
  EXPECT(ticks <= 1, "the one-shot timer went off %d times", (int)ticks);
  EXPECT(ticks == 0 || passed >= ONCE_MS - 1, "the one-shot timer went off after %ld ms", (long)passed);
  EXPECT(micros(now.it_interval) == 0, "the one-shot timer has an interval");
  EXPECT(ticks == 1 || micros(now.it_value) > 0, "the one-shot timer is neither armed nor over");
}

static void check(void) {
  checks++;
  expect_timer("real", ITIMER_REAL, TICK_MS * 1000, TICK_MS * 1000);
  expect_timer("virtual", ITIMER_VIRTUAL, 1000 * 1000000LL, 500 * 1000000LL);
  expect_timer("prof", ITIMER_PROF, 2000 * 1000000LL, 0);
  int before = ticks;
  EXPECT(WITHIN(5000, ticks >= before + 3), "the real timer does not tick");
  EXPECT(spent == 0, "a processor time timer went off");
  ask_child(child);
}

static void disarm(void) {
  struct itimerval none = timer(0, 0);
  setitimer(ITIMER_PROF, &none, NULL);
}

int main(void) {
  begin();
  signal(SIGALRM, on_tick);
  signal(SIGVTALRM, on_tick);
  signal(SIGPROF, on_tick);
  child = start_child(child_setup, child_check);
  tamper = disarm;
  struct itimerval real = timer(TICK_MS * 1000, TICK_MS * 1000);
  struct itimerval virtual = timer(1000 * 1000000L, 500 * 1000000L);
  struct itimerval prof = timer(2000 * 1000000L, 0);
  MUST(setitimer(ITIMER_REAL, &real, NULL));
  MUST(setitimer(ITIMER_VIRTUAL, &virtual, NULL));
  MUST(setitimer(ITIMER_PROF, &prof, NULL));
  serve(check);
}
