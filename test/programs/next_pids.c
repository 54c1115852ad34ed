// A process whose next child will be the first one of a new pid namespace (unshare with CLONE_NEWPID): there is none yet.
#include "test.h"

static void check(void) {
  char text[64];
  EXPECT(readlink("/proc/self/ns/pid", text, sizeof text) > 0, "readlink: %m");
  EXPECT(readlink("/proc/self/ns/pid_for_children", text, sizeof text) == -1, "children have another namespace already");
  if (!final_round) return;
  int status = -1;
  pid_t first = fork();
  if (first == 0) _exit(getpid() == 1 ? 0 : 1);
  EXPECT_EQ(waitpid(first, &status, 0), first);
  EXPECT(status == 0, "the first child is not the first of a namespace: 0x%x", status);
}

static void spoil(void) { keep_child((pid_t)MUST(fork() ?: (pause(), 0))); }

int main(void) {
  begin();
  MUST(unshare(CLONE_NEWPID));
  tamper = spoil;
  serve(check);
}
