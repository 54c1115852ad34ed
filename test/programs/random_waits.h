// What actors wait in, and what they tell of themselves when they are poked.
#pragma once
#include "random_tasks.h"
#include <sys/auxv.h>
#include <sys/msg.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/uio.h>

static _Thread_local unsigned wait_kind, wait_a, wait_b, wait_c;
static const struct timespec long_time = {5000, 0};

static void do_wait(unsigned a, unsigned b, unsigned c, unsigned d) {
  wait_kind = a;
  wait_a = b;
  wait_b = c;
  wait_c = d;
  note("will wait in %u", a % 32);
}

// A call that does not come back before the poke; those that would are told as they end.
static long wait_once(void) {
  struct timespec time = long_time, rest = {0};
  struct pollfd polled[3];
  sigset_t mask;
  fd_set set;
  char bytes[16];
  int fd;
  long result;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  switch (wait_kind % 32) {
  case 1: return (fd = pick(PIPES, wait_a)) < 0 ? -1 : read(fd, bytes, sizeof bytes);
  case 2:
  case 3:
  case 4: {
    for (unsigned i = 0; i < 3; i++) polled[i] = (struct pollfd){pick(ALL, wait_a + i * wait_b), wait_c & 1 ? POLLIN : POLLPRI, 0};
    int timeout = wait_b & 1 ? -1 : 5000000;
    if (wait_kind % 32 == 2) return poll(polled, 3, timeout);
    if (wait_kind % 32 == 3) return ppoll(polled, 3, wait_b & 1 ? NULL : &time, &mask);
    FD_ZERO(&set);
    if (polled[0].fd >= 0) FD_SET(polled[0].fd, &set);
    struct timeval limit = {5000, 0};
    result = select(256, NULL, NULL, &set, wait_b & 1 ? NULL : &limit);
    if (!(wait_b & 1)) say("~rest: %ld\n", (long)limit.tv_sec);
    return result;
  }
  case 5: {
    struct epoll_event event;
    fd = pick(OTHERS, wait_a);
    return fd < 0 ? -1 : wait_b & 1 ? epoll_wait(fd, &event, 1, -1) : epoll_pwait(fd, &event, 1, -1, &mask);
  }
  case 6:
    result = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &rest);
    say("~rest: %ld\n", (long)rest.tv_sec);
    return -result;
  case 7: {
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_sec += 5000;
    return -clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &time, NULL);
  }
  case 8: {
    result = syscall(SYS_nanosleep, &time, &rest);
    say("~rest: %ld\n", (long)rest.tv_sec);
    return result;
  }
  case 9: return waitpid(-1, NULL, wait_a & 1 ? __WALL : __WNOTHREAD);
  case 10: {
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WSTOPPED | (wait_a & 1 ? WCONTINUED : 0));
  }
  case 11: return (fd = pick(SOCKETS, wait_a)) < 0 ? -1 : accept(fd, NULL, NULL);
  case 12: return (fd = pick(SOCKETS, wait_a)) < 0 ? -1 : recv(fd, bytes, sizeof bytes, MSG_WAITALL);
  case 13: {
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return (fd = pick(SOCKETS, wait_a)) < 0 ? -1 : recvmsg(fd, &message, 0);
  }
  case 14: return sigsuspend(&mask);
  case 15: return pause();
  case 16: return (fd = pick(REGULAR, wait_a)) < 0 ? -1 : flock(fd, LOCK_EX);
  case 17: {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return (fd = pick(REGULAR, wait_a)) < 0 ? -1 : fcntl(fd, wait_b & 1 ? F_OFD_SETLKW : F_SETLKW, &lock);
  }
  case 18: {
    static uint32_t word;
    return syscall(SYS_futex, &word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, wait_a & 1 ? &long_time : NULL, NULL, 0);
  }
  case 19: {
    static uint32_t word;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_sec += 5000;
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &time, NULL, 0xff);
  }
  case 20: {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, 61);
    return sigsuspend(&mask); // sigtimedwait ends at every stop
  }
  case 21: return (fd = pick(OTHERS, wait_a)) < 0 ? -1 : read(fd, bytes, sizeof bytes);
  case 22: return (fd = pick(DEVICES, wait_a)) < 0 ? -1 : read(fd, bytes, wait_b % 16);
  case 24: {
    struct mmsghdr messages[2] = {0};
    struct iovec part = {bytes, sizeof bytes};
    messages[0].msg_hdr = messages[1].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    return (fd = pick(SOCKETS, wait_a)) < 0 ? -1 : recvmmsg(fd, messages, 2, MSG_WAITFORONE, NULL);
  }
  case 25:
    while (atomic_load(&page->arrived) < page->count) usleep(1000);
    return kill(getpid(), SIGSTOP);
  case 26: {
    struct pollfd one = {(fd = pick(PIPES | SOCKETS, wait_a)), POLLIN | POLLPRI, 0};
    time.tv_sec = 4000;
    result = fd < 0 ? -1 : syscall(SYS_ppoll, &one, 1, &time, NULL, 0);
    say("~rest: %ld\n", (long)time.tv_sec);
    return result;
  }
  case 27: {
    int in = pick(PIPES, wait_a), out = pick(PIPES, wait_b);
    return in < 0 ? -1 : splice(in, NULL, out, NULL, 1000, 0);
  }
  case 28: {
    struct iovec parts[2] = {{bytes, 4}, {bytes + 4, 4}};
    return (fd = pick(PIPES | SOCKETS, wait_a)) < 0 ? -1 : readv(fd, parts, 2);
  }
  default: errno = EINTR; return -2; // waits for the page
  }
}

