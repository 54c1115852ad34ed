// Requests of io_uring rings that wait: for a file to become readable (read, recv, poll of one and of many shots), for connections, for
// a time; by the main thread, and by a thread that alone may use its ring. Afterwards each ends as if nothing had been.
#include "rings.h"
#include <arpa/inet.h>
#include <linux/time_types.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { READ = 1, RECV, POLL, MANY, ACCEPT, SOON, LATER, FIXED };
static struct ring ring, of_thread;
static int pipes[4][2], sockets[2], listener;
static struct sockaddr_in here;
static char read_into[16], received[16], thread_into[16], fixed_into[16];
static struct __kernel_timespec hour = {.tv_sec = 3600};
static atomic_int asked, answered;

// The results of completions that come, in whatever order, by what they are of. Waits for so many.
static int32_t results[16];
static uint32_t seen;

static void collect(struct ring *from, unsigned count) {
  seen = 0;
  while (count-- > 0) {
    if (from->own_head == atomic_load(from->cq_tail)) enter(from, 0, 1);
    if (from->own_head == atomic_load(from->cq_tail)) {
      EXPECT(false, "a completion does not come");
      return;
    }
    struct io_uring_cqe *cqe = (void *)(from->cqes + (from->own_head & from->cq_mask) * from->cqe_size);
    if (cqe->user_data < 16) {
      results[cqe->user_data] = cqe->res;
      seen |= 1U << cqe->user_data;
    } else EXPECT(false, "a completion of %llu", cqe->user_data);
    atomic_store(from->cq_head, ++from->own_head);
  }
}

static struct io_uring_sqe *begin_request(struct ring *of, uint8_t opcode, uint64_t data, int fd) {
  struct io_uring_sqe *sqe = next(of, opcode, data);
  sqe->fd = fd;
  sqe->off = opcode == IORING_OP_READ ? (uint64_t)-1 : 0;
  return sqe;
}

static void begin_read(struct ring *of, uint64_t data, int fd, char *into) {
  struct io_uring_sqe *sqe = begin_request(of, IORING_OP_READ, data, fd);
  sqe->addr = (uintptr_t)into;
  sqe->len = 16;
}

static void begin_receive(void) {
  struct io_uring_sqe *sqe = begin_request(&ring, IORING_OP_RECV, RECV, sockets[0]);
  sqe->addr = (uintptr_t)received;
  sqe->len = 16;
}

static void begin_fixed(void) {
  begin_read(&ring, FIXED, 0, fixed_into);
  ((struct io_uring_sqe *)ring.sqes)[(ring.own_tail - 1) & ring.sq_mask].flags = IOSQE_FIXED_FILE;
}

static void begin_timeout(uint64_t data, struct __kernel_timespec *time) {
  struct io_uring_sqe *sqe = begin_request(&ring, IORING_OP_TIMEOUT, data, -1);
  sqe->addr = (uintptr_t)time;
  sqe->len = 1;
}

static void begin_all(void) {
  begin_read(&ring, READ, pipes[0][0], read_into);
  begin_receive();
  begin_request(&ring, IORING_OP_POLL_ADD, POLL, pipes[1][0])->poll32_events = POLLIN;
  begin_timeout(LATER, &hour);
  begin_fixed();
  enter(&ring, 5, 0);
}

static void begin_lasting(void) {
  struct io_uring_sqe *sqe = begin_request(&ring, IORING_OP_POLL_ADD, MANY, pipes[2][0]);
  sqe->poll32_events = POLLIN;
  sqe->len = IORING_POLL_ADD_MULTI;
  begin_request(&ring, IORING_OP_ACCEPT, ACCEPT, listener)->ioprio = IORING_ACCEPT_MULTISHOT;
  enter(&ring, 2, 0);
}

static void *thread_of_ring(void *unused) {
  of_thread = set_up(8, 0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, false);
  nops(&of_thread, 100, true);
  for (;;) {
    begin_read(&of_thread, READ, pipes[3][0], thread_into);
    enter(&of_thread, 1, 0);
    atomic_store(&answered, atomic_load(&asked));
    while (atomic_load(&asked) == atomic_load(&answered)) sleep_ms(1);
    EXPECT(of_thread.own_head == atomic_load(of_thread.cq_tail), "a read of an empty pipe has ended");
    EXPECT(write(pipes[3][1], "thread", 6) == 6, "write: %m");
    collect(&of_thread, 1);
    EXPECT(seen == 1U << READ && results[READ] == 6 && memcmp(thread_into, "thread", 6) == 0, "the read of a thread: %d", results[READ]);
  }
  return unused;
}

