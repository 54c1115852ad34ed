// Operations on open files of all kinds but sockets.
#pragma once
#include "random_state.h"
#include <linux/fs.h>
#include <mqueue.h>
#include <sys/vfs.h>

#define PICKED(kinds, place)                 \
  ({                                         \
    int picked_ = pick(kinds, place);        \
    if (picked_ < 0) return;                 \
    picked_;                                 \
  })

static void do_open(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const int ways[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_PATH};
  static const int more[] = {O_APPEND, O_NONBLOCK, O_CLOEXEC, O_DIRECT, O_SYNC, O_NOATIME, O_DSYNC, O_NOFOLLOW};
  char path[16];
  snprintf(path, sizeof path, "f%u", a % 8);
  int flags = ways[b % COUNT(ways)];
  if (c & 1) flags |= more[c / 2 % COUNT(more)];
  if (d & 1) flags |= more[d / 2 % COUNT(more)];
  // Without waiting: the file may have a lease.
  int fd = open(path, flags | O_NONBLOCK);
  if (!(flags & O_NONBLOCK)) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  note("open %s 0%o -> %d", path, flags, fd);
}

static void do_seek(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = PICKED(REGULAR | DIRECTORIES, a);
  note("seek %d -> %ld", fd, (long)lseek(fd, b % 20000, SEEK_SET));
}

static void do_write(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  int fd = PICKED(REGULAR, a);
  char bytes[600];
  memset(bytes, 'A' + (int)(c % 26), sizeof bytes);
  note("write %d -> %zd", fd, write(fd, bytes, b % sizeof bytes));
}

static void do_truncate(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  int fd = PICKED(REGULAR, a);
  struct statfs system;
  if (fcntl(fd, F_GETLEASE) != F_UNLCK || fstatfs(fd, &system) == -1 || system.f_type == 0x19800202 /* mqueue */) return;
  note("truncate %d -> %d", fd, ftruncate(fd, b % 30000));
}

static void do_deleted(unsigned a, unsigned b, unsigned c, unsigned d) {
  char path[32];
  snprintf(path, sizeof path, "s/d%u", c % 3 == 0 ? 0 : (unsigned)now_step);
  int fd = open(path, O_CREAT | O_RDWR | (d & 1 ? O_APPEND : 0) | (d & 2 ? O_CLOEXEC : 0), 0600 | (a & 0177));
  if (b % 4 == 0) ftruncate(fd, 100000);
  pwrite(fd, path, strlen(path), b % 9000);
  if (b % 5 == 0) open(path, O_RDONLY);
  if (b % 7 == 0) open(path, O_PATH);
  note("deleted %s -> %d, %d", path, fd, unlink(path));
}

static void do_tmpfile(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  int fd = open(c & 1 ? "s" : ".", O_TMPFILE | O_RDWR | (a & 1 ? O_EXCL : 0), 0600);
  write(fd, "a temporary file", b % 16);
  note("tmpfile -> %d", fd);
}

static void do_linked(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  char path[32], other[32];
  snprintf(path, sizeof path, "s/l%d", now_step);
  snprintf(other, sizeof other, "s/m%d", now_step);
  int fd = open(path, O_CREAT | O_RDWR, 0640);
  write(fd, path, strlen(path));
  link(path, other);
  if (b & 1) open(other, O_RDONLY);
  unlink(path);
  if (a % 3 == 0) unlink(other);
  note("linked %s -> %d", path, fd);
}

static void do_renamed(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  char path[32], other[32];
  snprintf(path, sizeof path, "s/r%d", now_step);
  snprintf(other, sizeof other, "s/R%u", a % 2);
  int fd = open(path, O_CREAT | (b & 1 ? O_WRONLY : O_RDWR), 0644);
  write(fd, path, strlen(path));
  note("renamed %s over %s -> %d, %d", path, other, fd, rename(path, other));
}