static void tell_signals(void) {
  for (int signal = 1; signal <= 64; signal++) {
    struct {
      void *handler;
      unsigned long flags;
      void *restorer;
      uint64_t mask;
    } action;
    if (syscall(SYS_rt_sigaction, signal, NULL, &action, 8) == 0 && (action.handler != on_signal || action.flags != 0x14000000 || action.mask))
      say("action %d: %p %lx %p %lx\n", signal, action.handler, action.flags, action.restorer, action.mask);
    if (handled[signal]) say("handled %d: %u\n", signal, handled[signal]);
  }
}

static void tell_timers(void) {
  for (int i = 0; i < timer_count; i++) {
    struct itimerspec value;
    if (timer_gettime(timers[i], &value) == -1) say("timer %d: %m\n", i);
    else {
      say("timer %d: every %ld.%09ld, overrun %d\n", i, (long)value.it_interval.tv_sec, value.it_interval.tv_nsec, timer_getoverrun(timers[i]));
      say("~timer %d: %ld\n", i, (long)value.it_value.tv_sec);
    }
  }
  for (int which = 0; which < 3; which++) {
    struct itimerval value;
    getitimer(which, &value);
    say("itimer %d: every %ld.%06ld\n", which, (long)value.it_interval.tv_sec, (long)value.it_interval.tv_usec);
    say("~itimer %d: %ld\n", which, (long)value.it_value.tv_sec);
  }
}

