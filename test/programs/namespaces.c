// Namespaces of its own, by the arguments: uts and ipc (also without any argument), time, user, pid. With the argument pid the
// program is the init of a new pid namespace; what was started stays outside, passes requests on and ends as it does.
#include "test.h"
#include <grp.h>
#include <sys/utsname.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static bool uts, ipc, timens, user, pidns;
static int uts_file = -1, uts_again = -1; // opened twice
static pid_t child;
static int64_t monotonic_then, real_then;

#define FIRST_OUTSIDE 100000

static void expect_text(const char *path, const char *wanted) {
  char text[512];
  EXPECT(read_text(path, text, sizeof text) >= 0, "%s: %m", path);
  // Blanks differ in width.
  char squeezed[512];
  size_t length = 0;
  for (const char *at = text; *at; at++) {
    bool blank = *at == ' ' || *at == '\t' || *at == '\n';
    if (blank && (length == 0 || squeezed[length - 1] == ' ')) continue;
    squeezed[length++] = blank ? ' ' : *at;
  }
  while (length > 0 && squeezed[length - 1] == ' ') length--;
  squeezed[length] = 0;
  EXPECT(strcmp(squeezed, wanted) == 0, "%s says %s, wanted %s", path, squeezed, wanted);
}

static void write_text(const char *path, const char *text) {
  int fd = (int)MUST(open(path, O_WRONLY | O_CLOEXEC));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static void check_names(void) {
  struct utsname names;
  uname(&names);
  EXPECT(strcmp(names.nodename, "inner") == 0, "the host name is %s", names.nodename);
  EXPECT(strcmp(names.domainname, "reprise.test") == 0, "the domain name is %s", names.domainname);
  struct stat file, now;
  EXPECT(fstat(uts_file, &file) == 0 && stat("/proc/self/ns/uts", &now) == 0, "stat: %m");
  EXPECT(file.st_ino == now.st_ino, "the open namespace is another one");
  EXPECT(fstat(uts_again, &file) == 0 && file.st_ino == now.st_ino, "the namespace that is open again is another one");
  EXPECT(syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, uts_file, uts_again) > 0, "two open files have become one");
}

static void check_limits(void) {
  expect_text("/proc/sys/kernel/sem", "111 22222 33 444");
  expect_text("/proc/sys/kernel/msgmax", "12345");
  expect_text("/proc/sys/kernel/shmmax", "123456789");
  expect_text("/proc/sys/kernel/shm_rmid_forced", "1");
}

static void check_clock(void) {
  int64_t real = now_ms(CLOCK_REALTIME) - real_then, monotonic = now_ms(CLOCK_MONOTONIC) - monotonic_then;
  EXPECT(monotonic >= 0 && monotonic <= real + 2000, "the clock went on by %lld ms in %lld",
         (long long)monotonic, (long long)real);
  EXPECT(monotonic_then > 1000000 * 1000LL, "the clock has no offset");
}

static void check_user(void) {
  expect_text("/proc/self/uid_map", "0 100000 1000 5000 200000 10");
  expect_text("/proc/self/gid_map", "0 100000 2000");
  EXPECT_EQ(getuid(), 0);
  uid_t ids[3];
  getresuid(&ids[0], &ids[1], &ids[2]);
  EXPECT_EQ(ids[2], 5003);
  gid_t groups[4] = {0};
  EXPECT_EQ(getgroups(4, groups), 2);
  EXPECT(groups[0] == 7 && groups[1] == 1999, "the groups are %d and %d", groups[0], groups[1]);
  struct stat status;
  EXPECT(stat("verdict.owner", &status) == 0 && status.st_uid == 0, "a file's owner is %d", status.st_uid);
}

static void check_numbers(void) {
  EXPECT_EQ(getpid(), 1);
  EXPECT_EQ(getppid(), 0);
  EXPECT_EQ(getsid(0), 1);
  ask_child(child);
}

static void check_child(void) {
  EXPECT_EQ(getppid(), 1);
  EXPECT_EQ(getpid(), child);
  if (user) check_user();
}

