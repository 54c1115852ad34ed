// Threads that wait on futexes: FUTEX_WAIT without a limit, with one (kept by the kernel in a restart
// block), FUTEX_WAIT_BITSET until a time, a contended mutex, a condition variable. All wait on, are
// woken when somebody wakes them, and see neither EINTR nor a short limit.
#include "test.h"
#include <linux/futex.h>

enum { LIMIT_MS = 250 };
static int word;  // its value never changes
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static long generation, seen_by_condition;
static atomic_long plain_rounds, limited_rounds, until_rounds, mutex_rounds;

static long futex(int *address, int operation, int value, struct timespec *limit, int bits) {
  return syscall(SYS_futex, address, operation, value, limit, NULL, bits);
}

static void *plain(void *unused) {
  for (;;) {
    long got = futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, 0);
    EXPECT(got == 0, "FUTEX_WAIT: %m");
    plain_rounds++;
  }
  return unused;
}

static void expect_limit(const char *name, long got, int64_t start) {
  int64_t took = now_ms(CLOCK_MONOTONIC) - start;
  EXPECT(got == -1 && errno == ETIMEDOUT, "%s ended with %ld %m", name, got);
  EXPECT(took >= LIMIT_MS - 1, "%s took %ld ms only", name, (long)took);
}

static void *limited(void *unused) {
  int own = 0;
  for (;;) {
    struct timespec limit = {0, LIMIT_MS * 1000000L};
    int64_t start = now_ms(CLOCK_MONOTONIC);
    expect_limit("FUTEX_WAIT", futex(&own, FUTEX_WAIT_PRIVATE, 0, &limit, 0), start);
    limited_rounds++;
  }
  return unused;
}

static void *until(void *unused) {
  int own = 0;
  for (;;) {
    int64_t start = now_ms(CLOCK_MONOTONIC), end = start + LIMIT_MS + 1;
    struct timespec limit = {end / 1000, end % 1000 * 1000000};
    expect_limit("FUTEX_WAIT_BITSET", futex(&own, FUTEX_WAIT_BITSET_PRIVATE, 0, &limit, 5), start);
    until_rounds++;
  }
  return unused;
}

static void *contend(void *unused) {
  for (;;) {
    EXPECT_EQ(pthread_mutex_lock(&held), 0);
    mutex_rounds++;
    pthread_mutex_unlock(&held);
    sleep_ms(20); // lets the main thread take it again
  }
  return unused;
}

static void *wait_condition(void *unused) {
  pthread_mutex_lock(&mutex);
  for (;;) {
    while (seen_by_condition == generation) pthread_cond_wait(&condition, &mutex);
    seen_by_condition = generation;
  }
  return unused;
}

static void check(void) {
  long before = plain_rounds;
  EXPECT(WITHIN(5000, futex(&word, FUTEX_WAKE_PRIVATE, 1, NULL, 0) == 1), "nobody waits");
  EXPECT(WITHIN(5000, plain_rounds == before + 1), "the plain wait is not woken");
  long limits = limited_rounds, untils = until_rounds, locks = mutex_rounds;
  EXPECT(WITHIN(5000, limited_rounds > limits && until_rounds > untils), "a limit does not end");
  EXPECT(mutex_rounds == locks, "a held mutex was taken");
  pthread_mutex_unlock(&held);
  EXPECT(WITHIN(5000, mutex_rounds > locks), "the mutex does not pass on");
  pthread_mutex_lock(&held);
  pthread_mutex_lock(&mutex);
  generation++;
  pthread_cond_signal(&condition);
  pthread_mutex_unlock(&mutex);
  EXPECT(WITHIN(5000, __atomic_load_n(&seen_by_condition, __ATOMIC_SEQ_CST) == generation),
         "the condition is not seen");
}

// As a kernel or a restore would that lets a waiter go with an error.
static void end_wait(void) { word = 1; }

int main(void) {
  begin();
  tamper = end_wait;
  void *(*const workers[])(void *) = {plain, limited, until, contend, wait_condition};
  pthread_mutex_lock(&held);
  for (size_t i = 0; i < COUNT(workers); i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, workers[i], NULL);
  }
  sleep_ms(20);
  serve(check);
}
