// Alternate signal stacks: of the main thread, of a thread with SS_AUTODISARM, and of a thread that is
// inside a handler on its alternate stack while it is checkpointed.
#include "test.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static struct {
  char stack[64 * 1024];
  pthread_t thread;
  atomic_int asked, answered;
} main_thread, disarming, inside;
static volatile sig_atomic_t handled_on;  // 1: on the stack that was wanted

static void *stack_now(int *flags) {
  stack_t now;
  sigaltstack(NULL, &now);
  *flags = now.ss_flags;
  return now.ss_sp;
}

static bool within(const char *stack, const void *address) {
  return (const char *)address >= stack && (const char *)address < stack + sizeof inside.stack;
}

static void on_plain(int signal) {
  (void)signal;
  int flags;
  stack_now(&flags);
  handled_on = within(main_thread.stack, &flags) && flags == SS_ONSTACK;
}

static void on_disarming(int signal) {
  (void)signal;
  int flags;
  stack_now(&flags);
  handled_on = within(disarming.stack, &flags) && flags == SS_DISABLE;
}

// Stays on the alternate stack for good, and answers from there.
static void on_inside(int signal) {
  (void)signal;
  volatile uint64_t words[512];
  for (size_t i = 0; i < COUNT(words); i++) words[i] = pattern_word(9, i);
  for (;; sleep_ms(1)) {
    int flags;
    EXPECT(stack_now(&flags) == inside.stack, "the alternate stack in use changed");
    EXPECT_EQ(flags, SS_ONSTACK);
    EXPECT(within(inside.stack, &flags), "the handler is on another stack");
    for (size_t i = 0; i < COUNT(words); i++)
      EXPECT(words[i] == pattern_word(9, i), "the handler's frame changed");
    inside.answered = inside.asked;
  }
}

static void *run_disarming(void *unused) {
  int flags;
  stack_t stack = {.ss_sp = disarming.stack, .ss_size = sizeof disarming.stack,
                   .ss_flags = (int)SS_AUTODISARM};
  EXPECT(sigaltstack(&stack, NULL) == 0, "sigaltstack: %m");
  for (;; sleep_ms(1)) {
    if (disarming.answered == disarming.asked) continue;
    EXPECT(stack_now(&flags) == disarming.stack, "the disarming stack changed");
    EXPECT_EQ((unsigned)flags, SS_AUTODISARM);
    handled_on = 0;
    raise(SIGURG);
    EXPECT(handled_on, "SIGURG was not handled on the disarming stack");
    disarming.answered = disarming.asked;
  }
  return unused;
}

static void *run_inside(void *unused) {
  stack_t stack = {.ss_sp = inside.stack, .ss_size = sizeof inside.stack};
  EXPECT(sigaltstack(&stack, NULL) == 0, "sigaltstack: %m");
  raise(SIGIO);
  return unused;
}

static void check(void) {
  int flags;
  EXPECT(stack_now(&flags) == main_thread.stack, "the main thread's stack changed");
  EXPECT_EQ(flags, 0);
  handled_on = 0;
  raise(SIGHUP);
  EXPECT(handled_on, "SIGHUP was not handled on the main thread's stack");
  disarming.asked++;
  inside.asked++;
  EXPECT(WITHIN(5000, disarming.answered == disarming.asked), "the disarming thread is silent");
  EXPECT(WITHIN(5000, inside.answered == inside.asked), "the thread in its handler is silent");
}

static void disable(void) { sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL); }

int main(void) {
  begin();
  tamper = disable;
  stack_t stack = {.ss_sp = main_thread.stack, .ss_size = sizeof main_thread.stack};
  MUST(sigaltstack(&stack, NULL));
  sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_plain, .sa_flags = SA_ONSTACK}, NULL);
  sigaction(SIGURG, &(struct sigaction){.sa_handler = on_disarming, .sa_flags = SA_ONSTACK}, NULL);
  sigaction(SIGIO, &(struct sigaction){.sa_handler = on_inside, .sa_flags = SA_ONSTACK}, NULL);
  pthread_create(&disarming.thread, NULL, run_disarming, NULL);
  pthread_create(&inside.thread, NULL, run_inside, NULL);
  disarming.asked++;
  inside.asked++;
  MUST(WITHIN(5000, inside.answered && disarming.answered) ? 0 : -1);
  serve(check);
}
