// N instances (the argument; 2 without one) of what is no open file, or has a part of its own for each: io_uring rings of all owners,
// requests that wait in rings, notifications of message queues, System V objects, AIO rings, posix timers, areas of memory of many kinds,
// pending signals, seccomp filters, marks, packet sockets, tun devices, mounts, descriptors in flight, dead processes' descriptors. "N:KIND,…"
// chooses among these; mounts are there only so.
#include "rings.h"
#include "mounts.h"
#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>

static int many = 2;

// Each kind has set-up and check of its i-th instance.
struct kind {
  const char *name;
  void (*set_up)(int i);
  void (*check)(int i);
};

// What it has: a descriptor for each instance, or as many as it needs.
static struct {
  int *fds;
  void **places;
  bool chosen;
} own[32], *mine;

#define FD (mine->fds[i])
#define PLACE (mine->places[i])

static long do_register(struct ring *ring, unsigned operation, const void *list, unsigned count) {
  return syscall(SYS_io_uring_register, ring->fd, operation, list, count);
}

static void use_ring(int i) {
  struct ring *ring = PLACE;
  nops(ring, 3, true);
}

static void make_ring(int i, uint32_t flags) {
  struct ring *ring = PLACE = calloc(1, sizeof *ring);
  *ring = set_up(4, 0, flags, false);
}

// Registered things, at 10 + i uses.
static void set_up_ring(int i) {
  make_ring(i, 0);
  struct ring *ring = PLACE;
  nops(ring, 10 + (unsigned)i, true);
  FD = (int)MUST(eventfd(0, EFD_NONBLOCK));
  MUST(do_register(ring, IORING_REGISTER_EVENTFD, &FD, 1));
  MUST(do_register(ring, IORING_REGISTER_FILES, &FD, 1));
  struct iovec vector = {ring, sizeof *ring};
  MUST(do_register(ring, IORING_REGISTER_BUFFERS, &vector, 1));
}

static void check_ring(int i) {
  uint64_t count = 0;
  use_ring(i);
  EXPECT(read(FD, &count, sizeof count) == sizeof count && count == 3, "eventfd %d was told of %lu", i, count);
}

static void set_up_single(int i) {
  make_ring(i, IORING_SETUP_SINGLE_ISSUER);
  nops(PLACE, 100 + (unsigned)i, true);
}

static void set_up_polled(int i) {
  make_ring(i, IORING_SETUP_SQPOLL);
  nops(PLACE, 5, true);
}

// Rings of another thread, which uses them when it is asked.
static atomic_int asked = -1, answered = -1;
static int of_thread;

static void *thread_of_rings(void *unused) {
  for (;;) {
    int i;
    while ((i = atomic_load(&asked)) < 0) sleep_ms(1);
    struct ring *ring = own[of_thread].places[i];
    if (ring == NULL) {
      ring = own[of_thread].places[i] = calloc(1, sizeof *ring);
      *ring = set_up(4, 0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, false);
      nops(ring, 50 + (unsigned)i, true);
    } else nops(ring, 3, true);
    atomic_store(&asked, -1);
    atomic_store(&answered, i);
  }
  return unused;
}

static void ask_thread(int i) {
  of_thread = (int)(mine - own);
  atomic_store(&asked, i);
  EXPECT(WITHIN(5000, atomic_load(&answered) == i), "the thread of the rings does not answer");
  atomic_store(&answered, -1);
}

static void set_up_deferred(int i) {
  pthread_t thread;
  if (i == 0) pthread_create(&thread, NULL, thread_of_rings, NULL);
  ask_thread(i);
}

// Requests that wait: all in one ring, which is shorter, and one in a ring of its own.
static void begin_poll(struct ring *ring, int i) {
  struct io_uring_sqe *sqe = next(ring, IORING_OP_POLL_ADD, 100 + (uint64_t)i);
  sqe->fd = FD;
  sqe->poll32_events = POLLIN;
  enter(ring, 1, 0);
}

