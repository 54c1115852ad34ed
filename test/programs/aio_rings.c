// AIO rings (io_setup): an empty one, one that has gone round and is empty again, and one with completions that nobody has
// taken yet. Their addresses are their handles; new requests complete in them.
#include "test.h"
#include <linux/aio_abi.h>

enum { REQUESTS = 64, PENDING = 5 };
static aio_context_t fresh, used, full;
static int file;

static int setup(unsigned count, aio_context_t *ring) {
  return (int)syscall(SYS_io_setup, count, ring);
}

// Reads the bytes 10N to 10N+9 of the file; the completion says N.
static void submit(aio_context_t ring, unsigned n, char *into) {
  struct iocb request = {
      .aio_data = n, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (unsigned)file,
      .aio_buf = (uintptr_t)into, .aio_nbytes = 10, .aio_offset = 10 * n};
  struct iocb *list[] = {&request};
  EXPECT_EQ(syscall(SYS_io_submit, ring, 1, list), 1);
}

static void take(aio_context_t ring, unsigned n) {
  struct io_event event = {0};
  struct timespec limit = {5, 0};
  EXPECT_EQ(syscall(SYS_io_getevents, ring, 1, 1, &event, &limit), 1);
  EXPECT_EQ(event.data, n);
  EXPECT_EQ(event.res, 10);
}

static void expect_empty(aio_context_t ring) {
  struct io_event event;
  struct timespec now = {0, 0};
  EXPECT_EQ(syscall(SYS_io_getevents, ring, 0, 1, &event, &now), 0);
}

static char into[PENDING][10];

static void check(void) {
  static bool taken;
  if (!taken)
    for (unsigned i = 0; i < PENDING; i++) {
      take(full, i);
      EXPECT(into[i][0] == (char)('a' + i), "request %u has read %c", i, into[i][0]);
    }
  taken = true;
  aio_context_t rings[] = {fresh, used, full};
  for (unsigned ring = 0; ring < COUNT(rings); ring++) {
    expect_empty(rings[ring]);
    // More than fit: the ring goes round.
    for (unsigned i = 0; i < 200; i++) {
      char bytes[10];
      submit(rings[ring], i % 20, bytes);
      take(rings[ring], i % 20);
      EXPECT(bytes[9] == (char)('a' + i % 20), "request %u has read %c", i, bytes[9]);
    }
    expect_empty(rings[ring]);
  }
}

static void destroy(void) { syscall(SYS_io_destroy, used); }

int main(void) {
  begin();
  tamper = destroy;
  file = (int)MUST(open("data", O_RDWR | O_CREAT | O_TRUNC, 0600));
  for (int i = 0; i < 20; i++)
    for (int j = 0; j < 10; j++) {
      char byte = (char)('a' + i);
      MUST(write(file, &byte, 1));
    }
  MUST(setup(REQUESTS, &fresh));
  MUST(setup(1, &used));
  MUST(setup(REQUESTS, &full));
  char bytes[10];
  for (int i = 0; i < 100; i++) {
    submit(used, 3, bytes);
    take(used, 3);
    submit(full, 4, bytes);
    take(full, 4);
  }
  for (unsigned i = 0; i < PENDING; i++) submit(full, i, into[i]);
  serve(check);
}
