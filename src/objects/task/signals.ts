// Signals: actions (one table a process), the alternate stack (one a thread), and the queues of pending signals, one of
// the process and one a thread; see signal(7), sigaltstack(2), rt_sigqueueinfo(2). Only the process itself can ask for
// its actions and stacks; pending signals are peeked from outside and stay queued.
//
// Order at restore: SIGCHLDs of the rebuilding are drained, then actions (setting one to "ignore" drops what is pending),
// then the queues, with every signal blocked. RLIMIT_SIGPENDING holds for root too, so limits come after the queues.

import { RepriseError } from "../../errors.ts";
import { constantMessage } from "../../images/codec.ts";
import type {
  SaEntry,
  SignalQueueEntry,
  ThreadSasEntry,
} from "../../images/schema/messages.generated.ts";
import { PTRACE_PEEKSIGINFO } from "../../sys/abi/ptrace.ts";
import {
  KERNEL_SIGACTION_SIZE,
  SIGCHLD,
  SIGINFO_SIZE,
  SIGKILL,
  SIGMAX,
  SIGSET_SIZE,
  SIGSTOP,
  STACK_T_SIZE,
  signalName,
} from "../../sys/abi/signal.ts";
import type { Answers, Argument, Pointer, Program } from "../../tracee/program.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import type { Probe } from "../probe.ts";
import { withTaken, type TakenSignals } from "./long-queues.ts";
import { timerOf } from "./timers.ts";

/** The signals in the order of the image's list: all whose action can be set. */
const SIGNALS: readonly number[] = Array.from({ length: SIGMAX }, (_, index) => index + 1).filter(
  (signal) => signal !== SIGKILL && signal !== SIGSTOP,
);

/** Which queue pending signals are in: a thread's own, or the one that all threads of a process share. */
export type PendingQueue = "thread" | "process";

/** Asks for all signal actions: 62 entries, signals 1 to 64 without SIGKILL and SIGSTOP. */
export function probeSignalActions(program: Program): Probe<SaEntry[]> {
  const places = SIGNALS.map((signal) => {
    const place = program.output(KERNEL_SIGACTION_SIZE);
    program.call("rt_sigaction", [signal, 0, place, SIGSET_SIZE], {
      label: `read the action of ${signalName(signal)}`,
    });
    return place;
  });
  return (result) => places.map((place) => parseAction(result.bytes(place, KERNEL_SIGACTION_SIZE)));
}

/**
 * Sets all signal actions, also the default ones: a new process inherits those of the seed.
 *
 * @throws RepriseError BAD_IMAGE unless there are 62 entries.
 */
