// Operations on tasks, threads, signals, timers and credentials; and what an actor tells of itself.
#pragma once
#include "random_state.h"
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/personality.h>

static volatile unsigned handled[65];
static timer_t timers[16];
static int timer_count;

static void on_signal(int signal) { handled[signal]++; }
static void on_signal_with(int signal, siginfo_t *info, void *context) {
  (void)info, (void)context;
  handled[signal] += 100;
}
static void on_poke(int signal) { (void)signal; }

static bool is_free_signal(int signal) {
  switch (signal) {
  case SIGKILL: case SIGSTOP: case SIGSEGV: case SIGBUS: case SIGILL: case SIGFPE: case SIGTRAP: case SIGPIPE: case SIGCONT:
  case SIGTSTP: case SIGTTIN: case SIGTTOU: case SIGSYS: case 32: case 33: case POKE_SIGNAL: return false;
  default: return signal >= 1 && signal <= 64;
  }
}

static int free_signal(unsigned which) {
  int signal = 1 + (int)(which % 64);
  while (!is_free_signal(signal)) signal = signal % 64 + 1;
  return signal;
}

static void prepare(void) {
  int fd = (int)MUST(open("page", O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  MUST(ftruncate(fd, sizeof *page));
  page = (void *)MUST(mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  close(fd);
  mkdir("s", 0755);
  symlink("f2", "link");
  for (int i = 0; i < 8; i++) {
    char path[16], bytes[997];
    snprintf(path, sizeof path, "f%d", i);
    fd = (int)MUST(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    memset(bytes, 'a' + i, sizeof bytes);
    for (int j = 0; j < i * 7; j++) write(fd, bytes, sizeof bytes);
    close(fd);
    tell("s/some", "entries");
  }
  for (int signal = 1; signal <= 64; signal++) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (is_free_signal(signal) && signal != SIGCHLD) sigaction(signal, &action, NULL);
  }
  struct sigaction poked = {.sa_handler = on_poke};
  sigaction(POKE_SIGNAL, &poked, NULL);
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_CHILD_SUBREAPER, 1); // orphans stay in the tree
}

static int add_actor(pid_t pid, pid_t tid) {
  if (page->count == ACTORS) return -1;
  struct actor *actor = &page->actors[page->count];
  actor->tid = tid;
  actor->born = now_step;
  actor->state = ALIVE;
  actor->pid = pid;
  return atomic_fetch_add(&page->count, 1);
}

// The walk goes on when the new actor is there.
static void do_fork(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  if (page->count == ACTORS) return;
  int number = page->count;
  pid_t pid = a % 6 == 0 && getpid() != page->actors[0].pid ? (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) : fork();
  if (pid == 0) {
    while (page->actors[number].pid == 0) usleep(50);
    me = number;
    timer_count = 0;
    if (b % 3 == 0) prctl(PR_SET_NAME, b & 1 ? "a child" : "x(y) z");
    return;
  }
  if (pid > 0) add_actor(pid, pid);
  note("fork -> %d", pid);
}

static void *begin_thread(void *argument) {
  (void)argument;
  me = page->count;
  now_step = page->step;
  add_actor(getpid(), gettid());
  life();
  return NULL;
}

static void do_thread(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)a, (void)b, (void)c, (void)d;
  int number = page->count;
  if (number == ACTORS) return;
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 65536);
  int result = pthread_create(&thread, &attributes, begin_thread, NULL);
  while (result == 0 && atomic_load(&page->count) == number) usleep(50);
  note("thread -> %d", result);
}

static bool is_only_actor(void) {
  int others = 0;
  for (int i = 0; i < page->count; i++) others += page->actors[i].state == ALIVE && page->actors[i].pid != getpid();
  return others == 0;
}

