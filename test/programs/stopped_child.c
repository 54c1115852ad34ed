// Stopped processes: a child stopped by SIGSTOP whose stop has been seen by wait, one whose stop has
// not, one that is stopped and has a signal pending. They stay stopped; SIGCONT lets them go on, and
// the parent sees stop and continuation as waitid tells them. After a restore a stop that was seen
// before is told again (nobody can ask the kernel whether it was), as with CRIU.
#include "test.h"

static pid_t seen, unseen, pending;

static bool reports(pid_t pid, int options, int code, int status) {
  siginfo_t info = {0};
  int got = waitid(P_PID, pid, &info, options | WNOHANG);
  return got == 0 && info.si_pid == pid && info.si_code == code && info.si_status == status;
}

static pid_t make_child(void) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) {
    check_wanted = finish_wanted = 0;
    while (wait_request(-1) == CHECK) tell("running", "yes");
    _exit(5);
  }
  keep_child(pid);
  return pid;
}

static void stop(pid_t pid) {
  kill(pid, SIGSTOP);
  EXPECT(WITHIN(5000, task_state(pid) == 'T'), "child %d does not stop", pid);
}

static void stop_all(void) {
  char text[16];
  stop(seen);
  EXPECT(reports(seen, WSTOPPED, CLD_STOPPED, SIGSTOP), "the first stop is not told");
  stop(unseen);
  stop(pending);
  kill(pending, SIGUSR1); // it answers only when it is continued
  EXPECT(access("running", F_OK) == -1, "a stopped child runs");
  (void)text;
}

static void go_on(pid_t pid) {
  char text[16];
  kill(pid, SIGCONT);
  EXPECT(WITHIN(5000, reports(pid, WCONTINUED, CLD_CONTINUED, SIGCONT)), "no continuation of %d", pid);
  if (pid != pending) kill(pid, SIGUSR1);
  EXPECT(hear("running", text, sizeof text), "child %d does not go on", pid);
}

static void check(void) {
  pid_t all[] = {seen, unseen, pending};
  for (size_t i = 0; i < COUNT(all); i++)
    EXPECT(task_state(all[i]) == 'T', "child %zu is in the state %c", i, task_state(all[i]));
  EXPECT(access("running", F_OK) == -1, "a stopped child has run");
  EXPECT(reports(unseen, WSTOPPED, CLD_STOPPED, SIGSTOP), "a stop is not told");
  for (size_t i = 0; i < COUNT(all); i++) go_on(all[i]);
  stop_all();
}

static void let_go(void) { kill(unseen, SIGCONT); }

int main(void) {
  begin();
  tamper = let_go;
  seen = make_child();
  unseen = make_child();
  pending = make_child();
  stop_all();
  if (failure_taken) MUST(-1);
  serve(check);
}
