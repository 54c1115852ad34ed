// Processes whose main thread has ended while others live: this one, which answers from a second thread, and a child of it, whose other
// thread ends later (its end is told with that one's code, or before Linux 5.17 with that of the main thread). Each has descriptors, memory, a timer and pending signals.
#include "test.h"

enum { MAIN_CODE = 5, OTHER_CODE = 9 };
static pid_t child, own;
static int to_child[2], pidfd;
static timer_t timer;
static char *memory;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_t other;
static atomic_int turns;

static void end_thread(int code) { syscall(SYS_exit, code); }

static char thread_state(pid_t pid, pid_t tid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
  if (read_text(path, text, sizeof text) <= 0) return '?';
  char *end = strrchr(text, ')');
  return end == NULL ? '?' : end[2];
}

// The last number: the main thread's own.
static int exit_code(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, pid);
  if (read_text(path, text, sizeof text) <= 0) return -1;
  return atoi(strrchr(text, ' '));
}

static void *wait_for_byte(void *unused) {
  char byte;
  read(to_child[0], &byte, 1);
  end_thread(OTHER_CODE);
  return unused;
}

static void *count_turns(void *unused) {
  for (;;) {
    pthread_mutex_lock(&mutex);
    atomic_fetch_add(&turns, 1);
    pthread_mutex_unlock(&mutex);
    sleep_ms(1);
  }
  return unused;
}

static void check(void) {
  char name[64], path[64];
  EXPECT_EQ(getpid(), own);
  EXPECT(gettid() != own, "the main thread answers");
  EXPECT(thread_state(own, own) == 'Z', "the main thread is %c", thread_state(own, own));
  snprintf(path, sizeof path, "/proc/%d/task/%d/status", own, own);
  field_of(path, "Name", name, sizeof name);
  EXPECT(strcmp(name, "its-leader") == 0, "the main thread is called %s", name);
  EXPECT(filled(memory, 4 * PAGE, 11), "the memory is another");
  struct itimerspec left = {0};
  EXPECT_EQ(timer_gettime(timer, &left), 0);
  EXPECT_EQ(left.it_interval.tv_sec, 77);
  sigset_t pending;
  sigpending(&pending);
  EXPECT(sigismember(&pending, SIGRTMIN + 3), "a signal is no longer pending");
  int before = atomic_load(&turns);
  EXPECT(WITHIN(5000, atomic_load(&turns) > before), "the other thread stands still");
  struct pollfd ready = {pidfd, POLLIN, 0};
  EXPECT(poll(&ready, 1, 0) == 0, "the child has ended");
  EXPECT(thread_state(child, child) == 'Z', "the child's main thread is %c", thread_state(child, child));
  EXPECT(waitpid(child, NULL, WNOHANG) == 0, "the child can be waited for");
  EXPECT_EQ(exit_code(child), MAIN_CODE << 8);
  if (!final_round) return;
  int status = 0;
  EXPECT(write(to_child[1], "x", 1) == 1, "write: %m");
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT(status == MAIN_CODE << 8 || status == OTHER_CODE << 8, "the child ended with 0x%x", status);
  forget_child(child);
}

static void spoil(void) { memory[0]++; }

static void *serve_here(void *unused) {
  EXPECT(WITHIN(5000, thread_state(own, own) == 'Z' && thread_state(child, child) == 'Z'), "a main thread does not end");
  serve(check);
  return unused;
}

int main(void) {
  pthread_t thread;
  begin();
  tamper = spoil;
  own = getpid();
  prctl(PR_SET_NAME, "its-leader");
  MUST(pipe(to_child));
  memory = map_anon(4 * PAGE, PROT_READ | PROT_WRITE);
  fill(memory, 4 * PAGE, 11);
  child = (pid_t)MUST(fork());
  if (child == 0) {
    pthread_create(&thread, NULL, wait_for_byte, NULL);
    end_thread(MAIN_CODE);
  }
  keep_child(child);
  pidfd = (int)MUST(syscall(SYS_pidfd_open, child, 0));
  struct itimerspec period = {.it_interval = {77, 0}, .it_value = {100000, 0}};
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
  MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
  MUST(timer_settime(timer, 0, &period, NULL));
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  MUST(sigprocmask(SIG_BLOCK, &set, NULL));
  pthread_create(&other, NULL, count_turns, NULL);
  pthread_create(&thread, NULL, serve_here, NULL);
  MUST(sigqueue(own, SIGRTMIN + 3, (union sigval){.sival_int = 1}));
  end_thread(MAIN_CODE);
}
