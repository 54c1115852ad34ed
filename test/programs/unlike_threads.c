// Threads of which each differs from the others in one thing, three times: timer slack, personality, groups (also as many as another one
// has), an effective capability, no_new_privs, secure bits, memory policy, alternate stack, nice value, robust list, name, umask, what a
// machine check does, cleared address.
#include "test.h"
#include <linux/capability.h>
#include <linux/mempolicy.h>
#include <linux/securebits.h>
#include <semaphore.h>
#include <sys/personality.h>
#include <sys/resource.h>

enum { TRAITS = 16, COUNT_OF_THREADS = 3 * TRAITS, MOST_GROUPS = 8 };

// All words, so that a difference can be told by its number.
struct facts {
  long slack, personality, group_count, groups[MOST_GROUPS], effective, permitted, no_new_privs;
  long secure_bits, policy, nodes, stack, stack_size, nice, robust_list, name[2];
  long mask, machine_check, cleared;
};

static struct worker {
  pid_t tid;
  pthread_t thread;
  sem_t go, done;
  struct facts first;
  char stack[64 * KIB];
  int cleared;
  struct {
    void *list;
    long offset;
    void *pending;
  } robust;
} workers[COUNT_OF_THREADS];

static void look(struct facts *facts) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct caps[2];
  gid_t groups[MOST_GROUPS];
  stack_t stack;
  int policy = 0;
  size_t length;
  memset(facts, 0, sizeof *facts);
  facts->slack = prctl(PR_GET_TIMERSLACK);
  facts->personality = personality(0xffffffff);
  facts->group_count = MUST(getgroups(MOST_GROUPS, groups));
  for (int i = 0; i < facts->group_count; i++) facts->groups[i] = groups[i];
  MUST(syscall(SYS_capget, &header, caps));
  facts->effective = caps[0].effective | (long)caps[1].effective << 32;
  facts->permitted = caps[0].permitted | (long)caps[1].permitted << 32;
  facts->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  facts->secure_bits = prctl(PR_GET_SECUREBITS);
  syscall(SYS_get_mempolicy, &policy, &facts->nodes, sizeof facts->nodes * 8, NULL, 0);
  facts->policy = policy;
  MUST(sigaltstack(NULL, &stack));
  facts->stack = (long)stack.ss_sp;
  facts->stack_size = stack.ss_size;
  facts->nice = getpriority(PRIO_PROCESS, 0);
  MUST(syscall(SYS_get_robust_list, 0, &facts->robust_list, &length));
  prctl(PR_GET_NAME, facts->name);
  // One looks at a time.
  facts->mask = umask(0);
  umask(facts->mask);
  facts->machine_check = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
  MUST(prctl(PR_GET_TID_ADDRESS, &facts->cleared, 0, 0, 0));
}

static void become(int trait, struct worker *self) {
  static const gid_t three[] = {5, 6, 7}, others[] = {5, 6, 8}, five[] = {5, 6, 7, 8, 9};
  unsigned long node = 1;
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct caps[2];
  stack_t stack = {.ss_sp = self->stack, .ss_size = sizeof self->stack};
  switch (trait) {
    case 0: break;
    case 1: MUST(prctl(PR_SET_TIMERSLACK, 70000)); break;
    case 2: MUST(personality(ADDR_NO_RANDOMIZE)); break;
    case 3: MUST(syscall(SYS_setgroups, 3, three)); break;
    case 4: MUST(syscall(SYS_setgroups, 3, others)); break;
    case 5: MUST(syscall(SYS_setgroups, 5, five)); break;
    case 6:
      MUST(syscall(SYS_capget, &header, caps));
      caps[0].effective &= ~(1u << CAP_SYS_TIME);
      MUST(syscall(SYS_capset, &header, caps));
      break;
    case 7: MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); break;
    case 8: MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT)); break;
    case 9: // not every kernel knows it
      syscall(SYS_set_mempolicy, MPOL_BIND, &node, sizeof node * 8);
      break;
    case 10: MUST(sigaltstack(&stack, NULL)); break;
    case 11: MUST(setpriority(PRIO_PROCESS, 0, 9)); break;
    case 12:
      self->robust.list = &self->robust;
      MUST(syscall(SYS_set_robust_list, &self->robust, sizeof self->robust));
      MUST(prctl(PR_SET_NAME, "another"));
      break;
    case 13:
      MUST(unshare(CLONE_FS));
      umask(0137);
      break;
    case 14: MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0)); break;
    case 15: MUST(syscall(SYS_set_tid_address, &self->cleared)); break;
  }
}

static void verify(struct worker *self) {
  struct facts now;
  look(&now);
  const long *is = (long *)&now, *was = (long *)&self->first;
  for (size_t word = 0; word < sizeof now / sizeof *is; word++)
    EXPECT(is[word] == was[word], "thread %d: word %zu is %lx, wanted %lx", (int)(self - workers), word,
           is[word], was[word]);
}

static void *work(void *argument) {
  struct worker *self = argument;
  self->tid = gettid();
  become((self - workers) % TRAITS, self);
  look(&self->first);
  for (;;) {
    sem_post(&self->done);
    while (sem_wait(&self->go) == -1) continue;
    verify(self);
  }
  return NULL;
}

static void check(void) {
  for (int i = 0; i < COUNT_OF_THREADS; i++) {
    struct timespec limit = {time(NULL) + 10, 0};
    sem_post(&workers[i].go);
    EXPECT(sem_timedwait(&workers[i].done, &limit) == 0, "thread %d does not answer", i);
  }
}

static void renice_one(void) { setpriority(PRIO_PROCESS, workers[3].tid, 11); }

int main(void) {
  begin();
  tamper = renice_one;
  for (int i = 0; i < COUNT_OF_THREADS; i++) {
    sem_init(&workers[i].go, 0, 0);
    sem_init(&workers[i].done, 0, 0);
    MUST(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0 ? 0 : -1);
    sem_wait(&workers[i].done);
  }
  serve(check);
}