static void put(int fd, const char *text) { EXPECT(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write: %m"); }

static void check(void) {
  char text[16];
  EXPECT(ring.own_head == atomic_load(ring.cq_tail), "a request has ended by itself");
  put(pipes[0][1], "pipe");
  put(sockets[1], "socket");
  put(pipes[1][1], "poll");
  collect(&ring, 3);
  EXPECT_EQ(seen, 1U << READ | 1U << RECV | 1U << POLL);
  EXPECT(results[READ] == 4 && memcmp(read_into, "pipe", 4) == 0, "the read brought %d", results[READ]);
  EXPECT(results[RECV] == 6 && memcmp(received, "socket", 6) == 0, "recv brought %d", results[RECV]);
  EXPECT_EQ(results[POLL], POLLIN);
  EXPECT(read(pipes[1][0], text, sizeof text) == 4, "read: %m");
  // Of many shots: both go on.
  for (int i = 0; i < 2; i++) {
    put(pipes[2][1], "x");
    collect(&ring, 1);
    EXPECT(seen == 1U << MANY && (results[MANY] & POLLIN) != 0, "a poll of many shots: %d", results[MANY]);
    EXPECT(read(pipes[2][0], text, 1) == 1, "read: %m");
    int client = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(connect(client, (void *)&here, sizeof here) == 0, "connect: %m");
    collect(&ring, 1);
    EXPECT(seen == 1U << ACCEPT && results[ACCEPT] >= 0, "an accept of many shots: %d", results[ACCEPT]);
    put(client, "hello");
    EXPECT(read(results[ACCEPT], text, sizeof text) == 5, "the accepted socket: %m");
    // The end that closes first keeps its port for a while, which is not to be the listener's.
    close(client);
    EXPECT(read(results[ACCEPT], text, 1) == 0, "the connection goes on");
    close(results[ACCEPT]);
  }
  // The timeout of an hour is there, and can be removed.
  next(&ring, IORING_OP_TIMEOUT_REMOVE, 9)->addr = LATER;
  enter(&ring, 1, 0);
  collect(&ring, 2);
  EXPECT_EQ(seen, 1U << 9 | 1U << LATER);
  EXPECT_EQ(results[LATER], -ECANCELED);
  struct __kernel_timespec soon = {.tv_nsec = 1000000};
  begin_timeout(SOON, &soon);
  enter(&ring, 1, 0);
  collect(&ring, 1);
  EXPECT(seen == 1U << SOON && results[SOON] == -ETIME, "a timeout: %d", results[SOON]);
  // The read by the number of a registered file waits for the other end.
  put(sockets[0], "fixed");
  collect(&ring, 1);
  EXPECT(seen == 1U << FIXED && results[FIXED] == 5 && memcmp(fixed_into, "fixed", 5) == 0, "a registered file: %d", results[FIXED]);
  begin_all();
  atomic_fetch_add(&asked, 1);
  EXPECT(WITHIN(5000, atomic_load(&asked) == atomic_load(&answered)), "the thread of a ring does not answer");
}

static void cancel_all(void) {
  next(&ring, IORING_OP_TIMEOUT_REMOVE, 9)->addr = LATER;
  enter(&ring, 1, 1);
}

int main(void) {
  pthread_t thread;
  socklen_t size = sizeof here;
  begin();
  for (int i = 0; i < 4; i++) MUST(pipe(pipes[i]));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
  listener = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  here = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  MUST(bind(listener, (void *)&here, sizeof here));
  MUST(listen(listener, 8));
  MUST(getsockname(listener, (void *)&here, &size));
  ring = set_up(32, 0, 0, false);
  MUST(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &sockets[1], 1));
  nops(&ring, 100, true);
  begin_lasting();
  begin_all();
  pthread_create(&thread, NULL, thread_of_ring, NULL);
  atomic_fetch_add(&asked, 1);
  MUST(WITHIN(5000, atomic_load(&answered) == 1) ? 0 : -1);
  tamper = cancel_all;
  serve(check);
}
