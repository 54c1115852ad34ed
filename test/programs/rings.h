// An io_uring ring by system calls alone, and what rings are used for.
#pragma once
#include "test.h"
#include <linux/io_uring.h>
#include <linux/time_types.h>
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

struct ring {
  int fd;
  uint32_t flags, sq_mask, cq_mask, sq_entries, sqe_size, cqe_size;
  atomic_uint *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
  uint32_t *array;
  char *sqes, *cqes;
  char *sq;
  size_t sq_size;
  uint32_t own_tail, own_head; // as a program keeps them
};

SHARED_HELPER char *map_part(struct ring *ring, size_t size, off_t offset) {
  return (char *)MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, offset));
}

SHARED_HELPER struct ring set_up(uint32_t entries, uint32_t cq_entries, uint32_t flags, bool apart) {
  struct io_uring_params params = {
      .flags = flags | (cq_entries > 0 ? IORING_SETUP_CQSIZE : 0), .cq_entries = cq_entries, .sq_thread_idle = 20};
  struct ring ring = {.flags = flags, .fd = (int)MUST(syscall(SYS_io_uring_setup, entries, &params))};
  ring.sqe_size = flags & IORING_SETUP_SQE128 ? 128 : 64;
  ring.cqe_size = flags & IORING_SETUP_CQE32 ? 32 : 16;
  size_t sq_size = params.sq_off.array + params.sq_entries * 4, cq_size = params.cq_off.cqes + params.cq_entries * ring.cqe_size;
  size_t both = sq_size > cq_size ? sq_size : cq_size;
  char *sq = map_part(&ring, apart ? sq_size : both, IORING_OFF_SQ_RING);
  char *cq = apart ? map_part(&ring, cq_size, IORING_OFF_CQ_RING) : sq;
  ring.sq = sq;
  ring.sq_size = apart ? sq_size : both;
  ring.sqes = map_part(&ring, params.sq_entries * ring.sqe_size, IORING_OFF_SQES);
  ring.sq_entries = params.sq_entries;
  ring.sq_mask = params.sq_entries - 1;
  ring.cq_mask = params.cq_entries - 1;
  ring.sq_head = (atomic_uint *)(sq + params.sq_off.head);
  ring.sq_tail = (atomic_uint *)(sq + params.sq_off.tail);
  ring.sq_flags = (atomic_uint *)(sq + params.sq_off.flags);
  ring.cq_head = (atomic_uint *)(cq + params.cq_off.head);
  ring.cq_tail = (atomic_uint *)(cq + params.cq_off.tail);
  ring.array = flags & IORING_SETUP_NO_SQARRAY ? NULL : (uint32_t *)(sq + params.sq_off.array);
  ring.cqes = cq + params.cq_off.cqes;
  return ring;
}

// Of one whose queues are mapped together.
SHARED_HELPER void close_ring(struct ring *ring) {
  munmap(ring->sqes, ring->sq_entries * ring->sqe_size);
  munmap(ring->sq, ring->sq_size);
  close(ring->fd);
}

// The next free entry, which is in the queue at once.
SHARED_HELPER struct io_uring_sqe *next(struct ring *ring, uint8_t opcode, uint64_t data) {
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

SHARED_HELPER void enter(struct ring *ring, uint32_t submit, uint32_t wait) {
  uint32_t flags = wait > 0 ? IORING_ENTER_GETEVENTS : 0;
  if (ring->flags & IORING_SETUP_SQPOLL) {
    flags |= *ring->sq_flags & IORING_SQ_NEED_WAKEUP ? IORING_ENTER_SQ_WAKEUP : 0;
    if (flags == 0) return;
  }
  long done = syscall(SYS_io_uring_enter, ring->fd, submit, wait, flags, NULL, 0);
  EXPECT(done == submit, "io_uring_enter: %ld of %u: %m", done, submit);
}

SHARED_HELPER int32_t take(struct ring *ring, uint64_t data) {
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

SHARED_HELPER void nops(struct ring *ring, unsigned count, bool taken) {
  for (unsigned i = 0; i < count; i++) {
    next(ring, IORING_OP_NOP, 1000 + i);
    enter(ring, 1, 1);
    if (taken) EXPECT_EQ(take(ring, 1000 + i), 0);
  }
}

SHARED_HELPER struct io_uring_sqe *transfer(struct ring *ring, uint8_t opcode, int fd, void *buffer, uint32_t length, uint64_t offset) {
  struct io_uring_sqe *sqe = next(ring, opcode, 7);
  sqe->fd = fd;
  sqe->addr = (uintptr_t)buffer;
  sqe->len = length;
  sqe->off = offset;
  return sqe;
}

static int file, ends[2];

SHARED_HELPER void open_files(void) {
  file = (int)MUST(memfd_create("a file", 0)); // a clone has its own
  MUST(pipe(ends));
}

// What a ring is for, each time with other content.
SHARED_HELPER void use(struct ring *ring) {
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