static void do_directory(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  char path[32], entries[512];
  snprintf(path, sizeof path, "s/D%d", now_step);
  bool gone = a % 3 == 0;
  if (gone) mkdir(path, 0750);
  int fd = open(gone ? path : "s", O_DIRECTORY | (b % 4 == 0 ? O_PATH : O_RDONLY) | (c & 1 ? O_CLOEXEC : 0));
  if (gone) rmdir(path);
  if (b & 1) syscall(SYS_getdents64, fd, entries, 100 + c % 400);
  note("directory -> %d", fd);
}

static void do_special(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  static const char *const paths[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/proc/self/status",
                                      "/proc/self/maps", "/proc/self/fd", "/proc/meminfo", "/proc/self/ns/net",
                                      "/proc/thread-self/comm", "/sys/kernel/mm", "/proc/self/root", "link", "s/../f1",
                                      "/proc/self/task", "/proc/self/ns/user", "/proc/sys/kernel/ostype"};
  char bytes[64];
  const char *path = paths[a % COUNT(paths)];
  int fd = open(path, (b % 5 == 0 ? O_PATH : O_RDONLY) | (b % 6 == 1 ? O_NOFOLLOW : 0));
  if (c & 1) read(fd, bytes, sizeof bytes);
  note("special %s -> %d", path, fd);
}

static void do_pipe(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fds[2];
  if (pipe2(fds, (a & 1 ? O_NONBLOCK : 0) | (a & 2 ? O_CLOEXEC : 0)) == -1) return;
  if (b % 3 == 0) fcntl(fds[1], F_SETPIPE_SZ, 4096 << b % 5);
  if (c % 4 != 0) {
    char bytes[3000];
    fill(bytes, sizeof bytes, c);
    write(fds[1], bytes, c % sizeof bytes);
    if (d & 1) write(fds[1], bytes, 5);
  }
  if (d % 5 == 1) close(fds[0]);
  if (d % 5 == 2) close(fds[1]);
  note("pipe %d %d", fds[0], fds[1]);
}

static void do_fifo(unsigned a, unsigned b, unsigned c, unsigned d) {
  char path[16];
  snprintf(path, sizeof path, "q%u", a % 3);
  mkfifo(path, 0600);
  int fd = open(path, (b % 3 == 0 ? O_RDONLY : b % 3 == 1 ? O_WRONLY : O_RDWR) | O_NONBLOCK);
  if (b % 3 != 0) write(fd, "through a fifo", c % 14);
  if (d % 6 == 0) unlink(path);
  if (d & 1) fcntl(fd, F_SETFL, 0);
  note("fifo %s -> %d", path, fd);
}

static void do_dup(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  int fd = PICKED(ALL, a);
  int made = b & 1 ? fcntl(fd, b & 2 ? F_DUPFD : F_DUPFD_CLOEXEC, 3 + c % 200)
                   : dup3(fd, 3 + (int)(c % 200), b & 2 ? O_CLOEXEC : 0);
  note("dup %d -> %d", fd, made);
}

static void do_close(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)b, (void)c, (void)d;
  int fd = PICKED(ALL, a);
  note("close %d -> %d", fd, close(fd));
}

static void do_flags(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const int flags[] = {O_NONBLOCK, O_APPEND, O_ASYNC, O_NONBLOCK | O_ASYNC, 0};
  int fd = PICKED(ALL, a);
  switch (b % 6) {
  case 0: fcntl(fd, F_SETFD, c & 1); break;
  case 1: fcntl(fd, F_SETFL, flags[c % COUNT(flags)]); break;
  case 2: {
    struct f_owner_ex owner = {(int)(c % 3), 0};
    owner.pid = d & 1 ? getpid() : c % 3 == 0 ? gettid() : c % 3 == 2 ? getpgid(0) : getpid();
    fcntl(fd, F_SETOWN_EX, &owner);
    break;
  }
  case 3: fcntl(fd, F_SETSIG, c & 1 ? SIGRTMIN + (int)(c % 5) : SIGIO); break;
  case 4: {
    uint64_t hint = c % 6;
    fcntl(fd, F_SET_RW_HINT, &hint);
    break;
  }
  default: fcntl(fd, F_SETLEASE, c % 3 == 0 ? F_RDLCK : c % 3 == 1 ? F_WRLCK : F_UNLCK);
  }
  note("flags of %d: %u %u", fd, b % 6, c);
}

