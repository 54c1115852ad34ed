// eventfd: the counter, EFD_SEMAPHORE, EFD_NONBLOCK, a full counter, and one shared with a child.
#include "test.h"
#include <sys/eventfd.h>

static int plain, semaphore, full, shared;
static pid_t child;

static uint64_t take(int fd) {
  uint64_t value = 0;
  return read(fd, &value, 8) == 8 ? value : 0;
}

static void add(int fd, uint64_t value) { EXPECT(write(fd, &value, 8) == 8, "write: %m"); }

static void child_check(void) { add(shared, 30); }

static void check(void) {
  uint64_t one = 1;
  EXPECT_EQ(take(plain), 1234567890123);
  EXPECT(take(plain) == 0 && errno == EAGAIN, "the plain counter blocks");
  add(plain, 1234567890123);
  for (int i = 0; i < 3; i++) EXPECT_EQ(take(semaphore), 1);
  EXPECT(take(semaphore) == 0 && errno == EAGAIN, "the semaphore held more than 3");
  add(semaphore, 3);
  EXPECT(write(full, &one, 8) == -1 && errno == EAGAIN, "the full counter has room");
  EXPECT(take(full) == UINT64_MAX - 1, "the full counter was not full");
  add(full, UINT64_MAX - 1);
  ask_child(child);
  EXPECT_EQ(take(shared), 42);
  add(shared, 12);
  EXPECT_EQ(fcntl(semaphore, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(fcntl(plain, F_GETFD), 0);
}

static void count_on(void) { add(plain, 1); }

int main(void) {
  begin();
  plain = MUST(eventfd(0, EFD_NONBLOCK));
  add(plain, 1234567890123);
  semaphore = MUST(eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE | EFD_CLOEXEC));
  full = MUST(eventfd(0, EFD_NONBLOCK));
  add(full, UINT64_MAX - 1);
  shared = MUST(eventfd(12, 0));
  child = start_child(NULL, child_check);
  tamper = count_on;
  serve(check);
}
