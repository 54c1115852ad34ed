// Sessions and process groups: a child that leads a session, one in a group of another's, a group whose
// leader is dead, a session whose leader is dead. This process takes in the orphans, so that all
// of them stay in one tree.
#include "test.h"

enum { LEADER, GROUP_LEADER, MEMBER, GROUP_ORPHAN, SESSION_ORPHAN, IN_SESSION, MANY };
static const char *const names[] = {"session leader",      "group leader",   "group member",
                                    "orphan of a group",   "orphan of a session",
                                    "member of a session"};
static struct {
  pid_t pid, parent, group, session;
} tasks[MANY];

static pid_t fork_idle(void) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) idle();
  return pid;
}

static pid_t parent_of(pid_t pid) {
  char path[64], text[64];
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  field_of(path, "PPid", text, sizeof text);
  return atoi(text);
}

// A leader (of a session, or of a group) that leaves a child behind and ends.
static pid_t orphan_of(bool session) {
  pid_t leader = (pid_t)MUST(fork());
  if (leader == 0) {
    if (session) setsid();
    else setpgid(0, 0);
    tell_number("orphan", fork_idle());
    _exit(0);
  }
  pid_t orphan = (pid_t)hear_number("orphan");
  MUST(waitpid(leader, NULL, 0));
  keep_child(orphan);
  return orphan;
}

static void check(void) {
  for (int i = 0; i < MANY; i++) {
    pid_t pid = tasks[i].pid;
    EXPECT(kill(pid, 0) == 0 && task_state(pid) != 'Z', "the %s is gone", names[i]);
    EXPECT(getpgid(pid) == tasks[i].group, "the %s is in group %d, wanted %d", names[i],
           getpgid(pid), tasks[i].group);
    EXPECT(getsid(pid) == tasks[i].session, "the %s is in session %d, wanted %d", names[i],
           getsid(pid), tasks[i].session);
    EXPECT(parent_of(pid) == tasks[i].parent, "the %s has the parent %d, wanted %d", names[i],
           parent_of(pid), tasks[i].parent);
  }
  EXPECT(getsid(0) == getpid(), "this process leads no session any more");
  EXPECT(kill(-tasks[GROUP_ORPHAN].group, 0) == 0, "the group without a leader has no member");
}

static void move_group(void) { setpgid(tasks[MEMBER].pid, 0); }

int main(void) {
  begin();
  tamper = move_group;
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  if (getsid(0) != getpid()) MUST(setsid());
  pid_t leader = (pid_t)MUST(fork());
  if (leader == 0) {
    setsid();
    tell_number("inside", fork_idle());
    idle();
  }
  tasks[LEADER].pid = leader;
  tasks[IN_SESSION].pid = (pid_t)hear_number("inside");
  keep_child(tasks[IN_SESSION].pid); // ended first, it comes to us when its parent has ended
  keep_child(leader);
  tasks[GROUP_LEADER].pid = fork_idle();
  MUST(setpgid(tasks[GROUP_LEADER].pid, 0));
  tasks[MEMBER].pid = fork_idle();
  MUST(setpgid(tasks[MEMBER].pid, tasks[GROUP_LEADER].pid));
  keep_child(tasks[GROUP_LEADER].pid);
  keep_child(tasks[MEMBER].pid);
  tasks[GROUP_ORPHAN].pid = orphan_of(false);
  tasks[SESSION_ORPHAN].pid = orphan_of(true);
  for (int i = 0; i < MANY; i++) {
    tasks[i].group = (pid_t)MUST(getpgid(tasks[i].pid));
    tasks[i].session = (pid_t)MUST(getsid(tasks[i].pid));
    tasks[i].parent = parent_of(tasks[i].pid);
  }
  serve(check);
}
