// A process that has forbidden itself memory which is writable and executable (PR_SET_MDWE, as systemd's MemoryDenyWriteExecute does):
// with threads, and a child alone. Neither may ever get such memory again.
#include "test.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

static pid_t child;
static int bits;
static char *text;

static void check_refusals(void) {
  EXPECT_EQ(prctl(PR_GET_MDWE, 0, 0, 0, 0), bits);
  if (bits == 0) return; // before Linux 6.3
  void *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT(map == MAP_FAILED && errno == EACCES, "memory to write and execute: %m");
  EXPECT(mprotect(text, PAGE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES, "mprotect: %m");
}

static void check(void) {
  check_refusals();
  ask_child(child);
}

static void *wait_for_ever(void *unused) {
  idle();
  return unused;
}

static void spoil(void) { bits = 8; }

int main(void) {
  begin();
  tamper = spoil;
  text = map_anon(PAGE, PROT_READ | PROT_WRITE);
  prctl(PR_SET_MDWE, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0);
  bits = prctl(PR_GET_MDWE, 0, 0, 0, 0) > 0;
  child = start_child(NULL, check_refusals);
  pthread_t thread;
  for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, wait_for_ever, NULL);
  serve(check);
}