static void do_exit(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  if (getpid() == page->actors[0].pid || is_only_actor()) return;
  for (int i = 0; i < page->count; i++)
    if (page->actors[i].pid == getpid() && page->actors[i].state != DEAD) {
      page->actors[i].state = DEAD;
      page->actors[i].died = now_step;
      atomic_fetch_add(&page->arrived, 1);
    }
  note("exit");
  atomic_fetch_add(&page->step, 1);
  if (a & 1) {
    signal(SIGTERM, SIG_DFL);
    sigset_t all;
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    kill(getpid(), b & 1 ? SIGKILL : SIGTERM);
  }
  _exit((int)(b % 256));
}

static void do_exit_thread(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)a, (void)b, (void)c, (void)d;
  if (gettid() == getpid()) return;
  page->actors[me].state = DEAD;
  page->actors[me].died = now_step;
  atomic_fetch_add(&page->arrived, 1);
  note("exit of a thread");
  atomic_fetch_add(&page->step, 1);
  pthread_exit(NULL);
}

static void do_reap(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)a, (void)b, (void)c, (void)d;
  note("reap -> %d", waitpid(-1, NULL, WNOHANG));
}

static void do_session(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  if (a & 1) note("setsid -> %d", setsid());
  else {
    pid_t leader = b & 1 ? 0 : page->actors[b / 2 % (unsigned)page->count].pid;
    note("setpgid %d -> %d", leader, setpgid(0, leader));
  }
}

static void do_mask(unsigned a, unsigned b, unsigned c, unsigned d) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, free_signal(a));
  sigaddset(&set, free_signal(b));
  if (d & 1) sigaddset(&set, free_signal(c));
  pthread_sigmask(d % 3 == 0 ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
  note("mask");
}

static void do_action(unsigned a, unsigned b, unsigned c, unsigned d) {
  int signal = free_signal(a);
  struct sigaction action = {.sa_handler = on_signal};
  if (b % 3 == 0) action.sa_handler = SIG_IGN;
  if (b % 3 == 1) action.sa_sigaction = on_signal_with, action.sa_flags = SA_SIGINFO;
  action.sa_flags |= (c & 1 ? SA_RESTART : 0) | (c & 2 ? SA_ONSTACK : 0) | (c & 4 ? SA_NODEFER : 0) |
                     (c & 8 && b % 3 != 0 ? (int)SA_RESETHAND * 0 : 0) | (signal == SIGCHLD && c & 16 ? SA_NOCLDWAIT : 0) |
                     (signal == SIGCHLD && c & 32 ? SA_NOCLDSTOP : 0);
  sigaddset(&action.sa_mask, free_signal(d));
  note("action of %d -> %d", signal, sigaction(signal, &action, NULL));
}

static void do_pend(unsigned a, unsigned b, unsigned c, unsigned d) {
  int signal = free_signal(a);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  union sigval value = {.sival_ptr = (void *)(uintptr_t)(c * 3ULL << 20)};
  for (unsigned i = 0; i <= d % 3; i++) {
    if (b % 4 == 0) kill(getpid(), signal);
    else if (b % 4 == 1) syscall(SYS_tgkill, getpid(), gettid(), signal);
    else if (b % 4 == 2) sigqueue(getpid(), signal, value);
    else pthread_sigqueue(pthread_self(), signal, value);
  }
  note("pending: %d", signal);
}

static void do_altstack(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  stack_t stack = {.ss_size = 8192 + a % 8192, .ss_flags = b % 3 == 0 ? (int)(1U << 31) : b % 3 == 1 ? 0 : SS_DISABLE};
  stack.ss_sp = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  note("altstack -> %d", sigaltstack(&stack, NULL));
}

static void do_itimer(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  struct itimerval value = {{b % 3, 5}, {1000 + c % 1000, 0}};
  note("itimer -> %d", setitimer((int)(a % 3), &value, NULL));
}

