// Zombies: children that have ended, by exit and by signals, and that nobody has waited for. They stay,
// with their codes, until the last check waits for them.
#include "test.h"
#include <sys/resource.h>

static struct {
  int exit_code, signal;  // one of the two
  pid_t pid;
} zombies[] = {{0, 0, 0}, {7, 0, 0}, {255, 0, 0}, {0, SIGKILL, 0}, {0, SIGSEGV, 0}, {0, SIGTERM, 0},
               {0, 64, 0}};

// A zombie that leads a group of its own, with a living member.
static pid_t leader, member;

static void make(size_t i) {
  int signal = zombies[i].signal;
  zombies[i].pid = (pid_t)MUST(fork());
  if (zombies[i].pid != 0) return;
  if (signal == 0) _exit(zombies[i].exit_code);
  setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
  sigset_t none;
  sigemptyset(&none);
  if (signal != SIGKILL) sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  kill(getpid(), signal);
  _exit(99);
}

static void check(void) {
  for (size_t i = 0; i < COUNT(zombies); i++) {
    siginfo_t info = {0};
    pid_t pid = zombies[i].pid;
    EXPECT(task_state(pid) == 'Z', "child %zu is in the state %c", i, task_state(pid));
    EXPECT(waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0, "waitid: %m");
    EXPECT_EQ(info.si_pid, pid);
    EXPECT_EQ(info.si_code, zombies[i].signal == 0 ? CLD_EXITED : CLD_KILLED);
    EXPECT_EQ(info.si_status, zombies[i].signal == 0 ? zombies[i].exit_code : zombies[i].signal);
  }
  EXPECT(task_state(leader) == 'Z' && getpgid(member) == leader, "the group of a zombie changed");
  if (!final_round) return;
  for (size_t i = 0; i < COUNT(zombies); i++) {
    int status = -1;
    EXPECT_EQ(waitpid(zombies[i].pid, &status, 0), zombies[i].pid);
    EXPECT_EQ(status, zombies[i].signal == 0 ? zombies[i].exit_code << 8 : zombies[i].signal);
  }
}

static void reap_one(void) { waitpid(zombies[1].pid, NULL, 0); }

int main(void) {
  begin();
  tamper = reap_one;
  for (size_t i = 0; i < COUNT(zombies); i++) make(i);
  leader = (pid_t)MUST(fork());
  if (leader == 0) {
    setpgid(0, 0);
    if (wait_request(-1)) _exit(3);
  }
  member = (pid_t)MUST(fork());
  if (member == 0) idle();
  keep_child(leader);
  keep_child(member);
  MUST(WITHIN(5000, setpgid(member, leader) == 0) ? 0 : -1);
  kill(leader, SIGTERM);
  for (size_t i = 0; i < COUNT(zombies); i++)
    MUST(WITHIN(5000, task_state(zombies[i].pid) == 'Z') ? 0 : -1);
  MUST(WITHIN(5000, task_state(leader) == 'Z') ? 0 : -1);
  serve(check);
}
