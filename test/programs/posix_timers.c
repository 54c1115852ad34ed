// Timers of timer_create, by the bare system calls, so that the kernel's ids are seen (with gaps): on
// several clocks, by signal, by none, to a thread; ticking, one-shot, disarmed, and overrun.
#include "test.h"

struct kernel_event { // struct sigevent as the kernel reads it
  long value;
  int signal, notify, thread;
  char rest[64 - 20];
};

static struct {
  clockid_t clock;
  int notify, signal, ms, interval_ms; // ms 0: not armed
  bool gap;                            // deleted again, so that its id is free
  int id;
} timers[] = {
    {CLOCK_REALTIME, SIGEV_SIGNAL, 34 + 2, 1000000, 2000, false, 0},
    {CLOCK_MONOTONIC, SIGEV_SIGNAL, 34 + 2, 1000, 1000, true, 0},
    {CLOCK_MONOTONIC, SIGEV_NONE, 0, 1000000, 500, false, 0},
    {CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0, true, 0},
    {CLOCK_MONOTONIC, SIGEV_THREAD_ID, 34 + 3, 10, 10, false, 0}, // ticks
    {CLOCK_BOOTTIME, SIGEV_SIGNAL, 34 + 4, 0, 0, false, 0},
    {CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, 34 + 5, 1000000, 0, false, 0},
    {CLOCK_TAI, SIGEV_NONE, 0, 900000, 0, false, 0},
    {CLOCK_MONOTONIC, SIGEV_SIGNAL, 34 + 6, 1, 1, false, 0}, // overruns: its signal is blocked
};
enum { TICKS = 4, DISARMED = 5, OVERRUNS = 8 };
static volatile sig_atomic_t ticks, other;
static char first_list[4096];

static void on_signal(int signal, siginfo_t *info, void *context) {
  (void)context;
  EXPECT(info->si_code == SI_TIMER, "signal %d has the code %d", signal, info->si_code);
  if (signal == 34 + 3 && info->si_value.sival_int == 1000 + TICKS) ticks++;
  else other++;
}

static int64_t millis(struct timespec t) { return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }

static void check(void) {
  char list[4096];
  read_text("/proc/self/timers", list, sizeof list);
  EXPECT(strcmp(list, first_list) == 0, "the timers are now %s", list);
  for (size_t i = 0; i < COUNT(timers); i++) {
    struct itimerspec now;
    if (timers[i].gap) continue;
    EXPECT(syscall(SYS_timer_gettime, timers[i].id, &now) == 0, "timer %zu: %m", i);
    EXPECT(millis(now.it_interval) == timers[i].interval_ms, "timer %zu: interval %ld ms", i,
           (long)millis(now.it_interval));
    EXPECT(millis(now.it_value) <= timers[i].ms, "timer %zu: %ld ms are left", i,
           (long)millis(now.it_value));
    if (timers[i].ms > 1000)
      EXPECT(millis(now.it_value) > timers[i].ms / 2, "timer %zu: only %ld ms are left", i,
             (long)millis(now.it_value));
  }
  int before = ticks;
  EXPECT(WITHIN(5000, ticks >= before + 3), "the ticking timer does not tick");
  EXPECT(other == 0, "a timer went off that should not");
  sigset_t blocked;
  siginfo_t info;
  sigemptyset(&blocked);
  sigaddset(&blocked, 34 + 6);
  sleep_ms(20);
  EXPECT(sigtimedwait(&blocked, &info, &(struct timespec){1, 0}) == 34 + 6, "no blocked tick: %m");
  EXPECT(info.si_value.sival_int == 1000 + OVERRUNS, "its value is %d", info.si_value.sival_int);
  EXPECT(info.si_overrun >= 5, "it overran %d times only", info.si_overrun);
}

static void delete_one(void) { syscall(SYS_timer_delete, timers[DISARMED].id); }

int main(void) {
  begin();
  tamper = delete_one;
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
  for (int i = 2; i < 6; i++) sigaction(34 + i, &action, NULL);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, 34 + 6);
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  for (size_t i = 0; i < COUNT(timers); i++) {
    struct kernel_event event = {1000 + (long)i, timers[i].signal, timers[i].notify, gettid(), ""};
    MUST(syscall(SYS_timer_create, timers[i].clock, &event, &timers[i].id));
  }
  for (size_t i = 0; i < COUNT(timers); i++) {
    struct itimerspec set = {{timers[i].interval_ms / 1000, timers[i].interval_ms % 1000 * 1000000},
                             {timers[i].ms / 1000, timers[i].ms % 1000 * 1000000}};
    if (timers[i].gap) MUST(syscall(SYS_timer_delete, timers[i].id));
    else MUST(syscall(SYS_timer_settime, timers[i].id, 0, &set, NULL));
  }
  read_text("/proc/self/timers", first_list, sizeof first_list);
  serve(check);
}
