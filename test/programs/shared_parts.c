// Processes (not threads) that share memory, directories and umask, or signal handlers with this one (clone with CLONE_VM, CLONE_FS,
// CLONE_SIGHAND), one that shares its directories alone, and two orphans in one memory that is not ours. Who lives in our
// memory has our thread-local storage, too, so it makes bare system calls only.
#include "test.h"
#include <linux/kcmp.h>

enum { STACK = 64 * 1024, RELATIVES = 3 };
enum order { NOTHING, REPORT, MOVE, HANDLE, END };

// What a relative is asked and answers, in memory that both see.
struct talk {
  _Atomic int order, done;
  _Atomic long pid, value;
  _Atomic unsigned long beats;
};

static struct talk *talks; // of our relatives; shared with the orphans, too
static char moved[4096]; // a directory
static pid_t relatives[RELATIVES], directory_mate, orphans[2];
static const int relative_flags[RELATIVES] = {
    CLONE_VM | SIGCHLD,
    CLONE_VM | CLONE_FS | CLONE_SIGHAND | SIGCHLD,
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND, // as LinuxThreads did: no signal at its end
};

static long bare(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
  return result;
}

// The kernel's struct sigaction.
struct bare_action {
  void (*handler)(int);
  unsigned long flags;
  void (*restorer)(void);
  unsigned long mask;
};

static _Noreturn int live(void *at) {
  struct talk *talk = at;
  const struct timespec moment = {0, 1000000};
  volatile unsigned long own[64]; // on a stack of its own
  for (unsigned i = 0; i < 64; i++) own[i] = pattern_word((uintptr_t)talk, i);
  for (;;) {
    bare(SYS_nanosleep, (long)&moment, 0, 0, 0);
    talk->beats++;
    int order = atomic_exchange(&talk->order, NOTHING);
    if (order == NOTHING) continue;
    bool sound = true;
    for (unsigned i = 0; i < 64; i++) sound = sound && own[i] == pattern_word((uintptr_t)talk, i);
    talk->pid = bare(SYS_getpid, 0, 0, 0, 0);
    talk->value = sound;
    if (order == MOVE) talk->value = bare(SYS_chdir, (long)moved, 0, 0, 0) == 0 ? bare(SYS_umask, 031, 0, 0, 0) : -1;
    if (order == HANDLE) {
      struct bare_action ignore = {.handler = SIG_IGN};
      talk->value = bare(SYS_rt_sigaction, SIGWINCH, (long)&ignore, 0, 8);
    }
    talk->done = order;
    while (order == END) bare(SYS_exit_group, 7, 0, 0, 0);
  }
}

static long ask(struct talk *talk, int order) {
  talk->done = NOTHING;
  talk->order = order;
  EXPECT(WITHIN(10000, talk->done == order), "relative %ld does not answer", (long)(talk - talks));
  return talk->value;
}

static bool same(pid_t a, pid_t b, int type) { return syscall(SYS_kcmp, a, b, type, 0, 0) == 0; }

static void expect_shares(pid_t pid, int flags) {
  pid_t own = getpid();
  EXPECT_EQ(same(own, pid, KCMP_VM), (flags & CLONE_VM) != 0);
  EXPECT_EQ(same(own, pid, KCMP_FS), (flags & CLONE_FS) != 0);
  EXPECT_EQ(same(own, pid, KCMP_FILES), (flags & CLONE_FILES) != 0);
  EXPECT_EQ(same(own, pid, KCMP_SIGHAND), (flags & CLONE_SIGHAND) != 0);
}

static int exit_signal(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  read_text(path, text, sizeof text);
  char *field = strrchr(text, ')') + 1;
  for (int number = 3; number < 38; number++) field = strchr(field + 1, ' ');
  return atoi(field);
}

static const char *current(void) {
  static char path[4096];
  return strrchr(getcwd(path, sizeof path) == NULL ? "/?" : path, '/') + 1;
}

static void check_relatives(void) {
  for (int i = 0; i < RELATIVES; i++) {
    expect_shares(relatives[i], relative_flags[i]);
    EXPECT_EQ(exit_signal(relatives[i]), relative_flags[i] & 0xff);
    EXPECT_EQ(ask(&talks[i], REPORT), 1);
    EXPECT_EQ(talks[i].pid, relatives[i]);
    unsigned long beats = talks[i].beats;
    EXPECT(WITHIN(10000, talks[i].beats > beats), "relative %d stands still", i);
  }
}

