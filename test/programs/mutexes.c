// Mutexes that a thread holds while others wait for them: with priority inheritance (the kernel knows the owner), robust (the
// kernel tells that the owner has died), and both. At the end the owner lets one go and ends with the others.
#include "test.h"

enum { INHERITING, ROBUST, BOTH, KINDS };
static pthread_mutex_t mutexes[KINDS];
static atomic_int held, let_go, waiting, result[KINDS];

static void *hold(void *unused) {
  for (int i = 0; i < KINDS; i++) pthread_mutex_lock(&mutexes[i]);
  held = 1;
  while (!let_go) sleep_ms(1);
  pthread_mutex_unlock(&mutexes[INHERITING]);
  return unused;
}

static void *wait_for(void *argument) {
  intptr_t index = (intptr_t)argument;
  waiting++;
  result[index] = pthread_mutex_lock(&mutexes[index]);
  return NULL;
}

static void check(void) {
  for (int i = 0; i < KINDS; i++) EXPECT(result[i] == -1, "waiter %d came back with %d", i, result[i]);
  if (!final_round) return;
  let_go = 1;
  EXPECT(WITHIN(5000, result[INHERITING] == 0), "the waiter has %d", result[INHERITING]);
  for (int i = ROBUST; i < KINDS; i++)
    EXPECT(WITHIN(5000, result[i] == EOWNERDEAD), "waiter %d has %d", i, result[i]);
}

static void spoil(void) { result[ROBUST] = 0; }

static void make(int index, int protocol, int robust) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, protocol);
  pthread_mutexattr_setrobust(&attributes, robust);
  pthread_mutex_init(&mutexes[index], &attributes);
}

int main(void) {
  begin();
  tamper = spoil;
  make(INHERITING, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED);
  make(ROBUST, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST);
  make(BOTH, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_ROBUST);
  pthread_t thread;
  pthread_create(&thread, NULL, hold, NULL);
  MUST(WITHIN(5000, held) ? 0 : -1);
  for (intptr_t i = 0; i < KINDS; i++) {
    result[i] = -1;
    pthread_create(&thread, NULL, wait_for, (void *)i);
  }
  MUST(WITHIN(5000, waiting == KINDS) ? 0 : -1);
  sleep_ms(50);
  serve(check);
}
