// A sandbox inside of a tree, as unshare(1) and bubblewrap make it: a monitor that stays outside, and below it the first process of
// a new pid namespace with tasks of its own. By the arguments: user (also in a new user namespace), mnt (with its own /proc),
// uts, ipc, early (the monitor itself enters the user namespace before it makes the first process).
#include "test.h"
#include <sys/mount.h>
#include <sys/utsname.h>

static bool user, mnt, uts, ipc, early;
static pid_t monitor, outer_of_inner, worker, orphan;
static int notes[2], ready[2], answers[2], reports[2];
static pid_t own[6];
static volatile pid_t thread_tid;

static void write_text(const char *path, const char *text) {
  int fd = (int)MUST(open(path, O_WRONLY | O_CLOEXEC));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static void write_maps(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/setgroups", pid);
  write_text(path, "deny");
  snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
  write_text(path, "0 0 1\n1000 2000 10\n");
  snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
  write_text(path, "0 0 1\n1000 2000 10\n");
}

static pid_t make(int flags) {
  struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
  } args = {.flags = (uint64_t)flags, .exit_signal = SIGCHLD};
  return (pid_t)MUST(syscall(SYS_clone3, &args, sizeof args));
}

static void *doze(void *unused) {
  thread_tid = (pid_t)syscall(SYS_gettid);
  for (;;) pause();
  return unused;
}

static void remember(pid_t into[6]) {
  into[0] = getpid();
  into[1] = getppid();
  into[2] = getpgid(0);
  into[3] = getsid(0);
  into[4] = (pid_t)syscall(SYS_gettid);
  into[5] = thread_tid;
}

static void expect_own(const char *who) {
  static const char *const names[6] = {"pid", "parent", "group", "session", "tid", "thread"};
  pid_t now[6];
  remember(now);
  for (int i = 0; i < 6; i++) EXPECT(now[i] == own[i], "%s: the %s is %d, and was %d", who, names[i], now[i], own[i]);
  if (thread_tid != 0) EXPECT(syscall(SYS_tgkill, getpid(), thread_tid, 0) == 0, "%s: its thread is gone: %m", who);
}

static void expect_world(void) {
  struct utsname names;
  uname(&names);
  if (uts) EXPECT(strcmp(names.nodename, "sandbox") == 0, "the host name is %s", names.nodename);
  if (mnt) {
    char comm[64];
    EXPECT(read_text("/proc/1/comm", comm, sizeof comm) > 0, "no /proc: %m");
    EXPECT(strcmp(comm, "inner-init\n") == 0, "the first process is %s", comm);
    char link[32] = "";
    EXPECT(readlink("/proc/self", link, sizeof link - 1) > 0 && atoi(link) == getpid(), "/proc/self is %s", link);
    EXPECT(read_text("/proc/version", comm, sizeof comm) == 4 && strcmp(comm, "mask") == 0, "no mask: %s", comm);
    EXPECT(read_text("/mnt/note", comm, sizeof comm) == 5, "no tmpfs");
  }
  if (user) {
    char text[128];
    unsigned first, outside, count;
    read_text("/proc/self/uid_map", text, sizeof text);
    EXPECT(sscanf(text, "%u %u %u", &first, &outside, &count) == 3 && count == 1, "the map is %s", text);
    EXPECT_EQ(getuid(), getpid() == worker ? 1003 : 0);
    // What belongs to the user namespace can be changed in it.
    if (uts && getuid() == 0) EXPECT(sethostname("sandbox", 7) == 0, "sethostname: %m");
    if (mnt && getuid() == 0) {
      EXPECT(mount("none", "/mnt", "tmpfs", 0, NULL) == 0, "mount: %m");
      EXPECT(umount("/mnt") == 0, "umount: %m");
    }
  }
}

// Tells through a pipe how it is: the parent cannot signal everybody.
static void answer(const char *who, int to) {
  expect_own(who);
  expect_world();
  char text[512] = "ok";
  if (failure_taken) snprintf(text, sizeof text, "%s", failure_text);
  MUST(write(to, text, sizeof text));
}

static void expect_answer(const char *who, int from) {
  char text[512] = "";
  EXPECT(WITHIN(5000, read(from, text, sizeof text) == sizeof text), "%s is silent", who);
  EXPECT(strcmp(text, "ok") == 0, "%s: %s", who, text);
}

static void wait_and_answer(const char *who) {
  for (;;) {
    while (wait_request(-1) != CHECK) _exit(0);
    answer(who, answers[1]);
  }
}

static void be_orphan(void) {
  setsid();
  // Its parent goes, and the first process of the namespace has it.
  while (getppid() != 1) sleep_ms(1);
  remember(own);
  pid_t me = getpid();
  MUST(write(notes[1], &me, sizeof me));
  wait_and_answer("the orphan");
}