static void set_up_waits(int i) {
  if (i == 0) {
    mine->places[many] = calloc(1, sizeof(struct ring));
    *(struct ring *)mine->places[many] = set_up(4, 256, 0, false);
  }
  make_ring(i, 0);
  FD = (int)MUST(eventfd(0, EFD_NONBLOCK));
  begin_poll(mine->places[many], i);
  begin_poll(PLACE, i);
}

static void check_waits(int i) {
  uint64_t one = 1;
  struct ring *ring = PLACE, *common = mine->places[many];
  EXPECT(ring->own_head == atomic_load(ring->cq_tail), "poll %d has ended by itself", i);
  EXPECT(write(FD, &one, sizeof one) == sizeof one, "write: %m");
  enter(ring, 0, 1);
  EXPECT_EQ(take(ring, 100 + (uint64_t)i), POLLIN);
  enter(common, 0, 1);
  EXPECT_EQ(take(common, 100 + (uint64_t)i), POLLIN);
  EXPECT(read(FD, &one, sizeof one) == sizeof one, "read: %m");
  begin_poll(common, i);
  begin_poll(ring, i);
}

static void name_of(char *name, int i) { snprintf(name, 32, "/many-%d", i); }

static void want_to_be_told(int i) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = i};
  EXPECT(mq_notify((mqd_t)FD, &event) == 0, "mq_notify: %m");
}

