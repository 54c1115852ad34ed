// What prctl keeps for a process or a thread: parent-death signal, child subreaper, name, timer slack,
// no huge pages, dumpable, machine check policy, time stamp counter access, speculation, merging of pages. The death signal is a child's: the
// restored root's parent is the engine, which leaves, so a death signal of its own would be its end.
#include "test.h"

#ifndef PR_GET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static pid_t child;
static char *apart;   // memory of the child that is not merged
static char *guarded; // and some that is, with a guard page in it
static int speculation, merges, huge; // the child's: what this machine can do

// PR_GET_… that write to an int: the value, or -1.
static int get_int(int option) {
  int value = -1;
  return prctl(option, &value, 0, 0, 0) == 0 ? value : -1;
}

static void check(void) {
  char name[16];
  EXPECT_EQ(get_int(PR_GET_CHILD_SUBREAPER), 1);
  prctl(PR_GET_NAME, name);
  EXPECT(strcmp(name, "a name (x) \n y") == 0, "the name is %s", name);
  EXPECT_EQ(prctl(PR_GET_TIMERSLACK), 123456);
  EXPECT_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
  EXPECT_EQ(prctl(PR_GET_DUMPABLE), 1);
  EXPECT_EQ(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_DEFAULT);
  EXPECT_EQ(get_int(PR_GET_TSC), PR_TSC_ENABLE);
  ask_child(child);
}

// The child has other values; a subreaper is not inherited.
static void child_setup(void) {
  prctl(PR_SET_NAME, "");
  prctl(PR_SET_TIMERSLACK, 0); // back to the default, which is the parent's of the time of the fork
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
  MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
  prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
  speculation = prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0);
  prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
  merges = prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
  apart = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  MUST(madvise(apart, 4 * PAGE, MADV_UNMERGEABLE));
  guarded = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  madvise(guarded + PAGE, PAGE, MADV_GUARD_INSTALL); // Linux 6.13
  prctl(PR_SET_THP_DISABLE, 1, 2 /* PR_THP_DISABLE_EXCEPT_ADVISED */, 0, 0);
  huge = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
}

static void child_check(void) {
  char name[16];
  prctl(PR_GET_NAME, name);
  EXPECT(name[0] == 0, "the child's name is %s", name);
  EXPECT_EQ(get_int(PR_GET_PDEATHSIG), SIGKILL);
  EXPECT_EQ(get_int(PR_GET_CHILD_SUBREAPER), 0);
  EXPECT_EQ(prctl(PR_GET_TIMERSLACK), 123456);
  EXPECT_EQ(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
  EXPECT_EQ(get_int(PR_GET_TSC), PR_TSC_SIGSEGV);
  EXPECT_EQ(prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0), speculation);
  EXPECT_EQ(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), merges);
  EXPECT_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), huge);
  char flags[256];
  smaps_field(apart, "VmFlags", flags, sizeof flags);
  EXPECT(strstr(flags, "mg") == NULL, "memory that stands apart is %s", flags);
  smaps_field(guarded + PAGE, "VmFlags", flags, sizeof flags);
  EXPECT((strstr(flags, "mg") != NULL) == (merges == 1), "memory with a guard page is %s", flags);
}

static void other_slack(void) { prctl(PR_SET_TIMERSLACK, 50000); }

int main(void) {
  begin();
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  MUST(prctl(PR_SET_NAME, "a name (x) \n y"));
  MUST(prctl(PR_SET_TIMERSLACK, 123456));
  MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
  MUST(prctl(PR_SET_DUMPABLE, 1));
  child = start_child(child_setup, child_check);
  tamper = other_slack;
  serve(check);
}
