// Children as only clone(2) makes them: one that a child made for its own parent (CLONE_PARENT), one that sends SIGUSR2 at its end and one
// that sends nothing (both for wait with __WALL or __WCLONE alone), and a zombie that leads a session in which an orphan lives.
#include "test.h"

static pid_t sibling, teller, silent, leader, orphan;
static volatile pid_t *note;

static pid_t make(unsigned long flags) { return (pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0); }

static _Noreturn void sleep_on(void) {
  signal(SIGTERM, SIG_DFL);
  signal(SIGUSR1, SIG_DFL);
  idle();
}

// A number of /proc/PID/stat, counted as in proc(5).
static long stat_field(pid_t pid, int field) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_text(path, text, sizeof text) <= 0) return -1;
  char *at = strrchr(text, ')') + 2;
  for (int i = 3; i < field && at != NULL; i++) at = strchr(at, ' ') + 1;
  return atol(at);
}

static void end_and_wait(pid_t pid, int flags) {
  int status;
  kill(pid, SIGKILL);
  EXPECT(WITHIN(5000, task_state(pid) == 'Z'), "%d does not end", pid);
  if (flags != 0) EXPECT(waitpid(pid, &status, WNOHANG) == -1 && errno == ECHILD, "%d is a usual child", pid);
  EXPECT_EQ(waitpid(pid, &status, flags), pid);
}

static void end_all(void) {
  int status;
  sigset_t pending;
  end_and_wait(sibling, 0);
  end_and_wait(silent, __WALL);
  sigpending(&pending);
  EXPECT(!sigismember(&pending, SIGUSR2), "SIGUSR2 came from elsewhere");
  end_and_wait(teller, __WCLONE);
  sigpending(&pending);
  EXPECT(sigismember(&pending, SIGUSR2), "there is no SIGUSR2");
  EXPECT_EQ(waitpid(leader, &status, 0), leader);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  end_and_wait(orphan, 0);
}

static void check(void) {
  EXPECT_EQ(stat_field(sibling, 4), getpid());
  EXPECT_EQ(stat_field(orphan, 4), getpid());
  EXPECT_EQ(stat_field(sibling, 38), SIGCHLD);
  EXPECT_EQ(stat_field(teller, 38), SIGUSR2);
  EXPECT_EQ(stat_field(silent, 38), 0);
  EXPECT_EQ(task_state(leader), 'Z');
  EXPECT_EQ(getpgid(orphan), leader);
  EXPECT_EQ(getsid(orphan), leader);
  if (final_round) end_all();
}

static void spoil(void) { kill(sibling, SIGKILL), sleep_ms(50), waitpid(sibling, NULL, 0); }

int main(void) {
  begin();
  tamper = spoil;
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  note = (pid_t *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR2);
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  pid_t passing = (pid_t)MUST(fork());
  if (passing == 0) {
    pid_t made = make(CLONE_PARENT | SIGCHLD);
    if (made == 0) sleep_on();
    note[0] = made;
    _exit(0);
  }
  MUST(waitpid(passing, NULL, 0));
  sibling = note[0];
  teller = (pid_t)MUST(make(SIGUSR2));
  if (teller == 0) sleep_on();
  silent = (pid_t)MUST(make(0));
  if (silent == 0) sleep_on();
  leader = (pid_t)MUST(fork());
  if (leader == 0) {
    setsid();
    if (fork() == 0) {
      note[1] = getpid();
      sleep_on();
    }
    while (note[1] == 0) sleep_ms(1);
    _exit(7);
  }
  MUST(WITHIN(5000, task_state(leader) == 'Z') ? 0 : -1);
  orphan = note[1];
  keep_child(sibling), keep_child(orphan);
  serve(check);
}