static void check_directories(void) {
  static int umask_of_first = 022;
  umask(022);
  // The first has a directory of its own.
  EXPECT_EQ(ask(&talks[0], MOVE), umask_of_first);
  umask_of_first = 031;
  EXPECT(strcmp(current(), "moved") != 0, "a process with its own directory took us along");
  for (int i = 1; i < RELATIVES; i++) {
    EXPECT_EQ(ask(&talks[i], MOVE), 022);
    EXPECT(strcmp(current(), "moved") == 0, "we are in %s", current());
    EXPECT_EQ(umask(022), 031);
    EXPECT(chdir("..") == 0, "chdir: %m");
  }
  char here[4096], there[4096] = "", path[64];
  EXPECT(chdir("moved") == 0, "chdir: %m");
  snprintf(path, sizeof path, "/proc/%d/cwd", directory_mate);
  EXPECT(readlink(path, there, sizeof there - 1) > 0 && strcmp(there, getcwd(here, sizeof here)) == 0, "the mate is in %s", there);
  EXPECT(chdir("..") == 0, "chdir: %m");
  expect_shares(directory_mate, CLONE_FS);
}

static void check_handlers(void) {
  struct sigaction action;
  for (int i = 0; i < RELATIVES; i++) {
    signal(SIGWINCH, SIG_DFL);
    EXPECT_EQ(ask(&talks[i], HANDLE), 0);
    sigaction(SIGWINCH, NULL, &action);
    EXPECT_EQ(action.sa_handler == SIG_IGN, (relative_flags[i] & CLONE_SIGHAND) != 0);
  }
}

static void check_orphans(void) {
  EXPECT(same(orphans[0], orphans[1], KCMP_VM), "the orphans have no memory in common");
  for (int i = 0; i < 2; i++) {
    expect_shares(orphans[i], 0);
    EXPECT_EQ(ask(&talks[RELATIVES + i], REPORT), 1);
    EXPECT_EQ(talks[RELATIVES + i].pid, orphans[i]);
  }
}

static void end_relative(int i) {
  int status = -1;
  // Who sends no signal at its end is waited for by this name (wait(2)).
  int kind = (relative_flags[i] & 0xff) == SIGCHLD ? 0 : __WCLONE;
  ask(&talks[i], END);
  EXPECT_EQ(waitpid(relatives[i], &status, kind), relatives[i]);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

static void check(void) {
  check_relatives();
  check_directories();
  check_handlers();
  check_orphans();
  if (!final_round) return;
  for (int i = 0; i < RELATIVES; i++) end_relative(i);
  kill(directory_mate, SIGKILL);
  waitpid(directory_mate, NULL, 0);
  for (int i = 0; i < 2; i++) {
    ask(&talks[RELATIVES + i], END);
    EXPECT_EQ(waitpid(orphans[i], NULL, 0), orphans[i]);
  }
}

static pid_t start_living(struct talk *talk, int flags) {
  char *stack = map_anon(STACK, PROT_READ | PROT_WRITE);
  return (pid_t)MUST(clone(live, stack + STACK, flags, talk));
}

static void make_orphans(void) {
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
  pid_t parent = (pid_t)MUST(fork());
  if (parent == 0) {
    for (int i = 0; i < 2; i++) talks[RELATIVES + i].pid = start_living(&talks[RELATIVES + i], CLONE_VM | SIGCHLD);
    _exit(0);
  }
  MUST(waitpid(parent, NULL, 0));
  for (int i = 0; i < 2; i++) orphans[i] = (pid_t)talks[RELATIVES + i].pid;
}

static void go_apart(void) {
  MUST(unshare(CLONE_FS));
}

int main(void) {
  begin();
  tamper = go_apart;
  talks = (void *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  MUST(getcwd(moved, sizeof moved - 8) == NULL ? -1 : 0);
  strcat(moved, "/moved");
  MUST(mkdir(moved, 0700));
  for (int i = 0; i < RELATIVES; i++) relatives[i] = start_living(&talks[i], relative_flags[i]);
  directory_mate = (pid_t)MUST(syscall(SYS_clone, CLONE_FS | SIGCHLD, NULL, NULL, NULL, NULL));
  if (directory_mate == 0) idle();
  make_orphans();
  serve(check);
}
