// timerfd: clocks, interval, what is left, expirations not yet read, disarmed ones, absolute times and
// flags. A timer that goes off while the process is away is told when it is back. With "alarm" there is one of a clock for alarms.
#include "test.h"
#include <sys/timerfd.h>

enum { TICKING, FAR, ABSOLUTE, DISARMED, EXPIRED, BOOT, ALARM, MOST };
static const struct {
  clockid_t clock;
  int flags;
} kinds[] = {{CLOCK_MONOTONIC, TFD_NONBLOCK}, {CLOCK_REALTIME, 0}, {CLOCK_REALTIME, TFD_NONBLOCK},
             {CLOCK_MONOTONIC, TFD_NONBLOCK}, {CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC},
             {CLOCK_BOOTTIME, TFD_CLOEXEC}, {CLOCK_REALTIME_ALARM, 0}};
static int timers[MOST], many = MOST - 1;

static struct timespec ms(int64_t n) { return (struct timespec){n / 1000, n % 1000 * 1000000}; }
static int64_t millis(struct timespec t) { return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }

static void arm(int i, int64_t first, int64_t interval, int flags) {
  struct itimerspec set = {ms(interval), ms(first)};
  MUST(timerfd_settime(timers[i], flags, &set, NULL));
}

static void expect_left(int i, int64_t least, int64_t most, int64_t interval) {
  struct itimerspec now;
  EXPECT(timerfd_gettime(timers[i], &now) == 0, "timer %d: %m", i);
  EXPECT(millis(now.it_value) >= least && millis(now.it_value) <= most, "timer %d: %ld ms are left", i,
         (long)millis(now.it_value));
  EXPECT(millis(now.it_interval) == interval, "timer %d: interval %ld ms", i,
         (long)millis(now.it_interval));
}

static uint64_t expirations(int i) {
  uint64_t count = 0;
  return read(timers[i], &count, 8) == 8 ? count : 0;
}

static void make_expired(void) {
  arm(EXPIRED, 1, 0, 0);
  sleep_ms(5);
}

static void check(void) {
  char path[64], text[64];
  for (int i = 0; i < many; i++) {
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", timers[i]);
    field_of(path, "clockid", text, sizeof text);
    EXPECT(atoi(text) == kinds[i].clock, "timer %d has the clock %s", i, text);
    EXPECT(!(fcntl(timers[i], F_GETFL) & O_NONBLOCK) == !(kinds[i].flags & TFD_NONBLOCK), "O_NONBLOCK");
    EXPECT(!fcntl(timers[i], F_GETFD) == !(kinds[i].flags & TFD_CLOEXEC), "FD_CLOEXEC");
  }
  expect_left(TICKING, 0, 20, 20); // in the last millisecond 0; that it is armed is seen below
  EXPECT(WITHIN(5000, expirations(TICKING) > 0), "the timer does not tick");
  EXPECT(WITHIN(5000, expirations(TICKING) > 0), "the timer does not tick again");
  expect_left(FAR, 500000, 1000000, 2500);
  expect_left(ABSOLUTE, 500000, 1000000, 0);
  expect_left(DISARMED, 0, 0, 0);
  EXPECT(expirations(DISARMED) == 0 && errno == EAGAIN, "the disarmed timer went off");
  expect_left(BOOT, 300000, 600000, 0);
  if (many > ALARM) expect_left(ALARM, 500000, 1000000, 7000);
  EXPECT_EQ(expirations(EXPIRED), 1);
  expect_left(EXPIRED, 0, 0, 0);
  make_expired();
}

static void forget(void) { expirations(EXPIRED); }

int main(int argc, char **argv) {
  begin();
  tamper = forget;
  if (argc > 1 && strcmp(argv[1], "alarm") == 0) many = MOST;
  for (int i = 0; i < many; i++) timers[i] = MUST(timerfd_create(kinds[i].clock, kinds[i].flags));
  arm(TICKING, 20, 20, 0);
  arm(FAR, 1000000, 2500, 0);
  arm(ABSOLUTE, now_ms(CLOCK_REALTIME) + 1000000, 0, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  arm(BOOT, 600000, 0, 0);
  if (many > ALARM) arm(ALARM, now_ms(CLOCK_REALTIME) + 1000000, 7000, TFD_TIMER_ABSTIME);
  make_expired();
  serve(check);
}
