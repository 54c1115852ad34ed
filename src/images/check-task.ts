// Checks of what core images say of tasks and threads.
import { badSet } from "./bad-set.ts";
import type { LoadedSet } from "./check-set.ts";
import type {
  CoreEntry,
  SeccompFilter,
  SignalQueueEntry,
  TaskCoreEntry,
  ThreadCoreEntry,
  ThreadInfoX86,
} from "./schema/messages.generated.ts";
import { textToBytes } from "./text.ts";

/** `task_state` of core images. */
export const TASK_ALIVE = 1;
export const TASK_DEAD = 2;
export const TASK_STOPPED = 3;
/** Ours: alive (or stopped, with a stop_signo), but for its first thread, which has ended. No other engine takes it for alive. */
export const TASK_LEADERLESS = 30_000;

/** Signals 1 to 64 without SIGKILL and SIGSTOP. */
const SIGACTION_COUNT = 62;
const RLIMIT_COUNT = 16;
/** The kernel's siginfo_t. */
const SIGINFO_BYTES = 128;
/** TASK_COMM_LEN without the zero byte. */
const MAX_COMM_BYTES = 15;
/** NGROUPS_MAX. */
const MAX_GROUPS = 65_536;
/** Capability sets are one or two words. */
const MAX_CAP_WORDS = 2;
const MAX_TLS_ENTRIES = 3;
/** BPF_MAXINSNS, and the bytes of one instruction. */
const MAX_FILTER_INSTRUCTIONS = 4096;
const FILTER_INSTRUCTION_BYTES = 8;
const SECCOMP_MODE_FILTER = 2;

/** The control and status words of the x87. */
const LARGEST_U16 = 0xffff;

export type CoreRole = "leader" | "thread" | "zombie";

/** Lengths of the register arrays of an x86-64 extended state; those of the extensions may be absent. */
const ST_WORDS = 32;
const XMM_WORDS = 64;
const XSAVE_LENGTHS = {
  ymmh_space: 64,
  bndreg_state: 8,
  bndcsr_state: 8,
  opmask_reg: 8,
  zmm_upper: 64,
  hi16_zmm: 128,
  pkru: 2,
} as const;

/** @throws RepriseError BAD_IMAGE naming the core image and what is wrong. */
export function checkCore(core: CoreEntry, { pid, role }: { pid: number; role: CoreRole }): void {
  const name = `core-${pid}.img`;
  if (role === "thread") {
    if (core.tc !== undefined || core.ids !== undefined) {
      throw badSet(`${name} is of a thread, but has the state of a process`);
    }
  } else {
    if (core.tc === undefined) throw badSet(`${name} has no state of the process (tc)`);
    checkProcess(core.tc, { name, role });
  }
  if (role === "zombie") return;
  if (core.thread_info === undefined) throw badSet(`${name} has no registers`);
  if (core.thread_core === undefined) throw badSet(`${name} has no state of the thread`);
  checkRegisters(core.thread_info, name);
  checkThread(core.thread_core, name);
}

function checkProcess(tc: TaskCoreEntry, { name, role }: { name: string; role: CoreRole }): void {
  if (![TASK_ALIVE, TASK_DEAD, TASK_STOPPED, TASK_LEADERLESS].includes(tc.task_state)) {
    throw badSet(`${name} has the unknown task state ${tc.task_state}`);
  }
  checkComm(tc.comm, name);
  if (role === "zombie") return;
  const { rlimits } = tc.rlimits ?? { rlimits: [] };
  if (rlimits.length !== RLIMIT_COUNT) {
    throw badSet(`${name} has ${rlimits.length} resource limits, not ${RLIMIT_COUNT}`);
  }
  if (tc.sigactions.length !== SIGACTION_COUNT) {
    throw badSet(`${name} has ${tc.sigactions.length} signal actions, not ${SIGACTION_COUNT}`);
  }
  if (tc.timers === undefined) throw badSet(`${name} has no timers`);
  checkSignals(tc.signals_s, name);
}