static void be_worker(void) {
  setpgid(0, 0);
  worker = getpid();
  if (user) MUST(setresuid(1003, 1003, 1003));
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, doze, NULL) == 0 ? 0 : -1);
  while (thread_tid == 0) sleep_ms(1);
  remember(own);
  pid_t me = getpid();
  MUST(write(notes[1], &me, sizeof me));
  wait_and_answer("the worker");
}

static void be_inner(void) {
  if (user) wait_request(-1), check_wanted = 0;
  prctl(PR_SET_NAME, "inner-init");
  if (uts) MUST(sethostname("sandbox", 7));
  if (mnt) {
    MUST(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
    MUST(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    MUST(mount("none", "/mnt", "tmpfs", 0, NULL));
    tell("/mnt/note", "inner");
    tell("/mnt/mask", "mask");
    MUST(mount("/mnt/mask", "/proc/version", NULL, MS_BIND, NULL));
  }
  pid_t told[2];
  pid_t first = (pid_t)MUST(fork());
  if (first == 0) be_worker();
  MUST(read(notes[0], &told[0], sizeof told[0]));
  pid_t passing = (pid_t)MUST(fork());
  if (passing == 0) {
    if (MUST(fork()) == 0) be_orphan();
    _exit(0);
  }
  MUST(waitpid(passing, NULL, 0));
  MUST(read(notes[0], &told[1], sizeof told[1]));
  worker = told[0], orphan = told[1];
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, doze, NULL) == 0 ? 0 : -1);
  while (thread_tid == 0) sleep_ms(1);
  remember(own);
  MUST(write(ready[1], told, sizeof told));
  for (;;) {
    if (wait_request(-1) != CHECK) _exit(0);
    kill(worker, SIGUSR1);
    expect_answer("the worker", answers[0]);
    kill(orphan, SIGUSR1);
    expect_answer("the orphan", answers[0]);
    answer("the first process", reports[1]);
  }
}

static void check_monitor(void) {
  expect_own("the monitor");
  kill(outer_of_inner, SIGUSR1);
  expect_answer("the sandbox", reports[0]);
  char path[64], numbers[64];
  snprintf(path, sizeof path, "/proc/%d/status", outer_of_inner);
  field_of(path, "NSpid", numbers, sizeof numbers);
  const char *last = strrchr(numbers, '\t');
  EXPECT(last != NULL && atoi(last + 1) == 1, "the first process has the numbers %s", numbers);
}

static void be_monitor(void) {
  monitor = getpid();
  int flags = CLONE_NEWPID | (user && !early ? CLONE_NEWUSER : 0) | (mnt ? CLONE_NEWNS : 0) | (uts ? CLONE_NEWUTS : 0) |
              (ipc ? CLONE_NEWIPC : 0);
  if (early) {
    // Who enters cannot map more than its own id, so somebody outside does it.
    pid_t mapper = (pid_t)MUST(fork());
    if (mapper == 0) {
      wait_request(-1);
      write_maps(monitor);
      _exit(0);
    }
    MUST(unshare(CLONE_NEWUSER));
    kill(mapper, SIGUSR1);
    MUST(waitpid(mapper, NULL, 0));
  }
  outer_of_inner = make(flags);
  if (outer_of_inner == 0) be_inner();
  if (user && !early) write_maps(outer_of_inner);
  if (user) kill(outer_of_inner, SIGUSR1);
  pid_t told[2];
  MUST(read(ready[0], told, sizeof told));
  keep_child(outer_of_inner);
  remember(own);
}

static void check(void) { ask_child(monitor); }

static void end_monitor(void) { kill(monitor, SIGKILL); }

int main(int argc, char **argv) {
  begin();
  for (int i = 1; i < argc; i++) {
    user |= strcmp(argv[i], "user") == 0;
    mnt |= strcmp(argv[i], "mnt") == 0;
    uts |= strcmp(argv[i], "uts") == 0;
    ipc |= strcmp(argv[i], "ipc") == 0;
    early |= strcmp(argv[i], "early") == 0;
  }
  MUST(pipe2(notes, O_CLOEXEC));
  MUST(pipe2(ready, O_CLOEXEC));
  MUST(pipe2(answers, O_CLOEXEC));
  MUST(pipe2(reports, O_CLOEXEC));
  MUST(fcntl(answers[0], F_SETFL, O_NONBLOCK));
  MUST(fcntl(reports[0], F_SETFL, O_NONBLOCK));
  monitor = start_child(be_monitor, check_monitor);
  tamper = end_monitor;
  serve(check);
}
