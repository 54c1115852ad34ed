// A thread with a current directory, a umask (unshare with CLONE_FS) and a personality of its own, and one that has its process's. With "table" or
// "net" a thread has what cannot be saved. A number is of other threads, which sleep.
#include "test.h"
#include <linux/kcmp.h>
#include <sys/personality.h>

enum { APART, TOGETHER, THREADS };
static char home[4096];
static _Atomic int asked[THREADS];
static _Atomic pid_t tids[THREADS];
static struct {
  char cwd[4096];
  mode_t mask;
  int personality;
} seen[THREADS];
static int parts = CLONE_FS; // what the first one has for itself

static void *stay(void *number) {
  long own = (long)number;
  if (own == APART) {
    MUST(unshare(parts));
    if (parts == CLONE_FS) {
      MUST(chdir("apart"));
      umask(0137);
      MUST(personality(ADDR_NO_RANDOMIZE));
    }
  }
  tids[own] = gettid();
  for (;;) {
    while (!asked[own]) sleep_ms(1);
    MUST(getcwd(seen[own].cwd, sizeof seen[own].cwd) == NULL ? -1 : 0);
    umask(seen[own].mask = umask(0));
    seen[own].personality = personality(0xffffffff);
    asked[own] = 0;
  }
  return NULL;
}

static void expect_at(int thread, const char *directory, mode_t mask) {
  asked[thread] = 1;
  EXPECT(WITHIN(5000, !asked[thread]), "thread %d is silent", thread);
  const char *cwd = seen[thread].cwd + strlen(home);
  EXPECT(strcmp(cwd, directory) == 0, "thread %d is in %s", thread, seen[thread].cwd);
  EXPECT_EQ(seen[thread].mask, mask);
}

static void check(void) {
  if (parts != CLONE_FS) return;
  EXPECT(syscall(SYS_kcmp, tids[APART], getpid(), KCMP_FS, 0, 0) != 0, "the first thread has our directory");
  EXPECT(syscall(SYS_kcmp, tids[TOGETHER], getpid(), KCMP_FS, 0, 0) == 0, "the second thread has not our directory");
  expect_at(APART, "/apart", 0137);
  expect_at(TOGETHER, "", 022);
  umask(027);
  EXPECT(chdir("together") == 0, "chdir: %m");
  expect_at(TOGETHER, "/together", 027);
  expect_at(APART, "/apart", 0137);
  EXPECT_EQ(seen[APART].personality, ADDR_NO_RANDOMIZE);
  EXPECT_EQ(seen[TOGETHER].personality, personality(0xffffffff));
  umask(022);
  EXPECT(chdir("..") == 0, "chdir: %m");
}

static void *wait_for_ever(void *unused) {
  for (;;) pause();
  return unused;
}

static void go_apart(void) { MUST(unshare(CLONE_FS)); }

int main(int argc, char **argv) {
  begin();
  tamper = go_apart;
  umask(022);
  if (argc > 1 && strcmp(argv[1], "net") == 0) parts = CLONE_NEWNET;
  if (argc > 1 && strcmp(argv[1], "table") == 0) parts = CLONE_FILES;
  int idlers = argc > 1 ? atoi(argv[argc - 1]) : 0;
  for (int i = 0; i < idlers; i++) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, wait_for_ever, NULL) == 0 ? 0 : -1);
  }
  MUST(getcwd(home, sizeof home) == NULL ? -1 : 0);
  MUST(mkdir("apart", 0700));
  MUST(mkdir("together", 0700));
  for (long i = 0; i < THREADS; i++) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, stay, (void *)i) == 0 ? 0 : -1);
    MUST(WITHIN(5000, tids[i] != 0) ? 0 : -1);
  }
  serve(check);
}