function checkComm(comm: string | undefined, name: string): void {
  if (comm === undefined) return;
  if (textToBytes(comm).length > MAX_COMM_BYTES || comm.includes("\0")) {
    throw badSet(`${name} has an impossible command name`);
  }
}

function checkSignals(queue: SignalQueueEntry | undefined, name: string): void {
  for (const { siginfo } of queue?.signals ?? []) {
    if (siginfo.length !== SIGINFO_BYTES) {
      throw badSet(`${name} has a pending signal of ${siginfo.length} bytes, not ${SIGINFO_BYTES}`);
    }
  }
}

function checkThread(thread: ThreadCoreEntry, name: string): void {
  const { creds } = thread;
  if (creds === undefined) throw badSet(`${name} has no credentials`);
  const sets = [creds.cap_inh, creds.cap_prm, creds.cap_eff, creds.cap_bnd, creds.cap_amb];
  if (sets.some((words) => words.length > MAX_CAP_WORDS)) {
    throw badSet(`${name} has more than ${MAX_CAP_WORDS * 32} capabilities`);
  }
  if (creds.groups.length > MAX_GROUPS) throw badSet(`${name} has more than ${MAX_GROUPS} groups`);
  checkComm(thread.comm, name);
  checkSignals(thread.signals_p, name);
}

function checkRegisters({ fpregs, tls }: ThreadInfoX86, name: string): void {
  if (tls.length > MAX_TLS_ENTRIES)
    throw badSet(`${name} has more than ${MAX_TLS_ENTRIES} TLS entries`);
  if (fpregs === undefined) return;
  // One too many would be the next register's, or stand in the header of the extended state.
  if (fpregs.st_space.length !== ST_WORDS || fpregs.xmm_space.length !== XMM_WORDS) {
    throw badSet(`${name} has too few or too many floating point registers`);
  }
  for (const field of ["cwd", "swd", "twd", "fop"] as const)
    if (fpregs[field] > LARGEST_U16) throw badSet(`${name} has ${fpregs[field]} in ${field}`);
  for (const [field, length] of Object.entries(XSAVE_LENGTHS)) {
    const words = fpregs.xsave?.[field as keyof typeof XSAVE_LENGTHS] ?? [];
    if (words.length > 0 && words.length !== length) {
      throw badSet(`${name} has ${words.length} words of ${field}, not ${length}`);
    }
  }
}

/** Filters that can be installed, and threads that name one of them. */
export function checkSeccomp({ seccomp, tasks }: LoadedSet): void {
  const filters = seccomp?.seccomp_filters ?? [];
  const ending = new Set<number>();
  for (const [index, { filter, prev }] of filters.entries()) {
    const count = filter.length / FILTER_INSTRUCTION_BYTES;
    if (!Number.isInteger(count) || count === 0 || count > MAX_FILTER_INSTRUCTIONS) {
      throw badSet(`seccomp.img: filter ${index} has ${filter.length} bytes`);
    }
    if (prev !== undefined && prev >= filters.length) {
      throw badSet(`seccomp.img: filter ${index} is followed by ${prev}, which is not there`);
    }
    checkChain(filters, { start: index, ending });
  }
  for (const { threads } of tasks.values()) {
    for (const [tid, { thread_core: thread }] of threads) {
      if (thread?.seccomp_mode !== SECCOMP_MODE_FILTER) continue;
      if (thread.seccomp_filter === undefined || thread.seccomp_filter >= filters.length) {
        throw badSet(`core-${tid}.img: its seccomp filter is not in seccomp.img`);
      }
    }
  }
}

/** Despite its name `prev` leads to the next newer filter; following it must end. */
function checkChain(
  filters: readonly SeccompFilter[],
  { start, ending }: { start: number; ending: Set<number> },
): void {
  const chain = new Set<number>();
  let index: number | undefined = start;
  while (index !== undefined && !ending.has(index)) {
    if (chain.has(index)) throw badSet(`seccomp.img: the chain of filter ${start} has no end`);
    chain.add(index);
    index = filters[index]?.prev;
  }
  for (const member of chain) ending.add(member);
}