static void *doze(void *unused) {
  for (;;) pause();
  return unused;
}

static void check(void) {
  if (uts) check_names();
  if (ipc) check_limits();
  if (timens) check_clock();
  if (user) check_user();
  if (pidns) check_numbers();
}

static void other_name(void) {
  sethostname("spoiled", 7);
}

static void set_up_child(void) { child = getpid(); }

static void forward(pid_t inner) {
  sigset_t requests;
  sigemptyset(&requests);
  sigaddset(&requests, SIGUSR1);
  sigaddset(&requests, SIGTERM);
  sigaddset(&requests, SIGCHLD);
  sigprocmask(SIG_BLOCK, &requests, NULL);
  for (;;) {
    int status, number = sigwaitinfo(&requests, NULL);
    if (number != SIGCHLD) kill(inner, number);
    else if (waitpid(inner, &status, WNOHANG) == inner) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
  }
}

static pid_t start_inner(int flags) {
  struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
  } args = {.flags = (uint64_t)flags, .exit_signal = SIGCHLD};
  return (pid_t)MUST(syscall(SYS_clone3, &args, sizeof args));
}

static void write_maps(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
  write_text(path, "0 100000 1000\n5000 200000 10\n");
  snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
  write_text(path, "0 100000 2000\n");
}

static void enter_time(void) {
  MUST(unshare(CLONE_NEWTIME));
  write_text("/proc/self/timens_offsets", "monotonic 1000000 0\nboottime 2000000 5\n");
  int fd = (int)MUST(open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC));
  MUST(setns(fd, CLONE_NEWTIME));
  close(fd);
}

int main(int argc, char **argv) {
  begin();
  for (int i = 1; i < argc; i++) {
    uts |= strcmp(argv[i], "uts") == 0;
    ipc |= strcmp(argv[i], "ipc") == 0;
    timens |= strcmp(argv[i], "time") == 0;
    user |= strcmp(argv[i], "user") == 0;
    pidns |= strcmp(argv[i], "pid") == 0;
  }
  if (argc == 1) uts = ipc = true;
  if (uts) tamper = other_name;
  int flags = (uts ? CLONE_NEWUTS : 0) | (ipc ? CLONE_NEWIPC : 0) | (user ? CLONE_NEWUSER : 0);
  if (pidns) {
    if (user) {
      MUST(chown(".", FIRST_OUTSIDE, FIRST_OUTSIDE));
      MUST(fchown(1, FIRST_OUTSIDE, FIRST_OUTSIDE));
    }
    pid_t inner = start_inner(flags | CLONE_NEWPID);
    if (inner != 0) {
      if (user) {
        write_maps(inner);
        kill(inner, SIGUSR1);
      }
      forward(inner);
    }
    if (user) wait_request(-1);
    check_wanted = 0;
    setsid();
  } else MUST(unshare(flags));
  if (user) {
    MUST(setgroups(2, (gid_t[]){7, 1999}));
    MUST(setresgid(0, 0, 0));
    MUST(setresuid(0, 0, 5003));
    MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    tell("verdict.owner", "mine");
  }
  if (timens) enter_time();
  if (uts) {
    MUST(sethostname("inner", 5));
    MUST(setdomainname("reprise.test", 12));
    uts_file = (int)MUST(open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC));
    uts_again = (int)MUST(open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC));
  }
  if (ipc) {
    write_text("/proc/sys/kernel/sem", "111 22222 33 444");
    write_text("/proc/sys/kernel/msgmax", "12345");
    write_text("/proc/sys/kernel/shmmax", "123456789");
    write_text("/proc/sys/kernel/shm_rmid_forced", "1");
  }
  if (pidns) {
    child = start_child(set_up_child, check_child);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, doze, NULL) == 0 ? 0 : -1);
  }
  monotonic_then = now_ms(CLOCK_MONOTONIC);
  real_then = now_ms(CLOCK_REALTIME);
  serve(check);
}