static void set_up_notify(int i) {
  char name[32];
  name_of(name, i);
  struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
  FD = (int)MUST(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
  want_to_be_told(i);
}

static void check_notify(int i) {
  char text[8];
  sigset_t set;
  siginfo_t info = {0};
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  EXPECT(mq_send((mqd_t)FD, "x", 1, 0) == 0, "mq_send: %m");
  EXPECT(sigtimedwait(&set, &info, &(struct timespec){5, 0}) == SIGRTMIN + 1 && info.si_value.sival_int == i, "nobody is told of queue %d", i);
  EXPECT(mq_receive((mqd_t)FD, text, sizeof text, NULL) == 1, "mq_receive: %m");
  want_to_be_told(i);
}

static void set_up_sysv(int i) {
  int shm = (int)MUST(shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600));
  PLACE = shmat(shm, NULL, 0);
  *(int *)PLACE = i;
  FD = (int)MUST(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
  struct sembuf up = {0, (short)(i + 1), SEM_UNDO};
  MUST(semop(FD, &up, 1));
  int queue = mine->fds[many + i] = (int)MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
  long message[2] = {1, i};
  MUST(msgsnd(queue, message, sizeof(long), 0));
}

static void check_sysv(int i) {
  EXPECT_EQ(*(int *)PLACE, i);
  EXPECT_EQ(semctl(FD, 0, GETVAL), i + 1);
  long message[2] = {0};
  EXPECT_EQ(msgrcv(mine->fds[many + i], message, sizeof(long), 0, IPC_NOWAIT), sizeof(long));
  EXPECT_EQ(message[1], i);
  EXPECT_EQ(msgsnd(mine->fds[many + i], message, sizeof(long), 0), 0);
}

static void set_up_aio(int i) { MUST(syscall(SYS_io_setup, 4, &PLACE)); }

static void check_aio(int i) {
  struct io_event event;
  struct timespec none = {0, 0};
  EXPECT_EQ(syscall(SYS_io_getevents, PLACE, 0, 1, &event, &none), 0);
}

static void set_up_timer(int i) {
  struct sigevent event = {.sigev_notify = i % 2 == 0 ? SIGEV_NONE : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
  struct itimerspec period = {.it_interval = {i + 1, 0}, .it_value = {100000, 0}};
  timer_t timer;
  MUST(timer_create(i % 3 == 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &event, &timer));
  MUST(timer_settime(timer, 0, &period, NULL));
  PLACE = timer;
}

static void check_timer(int i) {
  struct itimerspec period = {0};
  EXPECT_EQ(timer_gettime(PLACE, &period), 0);
  EXPECT_EQ(period.it_interval.tv_sec, i + 1);
}

// Areas: anonymous ones with settings, shared ones, of files, deleted files and memory files, of huge pages that nobody touches.
static void set_up_areas(int i) {
  char name[32];
  char *area = PLACE = map_anon(16 * PAGE, PROT_READ | PROT_WRITE);
  fill(area, PAGE, (uint64_t)i);
  MUST(mprotect(area + PAGE, PAGE, PROT_READ));
  MUST(mlock(area + 3 * PAGE, PAGE));
  MUST(madvise(area + 5 * PAGE, PAGE, MADV_DONTFORK));
  MUST(mprotect(area + 7 * PAGE, PAGE, PROT_NONE));
  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, area + 9 * PAGE, PAGE, "named");
  MUST(munmap(area + 11 * PAGE, PAGE));
  const int fixed = MAP_FIXED | MAP_SHARED, both = PROT_READ | PROT_WRITE;
  MUST(mmap(area + 12 * PAGE, PAGE, both, fixed | MAP_ANONYMOUS, -1, 0));
  snprintf(name, sizeof name, "area-%d", i);
  int fd = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  MUST(ftruncate(fd, PAGE));
  MUST(mmap(area + 13 * PAGE, PAGE, both, MAP_FIXED | MAP_PRIVATE, fd, 0));
  MUST(mmap(area + 14 * PAGE, PAGE, both, fixed, fd, 0));
  MUST(unlink(name));
  close(fd);
  fd = (int)MUST(memfd_create("area", 0));
  MUST(ftruncate(fd, PAGE));
  MUST(mmap(area + 15 * PAGE, PAGE, both, fixed, fd, 0));
  close(fd);
  for (int page = 12; page < 16; page++) *(int *)(area + page * (int)PAGE) = i + page;
  if (i > 0) return; // there are few such pages
  FD = (int)MUST(memfd_create("huge", MFD_HUGETLB));
  MUST(mmap(NULL, 2 * MIB, both, MAP_SHARED | MAP_NORESERVE, FD, 0));
}

static void check_areas(int i) {
  const char *area = PLACE;
  char permissions[5];
  EXPECT(filled(area, PAGE, (uint64_t)i), "area %d is another", i);
  maps_permissions(area + 12 * PAGE, permissions);
  EXPECT(strcmp(permissions, "rw-s") == 0, "shared area %d is %s", i, permissions);
  // Still no memory file.
  char link[128], path[256] = "";
  snprintf(link, sizeof link, "/proc/self/map_files/%lx-%lx", (long)area + 12 * (long)PAGE, (long)area + 13 * (long)PAGE);
  EXPECT(readlink(link, path, sizeof path - 1) > 0 && strncmp(path, "/dev/zero", 9) == 0, "shared area %d is of %s", i, path);
  for (int page = 12; page < 16; page++) EXPECT_EQ(*(const int *)(area + page * (int)PAGE), i + page);
}

static void set_up_signals(int i) {
  union sigval value = {.sival_int = i};
  MUST(sigqueue(getpid(), SIGRTMIN + 3, value));
  siginfo_t info = {.si_code = SI_QUEUE, .si_value = value};
  MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN + 4, &info));
}

static void check_signals(int i) {
  sigset_t set;
  siginfo_t info = {0};
  for (int which = 3; which <= 4; which++) {
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + which);
    EXPECT(sigtimedwait(&set, &info, &(struct timespec){0}) > 0 && info.si_value.sival_int == i, "signal %d is %d", i, info.si_value.sival_int);
  }
  set_up_signals(i);
}

// Of each number one call that nobody needs fails.
static void set_up_filter(int i) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)i, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)(100 + i)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {COUNT(code), code};
  MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
}

static void check_filter(int i) { EXPECT(syscall(SYS_acct, i) == -1 && errno == 100 + i, "filter %d: %m", i); }