static void do_timer(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID,
                                     CLOCK_THREAD_CPUTIME_ID, CLOCK_REALTIME_ALARM, CLOCK_TAI};
  if (timer_count == COUNT(timers)) return;
  struct sigevent event = {.sigev_notify = b % 3 == 0 ? SIGEV_NONE : b % 3 == 1 ? SIGEV_SIGNAL : SIGEV_THREAD_ID,
                           .sigev_signo = free_signal(c), .sigev_value.sival_int = (int)c};
  if (b % 3 == 2) event._sigev_un._tid = gettid();
  timer_t timer;
  if (timer_create(clocks[a % COUNT(clocks)], b % 7 == 0 ? NULL : &event, &timer) == -1) return;
  struct itimerspec value = {{d % 4 * 500, 3}, {1000 + d % 500, 0}};
  if (d % 5 != 0) timer_settime(timer, 0, &value, NULL);
  if (d % 11 == 0) timer_delete(timer);
  else timers[timer_count++] = timer;
  note("timer %u", a % (unsigned)COUNT(clocks));
}

struct scheduling {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
  uint32_t least, most;
};

static void do_schedule(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  int result;
  cpu_set_t cpus;
  switch (a % 5) {
  case 0: result = setpriority(PRIO_PROCESS, (id_t)gettid(), (int)(b % 20)); break;
  case 1: {
    struct scheduling to = {.size = sizeof to, .policy = b % 3 == 0 ? SCHED_BATCH : b % 3 == 1 ? SCHED_IDLE : SCHED_OTHER,
                            .nice = (int)(c % 20), .flags = c & 1 ? 1 : 0};
    result = (int)syscall(SYS_sched_setattr, 0, &to, 0);
    break;
  }
  case 2: {
    struct sched_param to = {.sched_priority = 1 + (int)(c % 5)};
    result = sched_setscheduler(0, (b & 1 ? SCHED_RR : SCHED_FIFO) | (c & 1 ? SCHED_RESET_ON_FORK : 0), &to);
    break;
  }
  case 3:
    CPU_ZERO(&cpus);
    CPU_SET(b & 1, &cpus);
    result = sched_setaffinity(0, sizeof cpus, &cpus);
    break;
  default: result = (int)syscall(SYS_ioprio_set, 1, 0, (int)((1 + b % 3) << 13 | (b % 3 == 2 ? 0 : c % 8)));
  }
  note("schedule %u -> %d", a % 5, result);
}

static void do_limit(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  static const int which[] = {RLIMIT_CORE, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_STACK, RLIMIT_MSGQUEUE, RLIMIT_NICE,
                              RLIMIT_RTPRIO, RLIMIT_RTTIME, RLIMIT_SIGPENDING, RLIMIT_MEMLOCK, RLIMIT_LOCKS, RLIMIT_AS, RLIMIT_DATA, RLIMIT_NPROC};
  struct rlimit limit;
  int kind = which[a % COUNT(which)];
  getrlimit(kind, &limit);
  limit.rlim_cur = kind == RLIMIT_NOFILE ? 20 + b % 300 : kind == RLIMIT_CPU ? 1000 + b % 10 : kind == RLIMIT_STACK ? 4 * MIB + b % 9 * PAGE
    : kind == RLIMIT_AS || kind == RLIMIT_DATA ? 256 * MIB + b % 9 * PAGE : kind == RLIMIT_RTTIME ? 100000000 : 100000 + b % 1000;
  if (limit.rlim_cur > limit.rlim_max) limit.rlim_cur = limit.rlim_max;
  if (b & 1 && kind != RLIMIT_NOFILE) limit.rlim_max = limit.rlim_cur;
  note("limit %d -> %d", kind, setrlimit(kind, &limit));
}

static void do_place(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  char path[32];
  switch (a % 4) {
  case 0: umask((mode_t)(b & 0777)); break;
  case 1: chdir("s"); break;
  case 2:
    snprintf(path, sizeof path, "p%d", now_step);
    mkdir(path, 0755);
    chdir(path);
    snprintf(path, sizeof path, "../p%d", now_step);
    if (c & 1) rmdir(path);
    break;
  default: chroot(".");
  }
  note("place %u", a % 4);
}

