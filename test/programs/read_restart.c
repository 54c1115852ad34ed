// Blocking reads and writes: a read of an empty pipe that gets data later, a write to a full pipe that
// gets room later. Both go on after a checkpoint, with no EINTR and no byte lost or doubled.
#include "test.h"

static int empty[2], full[2];
static atomic_long got, given;
static atomic_uchar last_read;

static void *reader(void *unused) {
  for (;;) {
    unsigned char byte;
    ssize_t length = read(empty[0], &byte, 1);
    EXPECT(length == 1, "read gave %zd: %m", length);
    last_read = byte;
    got++;
  }
  return unused;
}

static char page_of(long round) { return (char)('a' + round % 26); }

static void *writer(void *unused) {
  char page[PAGE];
  for (;;) {
    memset(page, page_of(given), PAGE);
    ssize_t length = write(full[1], page, PAGE);
    EXPECT(length == (ssize_t)PAGE, "write gave %zd: %m", length);
    given++;
  }
  return unused;
}

static void check(void) {
  static long pages_read;
  static unsigned char next;
  char page[PAGE];
  long before = got, written = given;
  next++;
  EXPECT(write(empty[1], &next, 1) == 1, "cannot write: %m");
  EXPECT(WITHIN(5000, got == before + 1), "the reader is not woken");
  EXPECT_EQ(last_read, next);
  sleep_ms(5);
  EXPECT_EQ(given, written); // it is blocked as long as the pipe is full
  for (int i = 0; i < 3; i++, pages_read++) {
    EXPECT(read(full[0], page, PAGE) == (ssize_t)PAGE, "cannot read a page: %m");
    for (size_t j = 0; j < PAGE; j++)
      EXPECT(page[j] == page_of(pages_read), "page %ld has a wrong byte", pages_read);
  }
  EXPECT(WITHIN(5000, given == written + 3), "the writer is not woken");
}

static void steal(void) {
  char page[PAGE];
  if (read(full[0], page, PAGE) < 0) return;
}

int main(void) {
  begin();
  tamper = steal;
  pthread_t threads[2];
  MUST(pipe(empty));
  MUST(pipe(full));
  pthread_create(&threads[0], NULL, reader, NULL);
  pthread_create(&threads[1], NULL, writer, NULL);
  MUST(WITHIN(5000, given == 16) ? 0 : -1);
  sleep_ms(10);
  serve(check);
}