static void tell_settings(void) {
  static const int plain[] = {PR_GET_KEEPCAPS, PR_GET_TIMING, PR_GET_SECCOMP, PR_GET_SECUREBITS, PR_GET_TIMERSLACK,
                              PR_GET_NO_NEW_PRIVS, PR_GET_THP_DISABLE, PR_MCE_KILL_GET, PR_GET_IO_FLUSHER, 68 /* PR_GET_MEMORY_MERGE */,
                              PR_GET_DUMPABLE};
  for (size_t i = 0; i < COUNT(plain); i++) say("prctl %d: %d\n", plain[i], prctl(plain[i], 0, 0, 0, 0));
  int value = 0;
  prctl(PR_GET_PDEATHSIG, &value);
  say("death signal: %d\n", value);
  value = 0;
  prctl(PR_GET_CHILD_SUBREAPER, &value);
  say("subreaper: %d\n", value);
  value = 0;
  prctl(PR_GET_TSC, &value);
  say("tsc: %d\n", value);
  int *address = NULL;
  prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0);
  say("tid address: %p\n", (void *)address);
  void *head = NULL;
  size_t length = 0;
  syscall(SYS_get_robust_list, 0, &head, &length);
  say("robust list: %p %zu\n", head, length);
  for (int i = 0; i < 3; i++) say("speculation %d: %x\n", i, prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0));
  for (int i = 0; i < 41; i++)
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1) say("ambient: %d\n", i);
  say("personality: %x\n", personality(0xffffffff));
  stack_t stack;
  sigaltstack(NULL, &stack);
  say("altstack: %p %x %zu\n", stack.ss_sp, stack.ss_flags, stack.ss_size);
  say("fs uid: %d %d\n", (int)syscall(SYS_setfsuid, -1), (int)syscall(SYS_setfsgid, -1));
}

// Locks as this process sees them: whose they are shows when another asks.
static void tell_locks(void) {
  for (int fd = 3; fd < 256; fd++) {
    struct stat stat;
    if (fstat(fd, &stat) == -1 || !S_ISREG(stat.st_mode)) continue;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
      say("lock %d: %d %ld %ld %d\n", fd, lock.l_type, (long)lock.l_start, (long)lock.l_len, lock.l_pid);
    lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
      say("ofd lock %d: %d %ld %ld %d\n", fd, lock.l_type, (long)lock.l_start, (long)lock.l_len, lock.l_pid);
  }
}

static void tell_all(int generation, long result, int error) {
  struct actor *actor = &page->actors[me];
  say("wait: %ld %s\n", result, result == -1 ? strerrorname_np(error) : "");
  sigset_t set;
  sigemptyset(&set);
  sigpending(&set);
  say("pending: %lx\n", *(unsigned long *)&set);
  pthread_sigmask(SIG_SETMASK, NULL, &set);
  say("mask: %lx\n", *(unsigned long *)&set);
  if (gettid() == getpid()) tell_signals();
  tell_timers();
  tell_settings();
  if (gettid() == getpid()) tell_locks();
  atomic_store(&actor->told, generation);
}

static void wait_poked(long result, int error) {
  struct actor *actor = &page->actors[me];
  int generation;
  while ((generation = atomic_load(&page->generation)) == actor->told) {
    atomic_store(&actor->idle, 1);
    atomic_store(&actor->state, WAITING);
    syscall(SYS_futex, &page->generation, FUTEX_WAIT, generation, NULL, NULL, 0);
  }
  atomic_store(&actor->idle, 0);
  tell_all(generation, result, error);
}

// Waits for ever. A call that ends by itself is followed by a wait for the page; the poke of others is a signal.
static _Noreturn void settle(void) {
  struct actor *actor = &page->actors[me];
  actor->rseq = __rseq_size == 0 ? 0 : (uint64_t)((char *)__builtin_thread_pointer() + __rseq_offset);
  tell_all(0, 0, 0);
  for (;;) {
    actor->told = atomic_load(&page->generation);
    actor->length = 0;
    long result = -2;
    errno = 0;
    if (wait_kind % 32 != 0) {
      actor->scratch = (uint64_t)__builtin_frame_address(0);
      atomic_store(&actor->state, WAITING);
      result = wait_once();
    }
    wait_poked(result, errno);
  }
}

static int poke(int count, char **tids) {
  int fd = (int)MUST(open("page", O_RDWR | O_CLOEXEC));
  page = (void *)MUST(mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  atomic_fetch_add(&page->generation, 1);
  syscall(SYS_futex, &page->generation, FUTEX_WAKE, 1000, NULL, NULL, 0);
  for (int i = 0; i < count; i++) syscall(SYS_tkill, atoi(tids[i]), POKE_SIGNAL);
  return 0;
}

#define WAIT_OPERATIONS {"wait", do_wait}