export function restoreSignalActions(program: Program, entries: readonly SaEntry[]): void {
  if (entries.length !== SIGNALS.length) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore the signal actions: the image has ${entries.length}, not ${SIGNALS.length}`,
      { hint: "The core image is damaged, or was written by an unknown version." },
    );
  }
  entries.forEach((entry, index) => {
    const signal = SIGNALS[index] ?? 0;
    program.call("rt_sigaction", [signal, program.data(encodeAction(entry)), 0, SIGSET_SIZE], {
      label: `set the action of ${signalName(signal)}`,
    });
  });
}

/** Asks for the alternate signal stack of the thread that runs the program. */
export function probeAlternateStack(program: Program): Probe<ThreadSasEntry> {
  const place = program.output(STACK_T_SIZE);
  program.call("sigaltstack", [0, place], { label: "read the alternate signal stack" });
  return (result) => {
    const bytes = result.bytes(place, STACK_T_SIZE);
    return {
      ss_sp: bytes.readBigUInt64LE(0),
      ss_size: bytes.readBigUInt64LE(16),
      ss_flags: bytes.readUInt32LE(8),
    };
  };
}

/**
 * Sets the alternate stack, also a disabled one: a forked process inherits its parent's. SS_ONSTACK, which the kernel
 * reports for a thread in a handler, is taken as an enabled stack: where the stack pointer is decides.
 */
export function restoreAlternateStack(program: Program, stack: ThreadSasEntry): void {
  const bytes = Buffer.alloc(STACK_T_SIZE);
  bytes.writeBigUInt64LE(stack.ss_sp, 0);
  bytes.writeUInt32LE(stack.ss_flags, 8);
  bytes.writeBigUInt64LE(stack.ss_size, 16);
  program.call("sigaltstack", [program.data(bytes), 0], {
    label: "set the alternate signal stack",
    hint: "ENOMEM: this CPU has more registers to save than the stack of the process has room for.",
  });
}

/** The pending signals of a stopped thread or of its process, in queue order; an empty list when there are none. */
export function collectPending(
  tracee: Tracee,
  queue: PendingQueue,
  taken?: TakenSignals,
): SignalQueueEntry {
  const whole = taken?.queue === queue ? withTaken(tracee, taken) : undefined;
  if (whole !== undefined) return whole;
  return { signals: tracee.pendingSignals(queue).map((siginfo) => ({ siginfo })) };
}

/** Adds the call of the engine that looks whether signals are pending for a stopped thread alone. */
export function lookForPending(program: Program, tid: Argument): (answers: Answers) => boolean {
  const which = Buffer.alloc(PEEK_ARGUMENTS_SIZE);
  which.writeUInt32LE(1, PEEK_COUNT_AT);
  const into = program.output(SIGINFO_SIZE);
  const args = [PTRACE_PEEKSIGINFO, tid, program.data(which), into];
  const found = program.call("ptrace", args, { mayFail: true });
  // An error comes again when the queue is read.
  return (answers) => answers.value(found) !== 0;
}

/** struct ptrace_peeksiginfo_args: from where, flags, how many. */
const PEEK_ARGUMENTS_SIZE = 16;
const PEEK_COUNT_AT = 12;

/** An empty queue. */
export const NO_SIGNALS: SignalQueueEntry = constantMessage({ signals: [] });

export interface PendingTarget {
  readonly queue: PendingQueue;
  /** Ids as the thread that runs the program sees them. */
  readonly pid: number;
  readonly tid: number;
  /** POSIX timers that queue their signal themselves when they are armed: see timers.ts. */
  readonly fired?: ReadonlySet<number>;
}

/**
 * Queues pending signals again. The kernel takes foreign senders and codes only from the receiver itself, so a thread's
 * queue is filled by that thread, and the process's by the leader.
 *
 * @throws RepriseError BAD_IMAGE when a siginfo is not 128 bytes of a known signal.
 */
export function restorePending(
  program: Program,
  pending: SignalQueueEntry,
  target: PendingTarget,
): void {
  for (const { siginfo } of pending.signals) {
    const signal = signalOf(siginfo);
    const timer = timerOf(siginfo);
    if (timer !== undefined && target.fired?.has(timer) === true) continue;
    const info = program.data(siginfo);
    const label = `queue ${signalName(signal)} again`;
    const hint =
      "EAGAIN: root's limit of pending signals is used up (RLIMIT_SIGPENDING, ulimit -i).";
    if (target.queue === "process") {
      program.call("rt_sigqueueinfo", [target.pid, signal, info], { label, hint });
    } else {
      program.call("rt_tgsigqueueinfo", [target.pid, target.tid, signal, info], { label, hint });
    }
  }
}

/**
 * Drops the SIGCHLDs that came from our own rebuilding (helpers and zombies that ended). At most one is queued at a
 * time, so one call does unless a child ends in between: `count` is how many are dropped at most.
 */
export function drainChildSignals(program: Program, count: number = 1): void {
  const set = Buffer.alloc(SIGSET_SIZE);
  set.writeBigUInt64LE(1n << BigInt(SIGCHLD - 1));
  const mask = program.data(set);
  const atOnce: Pointer = program.data(Buffer.alloc(16));
  for (let drained = 0; drained < count; drained += 1) {
    program.call("rt_sigtimedwait", [mask, 0, atOnce, SIGSET_SIZE], {
      label: "drop SIGCHLD",
      mayFail: true,
    });
  }
}

/** Most actions are this one: it is one object, so that it is encoded once. */
const DEFAULT_ACTION: SaEntry = Object.freeze({
  sigaction: 0n,
  flags: 0n,
  restorer: 0n,
  mask: 0n,
  compat_sigaction: false,
});
const DEFAULT_BYTES = Buffer.alloc(KERNEL_SIGACTION_SIZE);

function parseAction(bytes: Buffer): SaEntry {
  if (bytes.equals(DEFAULT_BYTES)) return DEFAULT_ACTION;
  return {
    sigaction: bytes.readBigUInt64LE(0),
    flags: bytes.readBigUInt64LE(8),
    restorer: bytes.readBigUInt64LE(16),
    mask: bytes.readBigUInt64LE(24),
    compat_sigaction: false,
  };
}

function encodeAction(entry: SaEntry): Buffer {
  const bytes = Buffer.alloc(KERNEL_SIGACTION_SIZE);
  bytes.writeBigUInt64LE(entry.sigaction, 0);
  bytes.writeBigUInt64LE(entry.flags, 8);
  bytes.writeBigUInt64LE(entry.restorer, 16);
  bytes.writeBigUInt64LE(entry.mask, 24);
  return bytes;
}

function signalOf(siginfo: Uint8Array): number {
  const signal =
    siginfo.length === SIGINFO_SIZE
      ? new DataView(siginfo.buffer, siginfo.byteOffset).getInt32(0, true)
      : 0;
  if (signal >= 1 && signal <= SIGMAX) return signal;
  throw new RepriseError(
    "BAD_IMAGE",
    `cannot restore a pending signal: the image has ${siginfo.length} bytes for signal ${signal}`,
    { hint: "The core image is damaged." },
  );
}
