// A process that shares its descriptor table with its parent (clone with CLONE_FILES): what one opens
// or closes, the other has open or closed. A second child has a table of its own.
#include "test.h"
#include <linux/kcmp.h>

enum { SLOT = 50 };
static pid_t sharing, apart;

static void run_child(void) {
  check_wanted = finish_wanted = 0;
  for (;;) {
    if (wait_request(-1) == FINISH) _exit(0);
    // What is open at SLOT here goes to SLOT + 1.
    tell("child", dup2(SLOT, SLOT + 1) == SLOT + 1 ? "open" : "closed");
  }
}

static pid_t make_child(int flags) {
  pid_t pid = (pid_t)MUST(syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL));
  if (pid == 0) run_child();
  keep_child(pid);
  return pid;
}

static bool open_in(pid_t pid) {
  char text[16] = "";
  kill(pid, SIGUSR1);
  EXPECT(hear("child", text, sizeof text), "child %d does not answer", pid);
  return strcmp(text, "open") == 0;
}

static bool same_table(pid_t pid) {
  return syscall(SYS_kcmp, getpid(), pid, KCMP_FILES, 0, 0) == 0;
}

static void check(void) {
  EXPECT(same_table(sharing), "the table is not shared any more");
  EXPECT(!same_table(apart), "the other child shares the table now");
  EXPECT(fcntl(SLOT, F_GETFD) == -1, "descriptor %d is open", SLOT);
  EXPECT(!open_in(sharing) && !open_in(apart), "descriptor %d is open in a child", SLOT);
  int file = open("file", O_RDWR | O_CREAT, 0600);
  EXPECT(dup2(file, SLOT) == SLOT, "dup2: %m");
  EXPECT(!open_in(apart), "what the parent opens is open in the child apart");
  EXPECT(open_in(sharing), "what the parent opens is not open in the child");
  EXPECT(fcntl(SLOT + 1, F_GETFD) == 0, "what the child opens is not open here");
  close(SLOT);
  close(SLOT + 1);
  close(file);
}

static void unshare_table(void) { unshare(CLONE_FILES); }

int main(void) {
  begin();
  tamper = unshare_table;
  apart = make_child(0);
  sharing = make_child(CLONE_FILES);
  serve(check);
}