static void set_up_marks(int i) {
  char name[32];
  snprintf(name, sizeof name, "marked-%d", i);
  mine->fds[many + i] = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  // Of groups there may be few (fs.fanotify.max_user_groups).
  FD = i % 16 == 0 ? (int)MUST(fanotify_init(FAN_NONBLOCK, O_RDONLY)) : mine->fds[i - i % 16];
  MUST(fanotify_mark(FD, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, name));
}

static void check_marks(int i) {
  struct fanotify_event_metadata event = {0};
  EXPECT_EQ(write(mine->fds[many + i], "x", 1), 1);
  EXPECT(read(FD, &event, sizeof event) == sizeof event && (event.mask & FAN_MODIFY) != 0, "mark %d tells nothing: %m", i);
  close(event.fd);
}

// Their end takes the kernel its time: of 60 there are 20.
static bool is_left_out(int i) { return i % 3 != 0; }

static void set_up_packet(int i) {
  if (is_left_out(i)) return;
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = (int)if_nametoindex("lo")};
  struct tpacket_req ring = {.tp_block_size = PAGE, .tp_block_nr = 1, .tp_frame_size = 1024, .tp_frame_nr = 4};
  FD = (int)MUST(socket(AF_PACKET, SOCK_RAW, htons(0x88b5)));
  MUST(bind(FD, (void *)&address, sizeof address));
  MUST(setsockopt(FD, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
  PLACE = (void *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, FD, 0));
}

static void check_packet(int i) {
  if (is_left_out(i)) return;
  struct sockaddr_ll address;
  socklen_t size = sizeof address;
  EXPECT(getsockname(FD, (void *)&address, &size) == 0 && address.sll_protocol == htons(0x88b5), "packet socket %d: %m", i);
  EXPECT_EQ(((struct tpacket_hdr *)PLACE)->tp_status, TP_STATUS_KERNEL);
}

static void set_up_tun(int i) {
  if (is_left_out(i)) return;
  struct ifreq one = {.ifr_flags = IFF_TUN | IFF_NO_PI};
  snprintf(one.ifr_name, IFNAMSIZ, "many%d", i);
  FD = (int)MUST(open("/dev/net/tun", O_RDWR | O_NONBLOCK));
  MUST(ioctl(FD, TUNSETIFF, &one));
}

static void check_tun(int i) {
  if (is_left_out(i)) return;
  struct ifreq one = {0};
  EXPECT(ioctl(FD, TUNGETIFF, &one) == 0 && atoi(one.ifr_name + 4) == i, "tun device %d is %s", i, one.ifr_name);
}

// A file system of its own, and a directory that is bound to another.
static void set_up_mount(int i) {
  char name[32], file[48];
  snprintf(name, sizeof name, "mount-%d", i);
  MUST(mkdir(name, 0700));
  MUST(mount("many", name, "tmpfs", 0, "size=1m"));
  snprintf(file, sizeof file, "%s/file", name);
  FD = (int)MUST(open(file, O_RDWR | O_CREAT, 0600));
  MUST(write(FD, &i, sizeof i));
  snprintf(file, sizeof file, "bound-%d", i);
  MUST(mkdir(file, 0700));
  MUST(mount(name, file, NULL, MS_BIND, NULL));
}

static void check_mount(int i) {
  char file[48];
  int got = -1;
  EXPECT(pread(FD, &got, sizeof got, 0) == sizeof got && got == i, "a file of mount %d: %d", i, got);
  snprintf(file, sizeof file, "bound-%d/file", i);
  struct stat here, there;
  EXPECT(stat(file, &there) == 0 && fstat(FD, &here) == 0 && here.st_ino == there.st_ino && here.st_dev == there.st_dev, "mount %d is not bound: %m", i);
}

