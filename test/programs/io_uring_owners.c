// io_uring rings that belong to a process or thread: one that a thread of the kernel serves and that an epoll watches, one for the main
// thread alone, one for another thread alone that runs what is deferred; and rings with a registered eventfd, files and buffers, with tags,
// a range of places for files, a clock, limits on workers; rings that are registered themselves.
#include "rings.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

enum { POLLED, SINGLE, DEFERRED, DISABLED, EVENTFD, FILES, BUFFERS, TAGGED, RANGE, RINGS };
static struct ring rings[RINGS];
enum { REGISTER_CLOCK = 29 }; // younger than some headers
static int epoll, eventfd_of_ring, other;
static char *buffers;

static long do_register(struct ring *ring, unsigned operation, const void *list, unsigned count) {
  return syscall(SYS_io_uring_register, ring->fd, operation, list, count);
}

static void register_ring(struct ring *ring, unsigned place);
static void enter_registered(struct ring *ring, int place);

// The thread of the ring is asked, and answers when it has used it.
static atomic_int asked, answered;

static void *thread_of_ring(void *unused) {
  struct ring *ring = &rings[DEFERRED];
  *ring = set_up(16, 32, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, false);
  nops(ring, 700, true);
  // A completion that was posted by another ring.
  struct ring poster = set_up(4, 0, 0, false);
  for (int i = 0; i < 40; i++) {
    struct io_uring_sqe *sqe = next(&poster, IORING_OP_MSG_RING, 1);
    sqe->fd = ring->fd;
    sqe->off = 77;
    enter(&poster, 1, 1);
    EXPECT_EQ(take(&poster, 1), 0);
    enter(ring, 0, 1);
    EXPECT_EQ(take(ring, 77), 0);
  }
  close_ring(&poster);
  nops(ring, 3, false);
  register_ring(ring, 0);
  for (;;) {
    atomic_store(&answered, atomic_load(&asked));
    while (atomic_load(&asked) == atomic_load(&answered)) sleep_ms(1);
    for (uint64_t i = 0; i < 3; i++) EXPECT_EQ(take(ring, 1000 + i), 0);
    use(ring);
    enter_registered(ring, 0);
    nops(ring, 3, false);
  }
  return unused;
}

static void check_eventfd(void) {
  uint64_t count = 0;
  nops(&rings[EVENTFD], 1, true);
  EXPECT(read(eventfd_of_ring, &count, sizeof count) == sizeof count, "the eventfd was not told: %m");
  EXPECT_EQ(count, 1);
  use(&rings[EVENTFD]);
  EXPECT(read(eventfd_of_ring, &count, sizeof count) == sizeof count, "the eventfd was not told: %m");
}

// By a registered ring.
static void enter_registered(struct ring *ring, int place) {
  next(ring, IORING_OP_NOP, 33);
  long done = syscall(SYS_io_uring_enter, place, 1, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0);
  EXPECT(done == 1, "a registered ring: %ld: %m", done);
  EXPECT_EQ(take(ring, 33), 0);
}

static void register_ring(struct ring *ring, unsigned place) {
  struct io_uring_rsrc_update update = {.offset = place, .data = (uint64_t)ring->fd};
  EXPECT_EQ(do_register(ring, IORING_REGISTER_RING_FDS, &update, 1), 1);
}

static void register_tagged(void) {
  int files[] = {-1, file};
  struct iovec vector = {buffers, PAGE};
  uint64_t tags[2] = {0, 0x1122334455667788}, tag = 99;
  struct io_uring_rsrc_register all = {.nr = 2, .data = (uintptr_t)files, .tags = (uintptr_t)tags};
  EXPECT_EQ(do_register(&rings[TAGGED], IORING_REGISTER_FILES2, &all, sizeof all), 0);
  all = (struct io_uring_rsrc_register){.nr = 1, .data = (uintptr_t)&vector, .tags = (uintptr_t)&tag};
  EXPECT_EQ(do_register(&rings[TAGGED], IORING_REGISTER_BUFFERS2, &all, sizeof all), 0);
}

// Tags are told when what they stand at is given up.
static void check_tagged(void) {
  struct ring *ring = &rings[TAGGED];
  EXPECT_EQ(do_register(ring, IORING_UNREGISTER_FILES, NULL, 0), 0);
  enter(ring, 0, 1);
  EXPECT_EQ(take(ring, 0x1122334455667788), 0);
  EXPECT_EQ(do_register(ring, IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
  enter(ring, 0, 1);
  EXPECT_EQ(take(ring, 99), 0);
  register_tagged();
}

// The kernel chooses places from 4 on.
static void check_range(void) {
  struct ring *ring = &rings[RANGE];
  struct io_uring_sqe *sqe = transfer(ring, IORING_OP_OPENAT, AT_FDCWD, "/dev/null", 0, 0);
  sqe->file_index = IORING_FILE_INDEX_ALLOC;
  enter(ring, 1, 1);
  int32_t place = take(ring, 7);
  EXPECT(place >= 4 && place < 6, "the kernel has chosen place %d", place);
  transfer(ring, IORING_OP_CLOSE, 0, NULL, 0, 0)->file_index = (uint32_t)place + 1;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), 0);
  uint32_t limits[2] = {0, 0};
  EXPECT_EQ(do_register(ring, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
  EXPECT(limits[0] == 3 && limits[1] == 5, "workers up to %u and %u", limits[0], limits[1]);
}

static void check_files(void) {
  struct ring *ring = &rings[FILES];
  uint64_t out = 0x1234, in = 0;
  transfer(ring, IORING_OP_WRITE, 2, &out, sizeof out, 0)->flags = IOSQE_FIXED_FILE;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), sizeof out);
  EXPECT(pread(other, &in, sizeof in, 0) == sizeof in && in == out, "the registered file is another");
  transfer(ring, IORING_OP_READ, 1, &in, sizeof in, 0)->flags = IOSQE_FIXED_FILE;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), -EBADF);
}

