// Signal dispositions: handlers with each flag and with masks, SIG_IGN, SIG_DFL, real-time signals,
// the restorer that libc passes; compared as the kernel keeps them, and then used.
#include "test.h"

// What rt_sigaction(2) takes on x86-64.
struct kernel_action {
  void *handler;
  unsigned long flags;
  void *restorer;
  uint64_t mask;
};

static struct kernel_action wanted[65];
static char stack[64 * 1024];
static volatile sig_atomic_t seen, on_alternate_stack, nested, value;
static uint64_t mask_inside;

static void look(int signal) {
  char here;
  sigset_t mask;
  seen = signal;
  on_alternate_stack = &here >= stack && &here < stack + sizeof stack;
  sigprocmask(SIG_SETMASK, NULL, &mask);
  memcpy(&mask_inside, &mask, sizeof mask_inside);
}

static void plain(int signal) { look(signal); }

static void with_info(int signal, siginfo_t *info, void *context) {
  (void)context;
  look(signal);
  value = info->si_value.sival_int;
}

static void again(int signal) { // SA_NODEFER: it may interrupt itself
  if (++nested < 3) raise(signal);
}

static void get(int signal, struct kernel_action *action) {
  EXPECT(syscall(SYS_rt_sigaction, signal, NULL, action, 8) == 0, "rt_sigaction: %m");
}

static void set(int signal, void *handler, int flags, int blocked) {
  struct sigaction action = {.sa_flags = flags};
  action.sa_sigaction = (void (*)(int, siginfo_t *, void *))handler;
  sigemptyset(&action.sa_mask);
  if (blocked != 0) sigaddset(&action.sa_mask, blocked);
  MUST(sigaction(signal, &action, NULL));
}

static void arm_once(void) { set(SIGWINCH, plain, SA_RESETHAND, 0); }

static void check(void) {
  for (int i = 1; i < 65; i++) {
    struct kernel_action now = {0};
    get(i, &now);
    EXPECT(now.handler == wanted[i].handler, "handler of %d is %p", i, now.handler);
    EXPECT(now.flags == wanted[i].flags, "flags of %d are %lx", i, now.flags);
    EXPECT(now.restorer == wanted[i].restorer, "restorer of %d is %p", i, now.restorer);
    EXPECT(now.mask == wanted[i].mask, "mask of %d is %lx", i, now.mask);
  }
  raise(SIGHUP);
  EXPECT(seen == SIGHUP && !on_alternate_stack, "SIGHUP was not handled");
  EXPECT(mask_inside >> (SIGRTMIN + 7 - 1) & 1, "the mask of SIGHUP did not hold");
  sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 4711});
  EXPECT(seen == SIGRTMIN + 5 && value == 4711, "the value is %d", value);
  raise(SIGURG);
  EXPECT(seen == SIGURG && on_alternate_stack, "SIGURG did not run on the alternate stack");
  nested = 0;
  raise(SIGIO);
  EXPECT_EQ(nested, 3);
  raise(SIGQUIT); // ignored
  raise(SIGWINCH);
  struct kernel_action now = {0};
  get(SIGWINCH, &now);
  EXPECT(now.handler == NULL, "SA_RESETHAND did not put the default back");
  arm_once();
}

static void forget_mask(void) { set(SIGHUP, plain, 0, 0); }

int main(void) {
  begin();
  tamper = forget_mask;
  stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
  MUST(sigaltstack(&alternate, NULL));
  set(SIGHUP, plain, 0, SIGRTMIN + 7);
  set(SIGQUIT, SIG_IGN, SA_RESTART, 0);
  set(SIGCHLD, SIG_DFL, SA_NOCLDSTOP | SA_NOCLDWAIT, 0);
  set(SIGURG, plain, SA_ONSTACK, 0);
  set(SIGIO, again, SA_NODEFER, SIGUSR2);
  set(SIGRTMIN + 5, with_info, SA_SIGINFO | SA_RESTART, SIGRTMIN + 6);
  set(SIGRTMAX, SIG_IGN, 0, 0);
  arm_once();
  for (int i = 1; i < 65; i++) get(i, &wanted[i]);
  serve(check);
}