// A pipe that is in flight only, and an event descriptor that is open as well.
static void send_fds(int i) {
  int ends[2], flying[2];
  MUST(pipe(ends));
  MUST(write(ends[1], &i, sizeof i));
  close(ends[1]);
  flying[0] = ends[0];
  flying[1] = FD;
  char control[CMSG_SPACE(sizeof flying)] = {0};
  struct iovec vector = {"x", 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof flying), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(header), flying, sizeof flying);
  EXPECT_EQ(sendmsg(mine->fds[many + i], &message, 0), 1);
  close(ends[0]);
}

static void set_up_flight(int i) {
  int pair[2];
  FD = (int)MUST(eventfd((unsigned)i, EFD_NONBLOCK));
  MUST(socketpair(AF_UNIX, i % 2 == 0 ? SOCK_DGRAM : SOCK_STREAM, 0, pair));
  mine->fds[many + i] = pair[0];
  mine->fds[2 * many + i] = pair[1];
  send_fds(i);
}

static void check_flight(int i) {
  int flying[2], got = -1;
  char control[CMSG_SPACE(sizeof flying)], byte;
  struct iovec vector = {&byte, 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  EXPECT(recvmsg(mine->fds[2 * many + i], &message, 0) == 1, "message %d: %m", i);
  memcpy(flying, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof flying);
  EXPECT(read(flying[0], &got, sizeof got) == sizeof got && got == i, "pipe %d holds %d", i, got);
  close(flying[0]);
  close(flying[1]);
  send_fds(i);
}

// A pidfd of a process that is dead, and a map of bpf(2).
static void set_up_dead(int i) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) _exit(0);
  FD = (int)MUST(syscall(SYS_pidfd_open, pid, 0));
  waitpid(pid, NULL, 0);
  union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
  mine->fds[many + i] = (int)MUST(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

static void check_dead(int i) {
  struct pollfd ready = {FD, POLLIN, 0};
  EXPECT(poll(&ready, 1, 0) == 1 && syscall(SYS_pidfd_send_signal, FD, 0, NULL, 0) == -1 && errno == ESRCH, "pidfd %d is of a live process", i);
  EXPECT(fcntl(mine->fds[many + i], F_GETFD) >= 0, "map %d: %m", i);
}

// An epoll that watches a descriptor that has been closed, of a file that is open elsewhere; a deleted directory; a FIFO with data; locks.
static void set_up_odds(int i) {
  char name[32];
  int *fd = mine->fds + many * 4;
  int ends[2];
  MUST(pipe(ends));
  fd[i * 6] = ends[1];
  fd[i * 6 + 1] = (int)MUST(dup(ends[0]));
  fd[i * 6 + 2] = (int)MUST(epoll_create1(0));
  MUST(epoll_ctl(fd[i * 6 + 2], EPOLL_CTL_ADD, ends[0], &(struct epoll_event){.events = EPOLLIN, .data.u32 = (uint32_t)i}));
  close(ends[0]);
  snprintf(name, sizeof name, "directory-%d", i);
  MUST(mkdir(name, 0700));
  fd[i * 6 + 3] = (int)MUST(open(name, O_RDONLY | O_DIRECTORY));
  MUST(rmdir(name));
  snprintf(name, sizeof name, "fifo-%d", i);
  MUST(mkfifo(name, 0600));
  fd[i * 6 + 4] = (int)MUST(open(name, O_RDWR | O_NONBLOCK));
  MUST(write(fd[i * 6 + 4], &i, sizeof i));
  snprintf(name, sizeof name, "odd-%d", i);
  fd[i * 6 + 5] = (int)MUST(open(name, O_RDWR | O_CREAT, 0600));
  struct flock lock = {.l_type = F_WRLCK, .l_start = i, .l_len = 1};
  MUST(fcntl(fd[i * 6 + 5], i % 2 == 0 ? F_SETLK : F_OFD_SETLK, &lock));
}

static void check_odds(int i) {
  const int *fd = mine->fds + many * 4 + i * 6;
  struct epoll_event event;
  char byte;
  int got = -1;
  EXPECT(epoll_wait(fd[2], &event, 1, 0) == 0, "epoll %d has an event", i);
  EXPECT(write(fd[0], "x", 1) == 1 && epoll_wait(fd[2], &event, 1, 1000) == 1 && (int)event.data.u32 == i, "epoll %d has none", i);
  EXPECT(read(fd[1], &byte, 1) == 1, "read: %m");
  struct stat stat;
  EXPECT(fstat(fd[3], &stat) == 0 && stat.st_nlink == 0, "directory %d is there", i);
  EXPECT(read(fd[4], &got, sizeof got) == sizeof got && got == i && write(fd[4], &i, sizeof i) == sizeof i, "fifo %d holds %d", i, got);
}

static struct kind kinds[] = {
    {"rings", set_up_ring, check_ring},       {"single", set_up_single, use_ring},    {"polled", set_up_polled, use_ring},
    {"deferred", set_up_deferred, ask_thread}, {"waits", set_up_waits, check_waits},   {"notify", set_up_notify, check_notify},
    {"sysv", set_up_sysv, check_sysv},        {"aio", set_up_aio, check_aio},         {"timers", set_up_timer, check_timer},
    {"areas", set_up_areas, check_areas},     {"signals", set_up_signals, check_signals}, {"marks", set_up_marks, check_marks},
    {"packets", set_up_packet, check_packet}, {"tuns", set_up_tun, check_tun},        {"mounts", set_up_mount, check_mount},
    {"flight", set_up_flight, check_flight},  {"dead", set_up_dead, check_dead},      {"odds", set_up_odds, check_odds},
    {"filters", set_up_filter, check_filter},
};

// "N:KIND,KIND", or "N" for all.
static bool is_chosen(const char *name, const char *wanted) {
  const char *names = strchr(wanted, ':');
  if (names == NULL) return strcmp(name, "mounts") != 0; // there the devices are missing
  for (names++; names != NULL; names = strchr(names, ','), names += names != NULL)
    if (strncmp(names, name, strlen(name)) == 0 && strchr(",", names[strlen(name)]) != NULL) return true;
  return false;
}

static void each(void (*kind_of)(const struct kind *kind, int i)) {
  for (size_t kind = 0; kind < COUNT(kinds); kind++) {
    mine = &own[kind];
    for (int i = 0; mine->chosen && i < many; i++) kind_of(&kinds[kind], i);
  }
}

static void set_up_one(const struct kind *kind, int i) { kind->set_up(i); }
static void check_one(const struct kind *kind, int i) { kind->check(i); }
static void check(void) { each(check_one); }

static void spoil(void) {
  uint64_t one = 1;
  MUST(write(own[0].fds[0], &one, sizeof one));
}

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  bool inside = argc > 1 && strcmp(argv[1], "inside") == 0;
  const char *wanted = argc > 2 ? argv[2] : argc > 1 ? argv[1] : "2";
  many = atoi(wanted);
  // Objects of these namespaces are nobody else's.
  if (is_chosen("mounts", wanted) && !inside) leave_outside(wanted);
  if (is_chosen("notify", wanted) || is_chosen("sysv", wanted)) MUST(unshare(CLONE_NEWIPC));
  if (is_chosen("tuns", wanted) || is_chosen("packets", wanted)) MUST(unshare(CLONE_NEWNET));
  sigset_t set;
  sigemptyset(&set);
  for (int i = 1; i <= 4; i++) sigaddset(&set, SIGRTMIN + i);
  MUST(sigprocmask(SIG_BLOCK, &set, NULL));
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  for (size_t kind = 0; kind < COUNT(kinds); kind++) {
    own[kind].chosen = is_chosen(kinds[kind].name, wanted);
    own[kind].fds = calloc((size_t)many * 12, sizeof(int));
    own[kind].places = calloc((size_t)many + 1, sizeof(void *));
  }
  each(set_up_one);
  serve(check);
}
