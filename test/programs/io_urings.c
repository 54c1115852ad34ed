// io_uring rings at rest: one with completions that nobody has taken and entries that are not submitted yet, one that has been used for
// many requests, one whose queues are mapped in two pieces, one with large entries, one without an array, one shared with a child, one
// whose requests have several completions or none. Each goes on being used: for files, pipes, poll, timeouts.
#include "test.h"
#include <linux/io_uring.h>
#include <linux/time_types.h>
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

struct ring {
  int fd;
  uint32_t flags, sq_mask, cq_mask, sq_entries, sqe_size, cqe_size;
  atomic_uint *sq_head, *sq_tail, *cq_head, *cq_tail;
  uint32_t *array;
  char *sqes, *cqes;
  uint32_t own_tail, own_head; // as a program keeps them
};

static char *map_part(struct ring *ring, size_t size, off_t offset) {
  return (char *)MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, offset));
}

static struct ring set_up(uint32_t entries, uint32_t cq_entries, uint32_t flags, bool apart) {
  struct io_uring_params params = {.flags = flags | (cq_entries > 0 ? IORING_SETUP_CQSIZE : 0), .cq_entries = cq_entries};
  struct ring ring = {.flags = flags, .fd = (int)MUST(syscall(SYS_io_uring_setup, entries, &params))};
  ring.sqe_size = flags & IORING_SETUP_SQE128 ? 128 : 64;
  ring.cqe_size = flags & IORING_SETUP_CQE32 ? 32 : 16;
  size_t sq_size = params.sq_off.array + params.sq_entries * 4, cq_size = params.cq_off.cqes + params.cq_entries * ring.cqe_size;
  size_t both = sq_size > cq_size ? sq_size : cq_size;
  char *sq = map_part(&ring, apart ? sq_size : both, IORING_OFF_SQ_RING);
  char *cq = apart ? map_part(&ring, cq_size, IORING_OFF_CQ_RING) : sq;
  ring.sqes = map_part(&ring, params.sq_entries * ring.sqe_size, IORING_OFF_SQES);
  ring.sq_entries = params.sq_entries;
  ring.sq_mask = params.sq_entries - 1;
  ring.cq_mask = params.cq_entries - 1;
  ring.sq_head = (atomic_uint *)(sq + params.sq_off.head);
  ring.sq_tail = (atomic_uint *)(sq + params.sq_off.tail);
  ring.cq_head = (atomic_uint *)(cq + params.cq_off.head);
  ring.cq_tail = (atomic_uint *)(cq + params.cq_off.tail);
  ring.array = flags & IORING_SETUP_NO_SQARRAY ? NULL : (uint32_t *)(sq + params.sq_off.array);
  ring.cqes = cq + params.cq_off.cqes;
  return ring;
}

// The next free entry, which is in the queue at once.
static struct io_uring_sqe *next(struct ring *ring, uint8_t opcode, uint64_t data) {
  uint32_t index = ring->own_tail & ring->sq_mask;
  EXPECT(ring->own_tail - atomic_load(ring->sq_head) < ring->sq_entries, "the queue is full: %u, %u", ring->own_tail, atomic_load(ring->sq_head));
  struct io_uring_sqe *sqe = (void *)(ring->sqes + index * ring->sqe_size);
  memset(sqe, 0, ring->sqe_size);
  sqe->opcode = opcode;
  sqe->user_data = data;
  if (ring->array != NULL) ring->array[index] = index;
  atomic_store(ring->sq_tail, ++ring->own_tail);
  return sqe;
}

static void enter(struct ring *ring, uint32_t submit, uint32_t wait) {
  long done = syscall(SYS_io_uring_enter, ring->fd, submit, wait, wait > 0 ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
  EXPECT(done == submit, "io_uring_enter: %ld of %u: %m", done, submit);
}

static int32_t take(struct ring *ring, uint64_t data) {
  if (ring->own_head == atomic_load(ring->cq_tail)) {
    EXPECT(false, "completion %lu is not there", data);
    return -EAGAIN;
  }
  struct io_uring_cqe *cqe = (void *)(ring->cqes + (ring->own_head & ring->cq_mask) * ring->cqe_size);
  int32_t result = cqe->res;
  EXPECT(cqe->user_data == data, "a completion of %llu instead of %lu", cqe->user_data, data);
  atomic_store(ring->cq_head, ++ring->own_head);
  return result;
}

static void nops(struct ring *ring, unsigned count, bool taken) {
  for (unsigned i = 0; i < count; i++) {
    next(ring, IORING_OP_NOP, 1000 + i);
    enter(ring, 1, 0);
    if (taken) EXPECT_EQ(take(ring, 1000 + i), 0);
  }
}

static struct io_uring_sqe *transfer(struct ring *ring, uint8_t opcode, int fd, void *buffer, uint32_t length, uint64_t offset) {
  struct io_uring_sqe *sqe = next(ring, opcode, 7);
  sqe->fd = fd;
  sqe->addr = (uintptr_t)buffer;
  sqe->len = length;
  sqe->off = offset;
  return sqe;
}

enum { UNREAD, BUSY, APART, LARGE, WITHOUT_ARRAY, SHARED, UNEVEN, FEWER, RINGS };
static struct ring rings[RINGS];
static const int unread = 5;
static int file, ends[2];
static pid_t child;

// What a ring is for, each time with other content.
static void use(struct ring *ring) {
  static uint64_t round;
  uint64_t out = ++round, in = 0;
  transfer(ring, IORING_OP_WRITE, file, &out, sizeof out, 64);
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), sizeof out);
  transfer(ring, IORING_OP_FSYNC, file, NULL, 0, 0);
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), 0);
  transfer(ring, IORING_OP_READ, file, &in, sizeof in, 64);
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), sizeof in);
  EXPECT_EQ(in, out);
  // A read that has to wait, and a poll.
  in = 0;
  transfer(ring, IORING_OP_READ, ends[0], &in, sizeof in, (uint64_t)-1);
  enter(ring, 1, 0);
  EXPECT(ring->own_head == atomic_load(ring->cq_tail), "a read of an empty pipe has ended");
  EXPECT(write(ends[1], &out, sizeof out) == sizeof out, "write: %m");
  enter(ring, 0, 1);
  EXPECT_EQ(take(ring, 7), sizeof in);
  EXPECT_EQ(in, out);
  transfer(ring, IORING_OP_POLL_ADD, ends[1], NULL, 0, 0)->poll32_events = POLLOUT;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), POLLOUT);
  struct __kernel_timespec soon = {.tv_nsec = 1000000};
  transfer(ring, IORING_OP_TIMEOUT, -1, &soon, 1, 0);
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), -ETIME);
}

