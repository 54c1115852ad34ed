// Signals: include/uapi/asm-generic/signal.h, arch/x86/include/uapi/asm/signal.h, siginfo.h.

export const SIGNAMES = [
  "0",
  "SIGHUP",
  "SIGINT",
  "SIGQUIT",
  "SIGILL",
  "SIGTRAP",
  "SIGABRT",
  "SIGBUS",
  "SIGFPE",
  "SIGKILL",
  "SIGUSR1",
  "SIGSEGV",
  "SIGUSR2",
  "SIGPIPE",
  "SIGALRM",
  "SIGTERM",
  "SIGSTKFLT",
  "SIGCHLD",
  "SIGCONT",
  "SIGSTOP",
  "SIGTSTP",
  "SIGTTIN",
  "SIGTTOU",
  "SIGURG",
  "SIGXCPU",
  "SIGXFSZ",
  "SIGVTALRM",
  "SIGPROF",
  "SIGWINCH",
  "SIGIO",
  "SIGPWR",
  "SIGSYS",
] as const;

export const SIGTRAP = 5;
export const SIGKILL = 9;
export const SIGCHLD = 17;
export const SIGCONT = 18;
export const SIGSTOP = 19;
export const SIGTSTP = 20;
export const SIGTTIN = 21;
export const SIGTTOU = 22;
/** Highest signal number (_NSIG): signals are 1..64. */
/** The kernel's first real-time signal. */
export const SIGRTMIN = 32;
export const SIGMAX = 64;

export const SIG_SETMASK = 2;
/** Size in bytes of the kernel's sigset_t. */
export const SIGSET_SIZE = 8;
export const SIGSET_FULL = 0xffff_ffff_ffff_ffffn;

/** struct siginfo as the kernel copies it. */
export const SIGINFO_SIZE = 128;
export const SI_TIMER = -2;

export const SS_ONSTACK = 1;
export const SS_DISABLE = 2;
/** A number with its sign, as V8 has the bit. */
export const SS_AUTODISARM = 1 << 31;
/** stack_t: address, flags (padded), size. */
export const STACK_T_SIZE = 24;

/** Size of struct kernel_sigaction on x86-64: handler, flags, restorer, mask. */
export const KERNEL_SIGACTION_SIZE = 32;

/** A signal's name, e.g. "SIGTERM" or "SIGRTMIN+3" (kernel numbering: 32 is the first real-time signal). */
export function signalName(signal: number): string {
  return SIGNAMES[signal] ?? `SIGRTMIN+${signal - 32}`;
}