static void do_lock(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fd = PICKED(REGULAR, a), result;
  struct flock lock = {.l_type = (short)(d & 1 ? F_RDLCK : F_WRLCK), .l_whence = SEEK_SET, .l_start = c % 100, .l_len = d % 50};
  if (b % 3 == 0) result = flock(fd, (d & 1 ? LOCK_SH : LOCK_EX) | LOCK_NB);
  else result = fcntl(fd, b % 3 == 1 ? F_SETLK : F_OFD_SETLK, &lock);
  note("lock %d: %u -> %d", fd, b % 3, result);
}

static void do_eventfd(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c;
  int fd = eventfd(a % 100, (b & 1 ? EFD_NONBLOCK : 0) | (b & 2 ? EFD_SEMAPHORE : 0) | (b & 4 ? EFD_CLOEXEC : 0));
  uint64_t huge = 0xfffffffffffffff0;
  if (d % 4 == 0 && a % 100 < 10) write(fd, &huge, 8);
  note("eventfd -> %d", fd);
}

static void do_timerfd(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};
  clockid_t clock = clocks[a % COUNT(clocks)];
  int fd = timerfd_create(clock, (b & 1 ? TFD_NONBLOCK : 0) | (b & 2 ? TFD_CLOEXEC : 0));
  struct itimerspec time = {{c % 3 * 1000, c % 3 == 0 ? 0 : c % 7}, {1000 + d % 1000, 5}};
  int flags = 0;
  if (b & 4) {
    struct timespec now;
    clock_gettime(clock, &now);
    time.it_value.tv_sec += now.tv_sec;
    flags = TFD_TIMER_ABSTIME | (b & 8 ? TFD_TIMER_CANCEL_ON_SET : 0);
  }
  if (b & 16) time.it_value = (struct timespec){0, 1};
  if (b & 64) timerfd_settime(fd, flags, &time, NULL);
  if (b & 16) usleep(1000);
  note("timerfd %d -> %d", clock, fd);
}

static void do_signalfd(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + (int)(a % 8));
  sigaddset(&set, 1 + (int)(c % 30));
  note("signalfd -> %d", signalfd(-1, &set, (b & 1 ? SFD_NONBLOCK : 0) | (b & 2 ? SFD_CLOEXEC : 0)));
}

static void do_epoll(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)b, (void)c, (void)d;
  note("epoll -> %d", epoll_create1(a & 1 ? EPOLL_CLOEXEC : 0));
}

static void do_watch(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const unsigned events[] = {EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT, EPOLLRDHUP | EPOLLPRI,
                                    EPOLLIN | EPOLLEXCLUSIVE, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLWAKEUP, 0};
  int fd = PICKED(OTHERS, a), target = PICKED(ALL, b);
  struct epoll_event event = {.events = events[c % COUNT(events)], .data.u64 = c * 0x100000001ULL};
  int result = epoll_ctl(fd, d % 5 == 0 ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, target, &event);
  if (result == 0 && d % 7 == 0) close(target);
  if (result == 0 && d % 7 == 1) epoll_wait(fd, &event, 1, 0);
  note("watch %d in %d -> %d", target, fd, result);
}

static void do_inotify(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fd = inotify_init1((a & 1 ? IN_NONBLOCK : 0) | (a & 2 ? IN_CLOEXEC : 0));
  inotify_add_watch(fd, b & 1 ? "f7" : "/tmp", IN_ATTRIB << c % 3);
  if (d & 1) {
    int removed = inotify_add_watch(fd, "f6", IN_UNMOUNT);
    if (d & 2) inotify_rm_watch(fd, removed);
    inotify_add_watch(fd, "s", IN_DELETE_SELF);
  }
  note("inotify -> %d", fd);
}

static void do_pidfd(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  pid_t pid = page->actors[a % (unsigned)page->count].pid;
  note("pidfd of %d -> %ld", pid, syscall(SYS_pidfd_open, pid, b & 1 ? O_NONBLOCK : 0));
}

