// Syscall User Dispatch, as Wine uses it: calls from outside of the C library are sent to a handler, in this thread and in a second one
// with a selector of its own; in a third one the selector lets all of them through; a fourth one has it off; a fifth one has the calls of one function sent, where the
// kernel can do that. With "lone" there is but one.
#include "test.h"
#include <link.h>
#include <ucontext.h>
#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

enum { ALLOW, BLOCK };
// A call that is made nowhere else, what the handler answers, and what the kernel does.
enum { NUMBER = SYS_getpgid, ANSWER = 424242 };

struct side {
  volatile char selector;
  bool is_on;
  atomic_int asked, answered;
  long result;
};
enum { SIDES = 5, INCLUSIVE = 4 };
static struct side sides[SIDES] = {
    {.is_on = true, .selector = BLOCK}, {.is_on = true, .selector = BLOCK}, {.is_on = true}, {0}, {.is_on = true, .selector = BLOCK}};
static atomic_int caught;
static bool lone;

static __attribute__((noinline)) long own_call(void) {
  long result = NUMBER;
  __asm__ volatile("syscall" : "+a"(result) : "D"(0L) : "rcx", "r11", "memory");
  return result;
}

static void on_dispatch(int signal, siginfo_t *info, void *context) {
  (void)signal;
  if (info->si_syscall != NUMBER) _exit(99);
  atomic_fetch_add(&caught, 1);
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = ANSWER;
}

// The C library's code, whose calls are let through.
static uintptr_t library, library_size;

static int find_library(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size;
  (void)unused;
  if (strstr(info->dlpi_name, "libc.so") == NULL) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *part = &info->dlpi_phdr[i];
    if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
    library = info->dlpi_addr + part->p_vaddr;
    library_size = part->p_memsz;
  }
  return 1;
}

static void turn_on(struct side *side) {
  if (!side->is_on) return;
  if (side == &sides[INCLUSIVE]) {
    side->is_on = prctl(PR_SET_SYSCALL_USER_DISPATCH, 2, own_call, 64, &side->selector) == 0;
    return;
  }
  MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, library, library_size, &side->selector));
}

static void *side_of_thread(void *argument) {
  struct side *side = argument;
  turn_on(side);
  for (;;) {
    while (atomic_load(&side->asked) == atomic_load(&side->answered)) sleep_ms(1);
    side->result = own_call();
    atomic_fetch_add(&side->answered, 1);
  }
  return NULL;
}

static void expect_answer(struct side *side, int before) {
  bool is_caught = side->is_on && side->selector == BLOCK;
  long wanted = is_caught ? ANSWER : getpgrp();
  EXPECT(side->result == wanted, "side %d: the call gives %ld instead of %ld", (int)(side - sides), side->result, wanted);
  EXPECT_EQ(atomic_load(&caught) - before, is_caught ? 1 : 0);
}

static void check(void) {
  int before = atomic_load(&caught);
  EXPECT_EQ(sides[0].selector, BLOCK);
  sides[0].result = own_call();
  expect_answer(&sides[0], before);
  for (int i = 1; i < SIDES && !lone; i++) {
    before = atomic_load(&caught);
    atomic_fetch_add(&sides[i].asked, 1);
    EXPECT(WITHIN(5000, atomic_load(&sides[i].asked) == atomic_load(&sides[i].answered)), "side %d does not answer", i);
    expect_answer(&sides[i], before);
  }
  EXPECT_EQ(sides[1].selector, BLOCK);
  EXPECT_EQ(sides[2].selector, ALLOW);
}

static void spoil(void) { sides[0].is_on = false; }

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  lone = argc > 1 && strcmp(argv[1], "lone") == 0;
  dl_iterate_phdr(find_library, NULL);
  struct sigaction action = {.sa_sigaction = on_dispatch, .sa_flags = SA_SIGINFO};
  MUST(sigaction(SIGSYS, &action, NULL));
  for (int i = 1; i < SIDES && !lone; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, side_of_thread, &sides[i]);
  }
  turn_on(&sides[0]);
  serve(check);
}
