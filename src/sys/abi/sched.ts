// Processes and threads: include/uapi/linux/{sched,prctl,wait,capability,resource,rseq,kcmp,ioprio}.h.

export const CLONE_VM = 0x100;
export const CLONE_FS = 0x200;
export const CLONE_FILES = 0x400;
export const CLONE_SIGHAND = 0x800;
export const CLONE_PTRACE = 0x2000;
export const CLONE_VFORK = 0x4000;
export const CLONE_PARENT = 0x8000;
export const CLONE_THREAD = 0x10000;
export const CLONE_NEWNS = 0x20000;
export const CLONE_SYSVSEM = 0x40000;
/** In clone3 and unshare only: clone has a signal number in these bits. */
export const CLONE_NEWTIME = 0x80;
export const CLONE_NEWCGROUP = 0x02000000;
export const CLONE_NEWUTS = 0x04000000;
export const CLONE_NEWIPC = 0x08000000;
export const CLONE_NEWUSER = 0x10000000;
export const CLONE_NEWPID = 0x20000000;
export const CLONE_NEWNET = 0x40000000;
export const CLONE_INTO_CGROUP = 0x200000000;
/** struct clone_args up to and including cgroup (CLONE_ARGS_SIZE_VER2, Linux 5.7). */
export const CLONE_ARGS_SIZE = 88;

export const WNOHANG = 1;
export const WUNTRACED = 2;
export const WEXITED = 4;
export const WNOWAIT = 0x0100_0000;
/** Modes of Syscall User Dispatch (prctl(2)), and what its selector may hold. */
export const PR_SYS_DISPATCH_EXCLUSIVE_ON = 1;
export const PR_SYS_DISPATCH_INCLUSIVE_ON = 2;
export const SYSCALL_DISPATCH_FILTER_ALLOW = 0;
export const SYSCALL_DISPATCH_FILTER_BLOCK = 1;
export const WALL = 0x40000000;
export const P_PID = 1;

export const SCHED_OTHER = 0;
export const SCHED_FIFO = 1;
export const SCHED_RR = 2;
export const SCHED_BATCH = 3;
export const SCHED_IDLE = 5;
export const SCHED_DEADLINE = 6;
export const SCHED_RESET_ON_FORK = 0x40000000;
/** struct sched_attr (SCHED_ATTR_SIZE_VER0): size, policy, flags, nice, priority, and three times. */
export const SCHED_ATTR_SIZE = 48;
/** SCHED_ATTR_SIZE_VER1: with the utilization clamps behind. */
export const SCHED_ATTR_WITH_CLAMPS = 56;
export const PR_SCHED_CORE = 62;
export const PR_SCHED_CORE_GET = 0;
export const SCHED_FLAG_RESET_ON_FORK = 1;
export const PRIO_PROCESS = 0;

export const PR_SET_PDEATHSIG = 1;
export const PR_GET_PDEATHSIG = 2;
export const PR_GET_DUMPABLE = 3;
export const PR_SET_DUMPABLE = 4;
export const PR_GET_KEEPCAPS = 7;
export const PR_SET_KEEPCAPS = 8;
export const PR_SET_NAME = 15;
export const PR_SET_SECCOMP = 22;
export const PR_CAPBSET_DROP = 24;
export const PR_GET_SECUREBITS = 27;
export const PR_SET_SECUREBITS = 28;
export const PR_GET_TSC = 25;
export const PR_SET_TSC = 26;
export const PR_TSC_SIGSEGV = 2;
export const PR_MCE_KILL = 33;
export const PR_MCE_KILL_GET = 34;
export const PR_MCE_KILL_SET = 1;
export const PR_MCE_KILL_DEFAULT = 2;
export const PR_GET_SPECULATION_CTRL = 52;
export const PR_SET_SPECULATION_CTRL = 53;
/** PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH. */
export const PR_SPECULATIONS: readonly number[] = [0, 1, 2];
export const PR_SPEC_PRCTL = 1;
export const PR_SET_IO_FLUSHER = 57;
export const PR_GET_IO_FLUSHER = 58;
export const PR_SET_MEMORY_MERGE = 67;
export const PR_GET_MEMORY_MERGE = 68;
export const PR_GET_TIMERSLACK = 30;
export const PR_SET_TIMERSLACK = 29;
export const PR_SET_MM = 35;
export const PR_SET_MM_MAP = 14;
export const PR_SET_CHILD_SUBREAPER = 36;
export const PR_GET_CHILD_SUBREAPER = 37;
export const PR_SET_NO_NEW_PRIVS = 38;
export const PR_GET_TID_ADDRESS = 40;
export const PR_SET_THP_DISABLE = 41;
export const PR_GET_THP_DISABLE = 42;
export const PR_THP_DISABLE_EXCEPT_ADVISED = 2;
export const PR_CAP_AMBIENT = 47;
export const PR_CAP_AMBIENT_RAISE = 2;
export const PR_CAP_AMBIENT_CLEAR_ALL = 4;
export const PR_SET_MDWE = 65;
export const PR_GET_MDWE = 66;
export const PR_TIMER_CREATE_RESTORE_IDS = 77;
export const PR_TIMER_CREATE_RESTORE_IDS_OFF = 0;
export const PR_TIMER_CREATE_RESTORE_IDS_ON = 1;
export const PR_TIMER_CREATE_RESTORE_IDS_GET = 2;
export const PR_SET_VMA = 0x53564d41;
export const PR_SET_VMA_ANON_NAME = 0;

