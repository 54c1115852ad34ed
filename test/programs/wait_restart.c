// A thread blocked in waitpid for one child and one blocked in waitid for another, which end when told,
// after the restore. No EINTR, and the code is the child's.
#include "test.h"

static atomic_int by_pid, by_id;      // the children that are waited for; 0 between two
static atomic_int pid_code, id_code;  // what came

static int make_child(int code) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid != 0) return pid;
  check_wanted = finish_wanted = 0;
  wait_request(-1);
  _exit(code);
}

static void *wait_by_pid(void *unused) {
  for (;;) {
    int status = 0;
    if (by_pid == 0) {
      sleep_ms(1);
      continue;
    }
    pid_t pid = waitpid(by_pid, &status, 0);
    EXPECT(pid == by_pid, "waitpid gave %d: %m", pid);
    pid_code = WEXITSTATUS(status);
    by_pid = 0;
  }
  return unused;
}

static void *wait_by_id(void *unused) {
  for (;;) {
    siginfo_t info = {0};
    if (by_id == 0) {
      sleep_ms(1);
      continue;
    }
    int got = waitid(P_PID, by_id, &info, WEXITED);
    EXPECT(got == 0, "waitid: %m");
    EXPECT_EQ(info.si_pid, by_id);
    id_code = info.si_status;
    by_id = 0;
  }
  return unused;
}

static void make_children(void) {
  by_pid = make_child(41);
  by_id = make_child(42);
}

static void check(void) {
  EXPECT(by_pid != 0 && by_id != 0, "a wait is over already");
  EXPECT(kill(by_pid, SIGTERM) == 0 && kill(by_id, SIGTERM) == 0, "a child is gone: %m");
  EXPECT(WITHIN(5000, by_pid == 0 && by_id == 0), "a wait does not end");
  EXPECT_EQ(pid_code, 41);
  EXPECT_EQ(id_code, 42);
  if (!final_round) make_children();
}

static void kill_one(void) { kill(by_id, SIGKILL); }

int main(void) {
  begin();
  tamper = kill_one;
  pthread_t thread;
  pthread_create(&thread, NULL, wait_by_pid, NULL);
  pthread_create(&thread, NULL, wait_by_id, NULL);
  make_children();
  sleep_ms(20);
  serve(check);
}
