// Seccomp: a chain of two filters, installed before a thread was made (which has them, too) and one more in that thread alone;
// a child under a filter for all its threads; a child in strict mode, which can do nothing but read, write and exit.
#include "test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

enum { FIRST = 11, SECOND = 22, THIRD = 33, FOURTH = 44 };
// Calls that nobody needs: each filter makes one of them fail in its own way.
static const int calls[] = {SYS_acct, SYS_swapon, SYS_swapoff, SYS_umount2};

static int seen[COUNT(calls)], asks[2], answers[2];
static pid_t filtered, strict;
static pthread_t thread;
static _Atomic int thread_turn;
static int thread_errno[COUNT(calls)];

static void filter(int call, int error, unsigned flags) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {COUNT(code), code};
  MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}

// What each of the calls answers: its filter's error, else what the kernel says to nonsense.
static void look(int *errors) {
  for (size_t i = 0; i < COUNT(calls); i++)
    errors[i] = syscall(calls[i], "/nonexistent", 0) == 0 ? 0 : errno;
}

static void *thread_main(void *unused) {
  (void)unused;
  filter(calls[2], THIRD, 0);
  for (thread_turn = 2;; usleep(1000)) {
    if (thread_turn != 1) continue;
    look(thread_errno);
    thread_turn = 2;
  }
  return NULL;
}

static void filtered_setup(void) {
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  filter(calls[3], FOURTH, SECCOMP_FILTER_FLAG_LOG);
}

static void filtered_check(void) {
  int errors[COUNT(calls)];
  look(errors);
  EXPECT_EQ(errors[0], FIRST);
  EXPECT_EQ(errors[1], SECOND);
  EXPECT(errors[2] != THIRD, "the child has the thread's filter");
  EXPECT_EQ(errors[3], FOURTH);
  EXPECT_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

// Doubles numbers; anything but read, write and exit kills it.
static _Noreturn void strict_main(void) {
  syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL);
  for (int number; read(asks[0], &number, sizeof number) == sizeof number;) {
    number *= 2;
    if (write(answers[1], &number, sizeof number) != sizeof number) break;
  }
  syscall(SYS_exit, 0);
  abort();
}

static void check(void) {
  char mode[16];
  look(seen);
  EXPECT_EQ(seen[0], FIRST);
  EXPECT_EQ(seen[1], SECOND);
  EXPECT(seen[2] != THIRD, "the main thread has the other thread's filter");
  thread_turn = 1;
  while (thread_turn == 1) usleep(1000);
  EXPECT_EQ(thread_errno[0], FIRST);
  EXPECT_EQ(thread_errno[1], SECOND);
  EXPECT_EQ(thread_errno[2], THIRD);
  EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs came along");
  ask_child(filtered);
  int number = 21;
  EXPECT(write(asks[1], &number, sizeof number) == sizeof number, "cannot ask: %m");
  EXPECT(read(answers[0], &number, sizeof number) == sizeof number, "no answer: %m");
  EXPECT_EQ(number, 42);
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/status", strict);
  field_of(path, "Seccomp", mode, sizeof mode);
  EXPECT(strcmp(mode, "1") == 0, "the strict child is in mode %s", mode);
}

static void one_more(void) { filter(calls[1], THIRD, 0); }

int main(void) {
  begin();
  MUST(pipe(asks));
  MUST(pipe(answers));
  // Before the filters: they and strict mode exclude each other.
  strict = MUST(fork());
  if (strict == 0) strict_main();
  keep_child(strict);
  filter(calls[0], FIRST, 0);
  filter(calls[1], SECOND, 0);
  filtered = start_child(filtered_setup, filtered_check);
  MUST(pthread_create(&thread, NULL, thread_main, NULL));
  while (thread_turn != 2) usleep(1000);
  tamper = one_more;
  serve(check);
}
