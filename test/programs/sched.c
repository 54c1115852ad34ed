// Scheduling of each thread: policy (OTHER, BATCH, IDLE, and FIFO, RR where permitted), priority, nice
// value, deadline, reset on fork, the set of processors, the slice of time, and the priority of its input and output.
#include "test.h"
#include <linux/ioprio.h>
#include <sys/resource.h>

#ifndef SCHED_RESET_ON_FORK
#define SCHED_RESET_ON_FORK 0x40000000
#endif

static struct {
  int policy, priority, nice, processor, io_class, io_level; // processor -1: all
  pid_t tid;
  bool permitted;
} threads[] = {
    {SCHED_OTHER, 0, 5, -1, IOPRIO_CLASS_BE, 2, 0, true},
    {SCHED_OTHER, 0, -3, 0, IOPRIO_CLASS_NONE, 0, 0, true},
    {SCHED_BATCH, 0, 7, -1, IOPRIO_CLASS_IDLE, 0, 0, true},
    {SCHED_IDLE, 0, 0, -1, IOPRIO_CLASS_BE, 7, 0, true},
    {SCHED_OTHER | SCHED_RESET_ON_FORK, 0, 1, -1, IOPRIO_CLASS_NONE, 0, 0, true},
    {SCHED_FIFO, 3, 0, -1, IOPRIO_CLASS_RT, 3, 0, true},
    {SCHED_RR, 4, 0, 0, IOPRIO_CLASS_NONE, 0, 0, true},
};
// A thread more with a deadline, where permitted.
static pid_t deadline_tid;
static bool has_deadline;
static cpu_set_t first_set;
static uint64_t slice; // of the first thread; 0 where the kernel does not let it be chosen

// struct sched_attr, which headers have since glibc 2.41.
struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

static struct attributes attributes_of(pid_t tid) {
  struct attributes attributes = {0};
  MUST(syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0));
  return attributes;
}

static uint64_t slice_of(pid_t tid) { return attributes_of(tid).runtime; }

static void check_deadline(void) {
  struct attributes now = attributes_of(deadline_tid);
  EXPECT_EQ(now.policy, 6 /* SCHED_DEADLINE */);
  EXPECT(now.runtime == 2000000 && now.deadline == 30000000 && now.period == 40000000,
         "the deadline is %lu, %lu, %lu", now.runtime, now.deadline, now.period);
  EXPECT_EQ(now.flags, 1 /* SCHED_FLAG_RESET_ON_FORK */);
}

static void set_deadline(void) {
  struct attributes wanted = {.size = sizeof wanted,
                              .policy = 6,
                              .flags = 1,
                              .runtime = 2000000,
                              .deadline = 30000000,
                              .period = 40000000};
  has_deadline = syscall(SYS_sched_setattr, deadline_tid, &wanted, 0) == 0;
}

static void *run(void *argument) {
  *(volatile pid_t *)argument = gettid();
  idle();
}

static int io_priority(size_t i) {
  return IOPRIO_PRIO_VALUE(threads[i].io_class, threads[i].io_level);
}

static void check(void) {
  EXPECT_EQ(slice_of(threads[0].tid), slice);
  if (has_deadline) check_deadline();
  for (size_t i = 0; i < COUNT(threads); i++) {
    pid_t tid = threads[i].tid;
    struct sched_param parameter = {-1};
    cpu_set_t set;
    EXPECT_EQ(getpriority(PRIO_PROCESS, tid), threads[i].nice);
    if (threads[i].permitted) {
      EXPECT(sched_getscheduler(tid) == threads[i].policy, "thread %zu: policy %d", i,
             sched_getscheduler(tid));
      sched_getparam(tid, &parameter);
      EXPECT(parameter.sched_priority == threads[i].priority, "thread %zu: priority %d", i,
             parameter.sched_priority);
    }
    EXPECT(sched_getaffinity(tid, sizeof set, &set) == 0, "sched_getaffinity: %m");
    if (threads[i].processor < 0) EXPECT(CPU_EQUAL(&set, &first_set), "thread %zu: its set", i);
    else EXPECT(CPU_COUNT(&set) == 1 && CPU_ISSET(threads[i].processor, &set), "thread %zu: its set", i);
    // Where none was set, the kernel may answer with what follows from the nice value.
    if (threads[i].io_class != IOPRIO_CLASS_NONE)
      EXPECT(syscall(SYS_ioprio_get, 1, tid) == io_priority(i), "thread %zu: I/O priority %lx", i,
             syscall(SYS_ioprio_get, 1, tid));
  }
}

static void renice(void) { setpriority(PRIO_PROCESS, threads[0].tid, 6); }

int main(void) {
  begin();
  tamper = renice;
  MUST(sched_getaffinity(0, sizeof first_set, &first_set));
  for (size_t i = 0; i < COUNT(threads); i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, run, &threads[i].tid);
    MUST(WITHIN(5000, *(volatile pid_t *)&threads[i].tid != 0) ? 0 : -1);
    pid_t tid = threads[i].tid;
    struct sched_param parameter = {threads[i].priority};
    MUST(setpriority(PRIO_PROCESS, tid, threads[i].nice));
    threads[i].permitted = sched_setscheduler(tid, threads[i].policy, &parameter) == 0;
    if (threads[i].processor >= 0) {
      // The first processor that we may use, whatever its number.
      while (!CPU_ISSET(threads[i].processor, &first_set)) threads[i].processor++;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(threads[i].processor, &one);
      MUST(sched_setaffinity(tid, sizeof one, &one));
    }
    if (threads[i].io_class != IOPRIO_CLASS_NONE) MUST(syscall(SYS_ioprio_set, 1, tid, io_priority(i)));
  }
  struct attributes wanted = {.size = sizeof wanted, .nice = threads[0].nice, .runtime = 7000000};
  syscall(SYS_sched_setattr, threads[0].tid, &wanted, 0);
  slice = slice_of(threads[0].tid);
  pthread_t thread;
  pthread_create(&thread, NULL, run, &deadline_tid);
  MUST(WITHIN(5000, *(volatile pid_t *)&deadline_tid != 0) ? 0 : -1);
  set_deadline();
  serve(check);
}
