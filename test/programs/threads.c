// N threads (the argument; 5 without one), each with its own name, nice value, signal mask, alternate
// stack, robust mutex that it holds, and thread-local variable. Their ids stay.
#include "test.h"
#include <semaphore.h>
#include <sys/resource.h>

enum { MOST = 2000 };
struct worker {
  int index;
  pid_t tid;
  pthread_t thread;
  sem_t go, done;
  pthread_mutex_t mutex;
  char stack[16 * 1024];
};
static struct worker *workers;
static int worker_count;
static __thread uint64_t local = 1;
static atomic_int quit;

static void wanted_name(int index, char name[16]) { snprintf(name, 16, "worker-%d", index); }
static int wanted_nice(int index) { return index % 7; }
static int wanted_signal(int index) { return SIGRTMIN + index % 20; }

static void verify(struct worker *self) {
  char name[16], found[16];
  sigset_t mask;
  stack_t stack;
  wanted_name(self->index, name);
  prctl(PR_GET_NAME, found);
  EXPECT(strcmp(name, found) == 0, "thread %d is called %s", self->index, found);
  EXPECT_EQ(gettid(), self->tid);
  EXPECT_EQ(getpriority(PRIO_PROCESS, self->tid), wanted_nice(self->index));
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  for (int i = 0; i < 20; i++)
    EXPECT(sigismember(&mask, SIGRTMIN + i) == (SIGRTMIN + i == wanted_signal(self->index)),
           "thread %d: signal %d in the mask", self->index, SIGRTMIN + i);
  sigaltstack(NULL, &stack);
  EXPECT(stack.ss_sp == self->stack && stack.ss_size == sizeof self->stack && stack.ss_flags == 0,
         "thread %d: the alternate stack changed", self->index);
  EXPECT(local == pattern_word(self->index, 0), "thread %d: its variable changed", self->index);
}

static void *work(void *argument) {
  struct worker *self = argument;
  char name[16];
  sigset_t mask;
  stack_t stack = {.ss_sp = self->stack, .ss_size = sizeof self->stack};
  self->tid = gettid();
  wanted_name(self->index, name);
  prctl(PR_SET_NAME, name);
  setpriority(PRIO_PROCESS, self->tid, wanted_nice(self->index));
  sigemptyset(&mask);
  sigaddset(&mask, wanted_signal(self->index));
  pthread_sigmask(SIG_BLOCK, &mask, NULL);
  sigaltstack(&stack, NULL);
  local = pattern_word(self->index, 0);
  pthread_mutex_lock(&self->mutex);
  for (;;) {
    sem_post(&self->done);
    while (sem_wait(&self->go) == -1) continue;
    if (quit) return NULL; // it still holds its mutex
    verify(self);
  }
}

static void check(void) {
  char path[64];
  for (int i = 0; i < worker_count; i++) {
    struct timespec limit = {time(NULL) + 10, 0};
    sem_post(&workers[i].go);
    EXPECT(sem_timedwait(&workers[i].done, &limit) == 0, "thread %d does not answer", i);
    snprintf(path, sizeof path, "/proc/self/task/%d", workers[i].tid);
    EXPECT(access(path, F_OK) == 0, "there is no task %d", workers[i].tid);
    EXPECT_EQ(pthread_mutex_trylock(&workers[i].mutex), EBUSY);
  }
  if (!final_round) return;
  // The kernel walks the robust list of a thread that ends, and clears its id for pthread_join.
  quit = 1;
  for (int i = 0; i < worker_count; i++) {
    sem_post(&workers[i].go);
    EXPECT_EQ(pthread_join(workers[i].thread, NULL), 0);
    EXPECT_EQ(pthread_mutex_trylock(&workers[i].mutex), EOWNERDEAD);
  }
}

static void rename_one(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/comm", workers[1].tid);
  FILE *file = fopen(path, "w");
  fputs("other", file);
  fclose(file);
}

int main(int argc, char **argv) {
  begin();
  tamper = rename_one;
  worker_count = argc > 1 ? atoi(argv[1]) : 5;
  if (worker_count > MOST) worker_count = MOST;
  workers = map_anon(sizeof *workers * worker_count, PROT_READ | PROT_WRITE);
  pthread_mutexattr_t robust;
  pthread_attr_t small;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 128 * KIB);
  for (int i = 0; i < worker_count; i++) {
    workers[i].index = i;
    sem_init(&workers[i].go, 0, 0);
    sem_init(&workers[i].done, 0, 0);
    pthread_mutex_init(&workers[i].mutex, &robust);
    MUST(pthread_create(&workers[i].thread, &small, work, &workers[i]) == 0 ? 0 : -1);
    sem_wait(&workers[i].done);
  }
  serve(check);
}