static void do_setting(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  int result = -1;
  switch (a % 14) {
  case 0: result = prctl(PR_SET_PDEATHSIG, getpid() == page->actors[0].pid ? 0 : free_signal(b)); break;
  case 1: result = prctl(PR_SET_DUMPABLE, b & 1); break;
  case 2: result = getpid() == page->actors[0].pid ? 0 : prctl(PR_SET_CHILD_SUBREAPER, b & 1); break;
  case 3: result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); break;
  case 4: result = prctl(PR_SET_TIMERSLACK, 1000 + b % 100000); break;
  case 5: result = prctl(PR_SET_THP_DISABLE, b & 1, 0, 0, 0); break;
  case 6: result = prctl(PR_MCE_KILL, PR_MCE_KILL_SET, b % 3, 0, 0); break;
  case 7: result = prctl(PR_SET_KEEPCAPS, b & 1); break;
  case 8: result = prctl(PR_SET_SECUREBITS, b & 1 ? 0x15 & b : 0x10); break;
  case 9: result = prctl(PR_SET_NAME, b & 1 ? "renamed" : "\xff\x01"); break;
  case 10: result = prctl(67 /* PR_SET_MEMORY_MERGE */, b & 1, 0, 0, 0); break;
  case 11: result = prctl(PR_SET_IO_FLUSHER, b & 1, 0, 0, 0); break;
  case 12: result = personality(b & 1 ? ADDR_NO_RANDOMIZE : UNAME26); break;
  default: result = prctl(PR_SET_SPECULATION_CTRL, b & 1, c & 1 ? PR_SPEC_DISABLE : PR_SPEC_FORCE_DISABLE, 0, 0);
  }
  note("setting %u -> %d", a % 14, result);
}

static void do_seccomp(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  struct sock_filter code[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
                               {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 300 + a % 20},
                               {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | 1},
                               {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
  struct sock_fprog program = {COUNT(code), code};
  note("seccomp -> %ld", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, b % 3 == 0 ? SECCOMP_FILTER_FLAG_TSYNC : b % 3 == 1 ? SECCOMP_FILTER_FLAG_LOG : 0, &program));
}

static void do_credentials(unsigned a, unsigned b, unsigned c, unsigned d) {
  long result = -1;
  gid_t groups[] = {c % 9, 100 + d % 9, 7777};
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  switch (a % 7) {
  case 0: result = syscall(SYS_setgroups, b % 4, groups); break;
  case 1: result = syscall(SYS_setresgid, b & 1 ? 1000 : -1, b & 2 ? 1001 : -1, b & 4 ? 1002 : -1); break;
  case 2: result = prctl(PR_CAPBSET_DROP, 10 + b % 30, 0, 0, 0); break;
  case 3:
    syscall(SYS_capget, &header, data);
    data[0].inheritable = 1U << b % 30;
    data[0].effective &= ~(1U << c % 5);
    result = syscall(SYS_capset, &header, data);
    break;
  case 4: result = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, b % 30, 0, 0); break;
  case 5: result = syscall(SYS_setresuid, -1, -1, 1000); break;
  default:
    if (getpid() != page->actors[0].pid && b % 3 == 0) {
      if (c & 1) prctl(PR_SET_KEEPCAPS, 1);
      result = syscall(SYS_setresuid, 1000, d & 1 ? 1000 : 1001, 1002);
    } else result = syscall(SYS_setfsuid, 1000 * (b & 1));
  }
  note("credentials %u -> %ld", a % 7, result);
}

#define TASK_OPERATIONS                                                                                               \
  {"fork", do_fork}, {"thread", do_thread}, {"exit", do_exit}, {"exit_thread", do_exit_thread}, {"reap", do_reap},    \
    {"session", do_session}, {"mask", do_mask}, {"action", do_action}, {"pend", do_pend}, {"altstack", do_altstack},  \
    {"itimer", do_itimer}, {"timer", do_timer}, {"schedule", do_schedule}, {"limit", do_limit}, {"place", do_place},  \
    {"setting", do_setting}, {"seccomp", do_seccomp}, {"credentials", do_credentials}