// The other process has moved the ring on, and this one's own copies are behind.
static void use_shared(void) {
  struct ring *ring = &rings[SHARED];
  ring->own_tail = atomic_load(ring->sq_tail);
  ring->own_head = atomic_load(ring->cq_head);
  use(ring);
}

static void check(void) {
  // Completions wait, and two entries are in the queue that nobody has submitted yet.
  struct ring *ring = &rings[UNREAD];
  EXPECT_EQ(atomic_load(ring->cq_tail) - ring->own_head, unread);
  EXPECT_EQ(ring->own_tail - atomic_load(ring->sq_head), 2);
  for (int i = 0; i < unread; i++) EXPECT_EQ(take(ring, 1000 + (uint64_t)i), 0);
  enter(ring, 2, 2);
  EXPECT_EQ(take(ring, 50), 0);
  EXPECT_EQ(take(ring, 51), 0);
  use(ring);
  nops(ring, unread, false);
  // No more than there is room for may come, and nothing is written over: the others have to wait.
  nops(ring, 16 - unread, false);
  for (int i = 0; i < unread; i++) EXPECT_EQ(take(ring, 1000 + (uint64_t)i), 0);
  for (int i = 0; i < 16 - unread; i++) EXPECT_EQ(take(ring, 1000 + (uint64_t)i), 0);
  nops(ring, unread, false);
  next(ring, IORING_OP_NOP, 50);
  next(ring, IORING_OP_NOP, 51);
  for (int which = BUSY; which < RINGS; which++)
    if (which != SHARED) use(&rings[which]);
  nops(&rings[BUSY], 1000, true);
  ask_child(child);
  use_shared();
  EXPECT_EQ(fcntl(rings[BUSY].fd, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(fcntl(rings[APART].fd, F_GETFD), 0);
}

// Requests with several completions, and some with none.
static void uneven(void) {
  struct ring *ring = &rings[UNEVEN];
  int pair[2];
  char byte;
  MUST(pipe(pair));
  struct io_uring_sqe *sqe = transfer(ring, IORING_OP_POLL_ADD, pair[0], NULL, IORING_POLL_ADD_MULTI, 0);
  sqe->poll32_events = POLLIN;
  enter(ring, 1, 0);
  for (int i = 0; i < 20; i++) {
    MUST(write(pair[1], "x", 1));
    enter(ring, 0, 1);
    EXPECT_EQ(take(ring, 7) & POLLIN, POLLIN);
    MUST(read(pair[0], &byte, 1));
  }
  next(ring, IORING_OP_POLL_REMOVE, 8)->addr = 7;
  enter(ring, 1, 2);
  while (ring->own_head != atomic_load(ring->cq_tail)) atomic_store(ring->cq_head, ++ring->own_head);
  close(pair[0]);
  close(pair[1]);
  ring = &rings[FEWER];
  for (int i = 0; i < 30; i++) {
    next(ring, IORING_OP_NOP, 9)->flags = IOSQE_CQE_SKIP_SUCCESS;
    enter(ring, 1, 0);
  }
  EXPECT(ring->own_head == atomic_load(ring->cq_tail), "skipped completions are there");
}

static void lose_one(void) { atomic_store(rings[UNREAD].cq_head, ++rings[UNREAD].own_head); }

int main(void) {
  begin();
  file = (int)MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(pipe(ends));
  rings[UNREAD] = set_up(4, 16, 0, false);
  rings[BUSY] = set_up(64, 0, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, false);
  rings[APART] = set_up(8, 0, IORING_SETUP_SUBMIT_ALL, true);
  rings[LARGE] = set_up(8, 64, IORING_SETUP_SQE128 | IORING_SETUP_CQE32, false);
  rings[WITHOUT_ARRAY] = set_up(8, 0, IORING_SETUP_NO_SQARRAY, false);
  rings[SHARED] = set_up(256, 0, 0, false);
  rings[UNEVEN] = set_up(8, 0, 0, false);
  rings[FEWER] = set_up(8, 0, 0, false);
  MUST(fcntl(rings[APART].fd, F_SETFD, 0));
  nops(&rings[UNREAD], 10, true);
  nops(&rings[UNREAD], unread, false);
  next(&rings[UNREAD], IORING_OP_NOP, 50);
  next(&rings[UNREAD], IORING_OP_NOP, 51);
  nops(&rings[BUSY], 5000, true);
  nops(&rings[APART], 13, true);
  nops(&rings[LARGE], 21, true);
  nops(&rings[WITHOUT_ARRAY], 9, true);
  uneven();
  for (int which = BUSY; which < RINGS; which++) use(&rings[which]);
  child = start_child(NULL, use_shared);
  tamper = lose_one;
  serve(check);
}