static void do_memfd(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const int seals[] = {0, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, 0x20 /* F_SEAL_EXEC */};
  char name[32];
  snprintf(name, sizeof name, "memory %u", a % 3);
  int fd = memfd_create(name, (b & 1 ? MFD_CLOEXEC : 0) | (b & 2 ? MFD_ALLOW_SEALING : 0) | (b % 5 == 0 ? 8U /* MFD_NOEXEC_SEAL */ : 0));
  ftruncate(fd, c % 5 * 5000);
  pwrite(fd, name, strlen(name), c % 20000);
  if (d & 1) lseek(fd, d % 3000, SEEK_SET);
  if (b & 2) fcntl(fd, F_ADD_SEALS, seals[d % COUNT(seals)]);
  if (c % 6 == 0) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    open(path, c & 1 ? O_RDONLY : O_RDWR);
  }
  note("memfd -> %d", fd);
}

static void do_pty(unsigned a, unsigned b, unsigned c, unsigned d) {
  int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | (a & 1 ? O_NONBLOCK : 0)), unlocked = 0, slave = -1;
  char path[32];
  unsigned number;
  if (master < 0 || ioctl(master, TIOCGPTN, &number) == -1) return;
  if (a % 5 != 0) ioctl(master, TIOCSPTLCK, &unlocked);
  snprintf(path, sizeof path, "/dev/pts/%u", number);
  if (b % 4 != 0) slave = open(path, O_RDWR | O_NOCTTY | (b & 1 ? O_NONBLOCK : 0));
  struct termios termios;
  if (slave >= 0 && tcgetattr(slave, &termios) == 0) {
    if (c & 1) cfmakeraw(&termios);
    if (c & 2) termios.c_lflag &= ~(tcflag_t)ECHO;
    termios.c_cc[VMIN] = (cc_t)(c % 4);
    tcsetattr(slave, TCSANOW, &termios);
    struct winsize size = {(unsigned short)(d % 100), 80, 1, 2};
    ioctl(slave, TIOCSWINSZ, &size);
    if (c & 4) write(master, "typed\nunfinished", c & 8 ? 16 : 6);
    if (c & 16) write(slave, "printed", 7);
    if (d % 6 == 0) ioctl(slave, TIOCEXCL);
  }
  if (d % 5 == 1) close(master);
  if (d % 5 == 2 && slave >= 0) close(slave);
  note("pty %u -> %d %d", number, master, slave);
}

static void do_mqueue(unsigned a, unsigned b, unsigned c, unsigned d) {
  char name[40];
  snprintf(name, sizeof name, "/random.%d.%d", page->actors[0].pid, now_step);
  struct mq_attr attributes = {.mq_maxmsg = 1 + b % 8, .mq_msgsize = 64};
  int fd = mq_open(name, O_CREAT | O_RDWR | (a & 1 ? O_NONBLOCK : 0), 0600, &attributes);
  for (unsigned i = 0; i < c % 4; i++) mq_send(fd, name, (size_t)(b % 20), d % (i + 3));
  mq_unlink(name);
  note("mqueue -> %d", fd);
}

#define FILE_OPERATIONS                                                                                                    \
  {"open", do_open}, {"seek", do_seek}, {"write", do_write}, {"truncate", do_truncate}, {"deleted", do_deleted},           \
    {"tmpfile", do_tmpfile}, {"linked", do_linked}, {"renamed", do_renamed}, {"directory", do_directory},                  \
    {"special", do_special}, {"pipe", do_pipe}, {"fifo", do_fifo}, {"dup", do_dup}, {"close", do_close},                   \
    {"flags", do_flags}, {"lock", do_lock}, {"eventfd", do_eventfd}, {"timerfd", do_timerfd}, {"signalfd", do_signalfd},   \
    {"epoll", do_epoll}, {"watch", do_watch}, {"inotify", do_inotify}, {"pidfd", do_pidfd}, {"memfd", do_memfd},           \
    {"pty", do_pty}, {"mqueue", do_mqueue}
