// What the kernel knows of a thread's memory: the fs base (thread-local variables), the address that is
// cleared when it ends (set_tid_address), the robust list, and the area of restartable sequences (rseq).
#include "test.h"
#include <asm/prctl.h>
#include <linux/rseq.h>
#include <sys/rseq.h>

struct facts {
  unsigned long base;
  int *clear_tid;
  void *robust;
  size_t robust_length;
  const struct rseq *sequence;
};
static __thread uint64_t local = 5;
static struct facts first_main, first_thread;
static atomic_int asked, answered, quit;
static pthread_t thread;

static struct facts look(void) {
  struct facts facts = {0};
  EXPECT(syscall(SYS_arch_prctl, ARCH_GET_FS, &facts.base) == 0, "arch_prctl: %m");
  EXPECT(prctl(PR_GET_TID_ADDRESS, &facts.clear_tid) == 0, "PR_GET_TID_ADDRESS: %m");
  EXPECT(syscall(SYS_get_robust_list, 0, &facts.robust, &facts.robust_length) == 0, "get_robust_list");
  if (__rseq_size != 0)
    facts.sequence = (const struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
  return facts;
}

// The kernel writes the processor's number into a registered area, and refuses to register twice.
static void expect_sequence(const struct rseq *sequence) {
  if (sequence == NULL) return;
  long again = syscall(SYS_rseq, sequence, 32, 0, RSEQ_SIG);
  EXPECT(again == -1 && errno == EBUSY, "registering rseq anew gave %ld: %m", again);
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &all)) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    int told = (int)*(volatile const uint32_t *)&sequence->cpu_id;
    EXPECT(told == cpu, "rseq says processor %d on %d", told, cpu);
  }
  sched_setaffinity(0, sizeof all, &all);
}

static void verify(const char *whose, const struct facts *first, uint64_t value) {
  struct facts now = look();
  EXPECT(now.base == first->base, "%s: fs base is %lx", whose, now.base);
  EXPECT(now.clear_tid == first->clear_tid, "%s: cleared is %p", whose, (void *)now.clear_tid);
  EXPECT(now.robust == first->robust, "%s: robust list is at %p", whose, now.robust);
  EXPECT_EQ(now.robust_length, first->robust_length);
  EXPECT(local == value, "%s: its variable changed", whose);
  expect_sequence(now.sequence);
}

static void *run(void *unused) {
  local = 6;
  first_thread = look();
  answered = asked;
  for (; !quit; sleep_ms(1)) {
    if (answered == asked) continue;
    verify("thread", &first_thread, 6);
    answered = asked;
  }
  return unused;
}

static void check(void) {
  verify("main", &first_main, 5);
  asked++;
  EXPECT(WITHIN(5000, answered == asked), "the thread does not answer");
  if (!final_round) return;
  quit = 1; // the kernel clears the thread's id and wakes the join
  struct timespec limit = {time(NULL) + 5, 0};
  EXPECT_EQ(pthread_timedjoin_np(thread, NULL, &limit), 0);
}

static int elsewhere;
static void move_tid(void) { syscall(SYS_set_tid_address, &elsewhere); }

int main(void) {
  begin();
  tamper = move_tid;
  first_main = look();
  asked = 1;
  pthread_create(&thread, NULL, run, NULL);
  MUST(WITHIN(5000, answered == asked) ? 0 : -1);
  serve(check);
}