static void check_buffers(void) {
  struct ring *ring = &rings[BUFFERS];
  static uint64_t round;
  memset(buffers, 0, 2 * PAGE);
  round++;
  memcpy(buffers + PAGE + 512, &round, sizeof round);
  transfer(ring, IORING_OP_WRITE_FIXED, other, buffers + PAGE + 512, 8, 64)->buf_index = 1;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), 8);
  transfer(ring, IORING_OP_READ_FIXED, other, buffers, 8, 64)->buf_index = 0;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), 8);
  EXPECT(memcmp(buffers, &round, sizeof round) == 0, "another buffer was registered");
  transfer(ring, IORING_OP_READ_FIXED, other, buffers, 8, 64)->buf_index = 2;
  enter(ring, 1, 1);
  EXPECT_EQ(take(ring, 7), -EFAULT);
}

static void check(void) {
  struct epoll_event event = {0};
  EXPECT_EQ(epoll_wait(epoll, &event, 1, 0), 0);
  nops(&rings[POLLED], 1, false);
  EXPECT(epoll_wait(epoll, &event, 1, 5000) == 1 && event.data.u64 == 42, "the epoll does not watch the ring");
  EXPECT_EQ(take(&rings[POLLED], 1000), 0);
  use(&rings[POLLED]);
  use(&rings[SINGLE]);
  atomic_fetch_add(&asked, 1);
  EXPECT(WITHIN(5000, atomic_load(&asked) == atomic_load(&answered)), "the thread of a ring does not answer");
  EXPECT(syscall(SYS_io_uring_enter, rings[DEFERRED].fd, 1, 0, 0, NULL, 0) == -1 && errno == EEXIST, "any thread may use the ring");
  EXPECT(syscall(SYS_io_uring_enter, rings[DISABLED].fd, 1, 0, 0, NULL, 0) == -1 && errno == EBADFD, "a ring is enabled");
  check_eventfd();
  check_files();
  check_buffers();
  check_tagged();
  check_range();
  enter_registered(&rings[SINGLE], 5);
  enter_registered(&rings[FILES], 7);
}

static void forget_eventfd(void) { do_register(&rings[EVENTFD], IORING_UNREGISTER_EVENTFD, NULL, 0); }

int main(void) {
  pthread_t thread;
  begin();
  open_files();
  other = (int)MUST(memfd_create("another file", 0));
  rings[POLLED] = set_up(8, 0, IORING_SETUP_SQPOLL, false);
  rings[SINGLE] = set_up(8, 0, IORING_SETUP_SINGLE_ISSUER, false);
  rings[DISABLED] = set_up(8, 0, IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER, false);
  for (int which = EVENTFD; which < RINGS; which++) rings[which] = set_up(8, 0, 0, false);
  epoll = (int)MUST(epoll_create1(0));
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, rings[POLLED].fd, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 42}));
  eventfd_of_ring = (int)MUST(eventfd(0, EFD_NONBLOCK));
  MUST(do_register(&rings[EVENTFD], IORING_REGISTER_EVENTFD, &eventfd_of_ring, 1));
  int files[] = {file, -1, other};
  MUST(do_register(&rings[FILES], IORING_REGISTER_FILES, files, 3));
  buffers = map_anon(2 * PAGE, PROT_READ | PROT_WRITE);
  struct iovec vectors[] = {{buffers, 100}, {buffers + PAGE, PAGE}, {NULL, 0}};
  MUST(do_register(&rings[BUFFERS], IORING_REGISTER_BUFFERS, vectors, 3));
  register_tagged();
  int none[8];
  memset(none, -1, sizeof none);
  MUST(do_register(&rings[RANGE], IORING_REGISTER_FILES, none, 8));
  struct io_uring_file_index_range range = {.off = 4, .len = 2};
  MUST(do_register(&rings[RANGE], IORING_REGISTER_FILE_ALLOC_RANGE, &range, 0));
  uint32_t limits[2] = {3, 5}, boottime[4] = {CLOCK_BOOTTIME};
  MUST(do_register(&rings[RANGE], IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2));
  MUST(do_register(&rings[RANGE], REGISTER_CLOCK, boottime, 0));
  register_ring(&rings[SINGLE], 5);
  register_ring(&rings[FILES], 7);
  nops(&rings[POLLED], 50, true);
  nops(&rings[SINGLE], 1000, true);
  pthread_create(&thread, NULL, thread_of_ring, NULL);
  atomic_fetch_add(&asked, 1);
  MUST(WITHIN(5000, atomic_load(&answered) == 1) ? 0 : -1);
  tamper = forget_eventfd;
  serve(check);
}
