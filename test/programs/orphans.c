// Orphans: a grandchild whose parent has ended belongs to the next subreaper above it; here that is this
// process for one, and a child that is a subreaper too for another. Adoption works on after a restore.
#include "test.h"

static pid_t ours, reaper, theirs;

// A child that makes a child and ends; gives the orphan's pid.
static pid_t make_orphan(void) {
  pid_t parent = (pid_t)MUST(fork());
  if (parent == 0) {
    pid_t pid = (pid_t)MUST(fork());
    if (pid == 0) idle();
    tell_number("orphan", pid);
    _exit(0);
  }
  MUST(waitpid(parent, NULL, 0));
  return (pid_t)hear_number("orphan");
}

static pid_t parent_of(pid_t pid) {
  char path[64], text[64];
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  field_of(path, "PPid", text, sizeof text);
  return atoi(text);
}

static void expect_adopted(pid_t pid) {
  EXPECT(parent_of(pid) == getpid(), "orphan %d belongs to %d, wanted %d", pid, parent_of(pid),
         getpid());
}

// A new orphan comes to us, and can be waited for.
static void adopt_another(void) {
  int status = -1;
  pid_t pid = make_orphan();
  expect_adopted(pid);
  kill(pid, SIGKILL);
  EXPECT(waitpid(pid, &status, 0) == pid && status == SIGKILL, "the new orphan ended with %x", status);
}

static void reaper_setup(void) {
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  theirs = make_orphan();
  keep_child(theirs);
}

static void reaper_check(void) {
  expect_adopted(theirs);
  adopt_another();
}

static void check(void) {
  expect_adopted(ours);
  adopt_another();
  ask_child(reaper);
}

static void no_reaper(void) { prctl(PR_SET_CHILD_SUBREAPER, 0); }

int main(void) {
  begin();
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  ours = make_orphan();
  keep_child(ours);
  reaper = start_child(reaper_setup, reaper_check);
  tamper = no_reaper;
  serve(check);
}
