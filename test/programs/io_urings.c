// io_uring rings at rest: one with completions that nobody has taken and entries that are not submitted yet, one that has been used for
// many requests, one whose queues are mapped in two pieces, one with large entries, one without an array, one shared with a child, one
// whose requests have several completions or none. Each goes on being used: for files, pipes, poll, timeouts.
#include "rings.h"

enum { UNREAD, BUSY, APART, LARGE, WITHOUT_ARRAY, SHARED, UNEVEN, FEWER, RINGS };
static struct ring rings[RINGS];
static const int unread = 5;
static pid_t child;

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
  open_files();
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