/** Bits of the secure bits; each has a lock bit above it. See include/uapi/linux/securebits.h. */
export const SECBIT_NO_SETUID_FIXUP = 1 << 2;
export const SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6;

export const LINUX_CAPABILITY_VERSION_3 = 0x20080522;
export const CAP_SETGID = 6;
export const CAP_SETUID = 7;
export const CAP_SETPCAP = 8;
export const CAP_SYS_PTRACE = 19;
export const CAP_SYS_ADMIN = 21;
export const CAP_CHECKPOINT_RESTORE = 40;
export const CAP_LAST_CAP = 40;
export const CAP_NAMES: Readonly<Record<string, number>> = {
  SYS_PTRACE: 19,
  SYS_ADMIN: 21,
  SYS_RESOURCE: 24,
  CHECKPOINT_RESTORE: 40,
};

export const RLIMIT_NOFILE = 7;
export const RLIM_NLIMITS = 16;
/** Names of the limits, by number. */
export const RLIMIT_NAMES = [
  "RLIMIT_CPU",
  "RLIMIT_FSIZE",
  "RLIMIT_DATA",
  "RLIMIT_STACK",
  "RLIMIT_CORE",
  "RLIMIT_RSS",
  "RLIMIT_NPROC",
  "RLIMIT_NOFILE",
  "RLIMIT_MEMLOCK",
  "RLIMIT_AS",
  "RLIMIT_LOCKS",
  "RLIMIT_SIGPENDING",
  "RLIMIT_MSGQUEUE",
  "RLIMIT_NICE",
  "RLIMIT_RTPRIO",
  "RLIMIT_RTTIME",
] as const;
export const RLIM_INFINITY = 0xffff_ffff_ffff_ffffn;

export const RSEQ_FLAG_UNREGISTER = 1;
/** Where struct rseq has the address of the critical section; size and a flag of struct rseq_cs. */
export const RSEQ_CS_OFFSET = 8;
export const RSEQ_CS_SIZE = 32;
export const RSEQ_CS_FLAG_NO_RESTART_ON_SIGNAL = 2;

export const MEMBARRIER_CMD_GET_REGISTRATIONS = 1 << 9;

export const KCMP_FILE = 0;
export const KCMP_VM = 1;
export const KCMP_FILES = 2;
export const KCMP_FS = 3;
export const KCMP_SIGHAND = 4;
export const KCMP_SYSVSEM = 6;

export const IOPRIO_WHO_PROCESS = 1;
/** Where the class stands in an I/O priority; class 0 is "none set". */
export const IOPRIO_CLASS_SHIFT = 13;

export const ITIMER_REAL = 0;
export const ITIMER_VIRTUAL = 1;
export const ITIMER_PROF = 2;

export const SIGEV_SIGNAL = 0;
export const SIGEV_NONE = 1;
export const SIGEV_THREAD = 2;
export const SIGEV_THREAD_ID = 4;
export const SIGEVENT_SIZE = 64;
/** struct itimerval and struct itimerspec: interval, then what is left. */
export const ITIMERVAL_SIZE = 32;
/** How the kernel shows CLOCK_THREAD_CPUTIME_ID of the creating thread (include/linux/posix-timers_types.h). */
export const THREAD_CPUTIME_CLOCK = -2;

export const ARCH_MAP_VDSO_64 = 0x2003;
export const ARCH_CET_DISABLE = 0x5002;

/** PF_ flag of /proc/PID/stat: task is a kernel thread. */
/** Of a task's flags in /proc/PID/stat: it is ending. */
export const PF_EXITING = 0x4;
/** A thread that the kernel has made for the process's io_uring. */
export const PF_IO_WORKER = 0x10;
export const PF_KTHREAD = 0x00200000;

/** futex(2): sleeps as long as a word has a value, at most for some time. */
export const FUTEX_WAIT = 0;
