// Queues of ten thousands of pending signals. The kernel shows a queue from outside only by counting from its beginning, once for each signal
// (kernel/ptrace.c, ptrace_peek_siginfo): 60,000 take 40 s. The task itself can take them, and queue them again, in the time of two
// system calls each. It does so in one program, which it runs to its end whatever becomes of the engine.
//
// Only real-time signals are taken, of which each number has its own order, and none that a timer sends: the timer would go on. What is
// queued again comes behind what was left, whose number of signals is small.

import { RepriseError } from "../../errors.ts";
import type { SignalQueueEntry } from "../../images/schema/messages.generated.ts";
import { readTimers } from "../../proc/timers.ts";
import type { BriefStatus } from "../../proc/status.ts";
import { SIGINFO_SIZE, SIGMAX, SIGSET_SIZE, SIGRTMIN } from "../../sys/abi/signal.ts";
import type { Program, Ref } from "../../tracee/program.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import type { Probe } from "../probe.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";

/** From here on a queue is long; and the most for which there is room in a program. */
const LONG = 4096;
const LONGEST = 400_000;
/** Signals that others of the same user may send meanwhile without reaching the limit. */
const RESERVE = 1024;

/** What was taken from a queue and put back, oldest first. */
export interface TakenSignals {
  readonly queue: "thread" | "process";
  readonly signals: readonly Buffer[];
  /** Bits of the signals that were taken. */
  readonly mask: bigint;
}

/** Whether a thread's queue, or its process's when it is the leader, is so long that it has to be taken. */
export function hasLongQueue({ pid }: Pick<FrozenTask, "pid">, thread: FrozenThread): boolean {
  return longQueue(thread, { isLeader: thread.tid === pid }) !== undefined;
}

/** Adds the calls that take long queues of a thread, and of its process when it is the leader. */
export function probeLongQueue(
  program: Program,
  { pid }: Pick<FrozenTask, "pid">,
  thread: FrozenThread,
): Probe<TakenSignals | undefined> {
  const { status } = thread;
  const queue = longQueue(thread, { isLeader: thread.tid === pid });
  if (queue === undefined) return () => undefined;
  const mask = realTimeSignals(pid);
  // A wait takes the thread's own first, and tells nobody whose they were.
  const other = queue === "thread" ? status.shdPnd : status.sigPnd;
  const count = countPending(thread.stopped.tracee, queue);
  if ((other & mask) !== 0n || count > LONGEST || !hasRoom(status)) return () => undefined;
  return take(program, { queue, mask, count, pid });
}

function longQueue(
  { stopped: { tracee }, status }: FrozenThread,
  { isLeader }: { readonly isLeader: boolean },
): "thread" | "process" | undefined {
  // Of all processes of the user, but that is known already.
  if (status.sigQueued < LONG) return undefined;
  if (status.sigPnd !== 0n && tracee.hasPending("thread", LONG)) return "thread";
  return isLeader && status.shdPnd !== 0n && tracee.hasPending("process", LONG)
    ? "process"
    : undefined;
}

/** What is taken has to be queued again, within the limit of the user. */
function hasRoom({ sigQueued, sigQueueLimit }: BriefStatus): boolean {
  return !(sigQueued + RESERVE > sigQueueLimit);
}

function realTimeSignals(pid: number): bigint {
  const timed = new Set(readTimers(pid).map(({ signo }) => signo));
  let mask = 0n;
  for (let signal = SIGRTMIN; signal <= SIGMAX; signal += 1)
    if (!timed.has(signal)) mask |= 1n << BigInt(signal - 1);
  return mask;
}

/** The length of a queue, found by halving: each look counts from its beginning, but there are few. */
function countPending(tracee: Tracee, queue: "thread" | "process"): number {
  let low = 0;
  let high = LONG;
  while (tracee.hasPending(queue, high)) {
    low = high;
    high *= 2;
  }
  while (low + 1 < high) {
    const middle = Math.floor((low + high) / 2);
    if (tracee.hasPending(queue, middle)) low = middle;
    else high = middle;
  }
  return tracee.hasPending(queue, low) ? low + 1 : low;
}

function take(
  program: Program,
  {
    queue,
    mask,
    count,
    pid,
  }: Pick<TakenSignals, "queue" | "mask"> & { readonly count: number; readonly pid: number },
): Probe<TakenSignals> {
  const set = Buffer.alloc(SIGSET_SIZE);
  set.writeBigUInt64LE(mask);
  const wanted = program.data(set);
  const atOnce = program.data(Buffer.alloc(16));
  const infos = program.output(count * SIGINFO_SIZE);
  const place = (index: number): typeof infos => ({
    ...infos,
    offset: infos.offset + index * SIGINFO_SIZE,
  });
  const process = program.call("getpid", []);
  const thread = program.call("gettid", []);
  const taken: Ref[] = [];
  for (let index = 0; index < count; index += 1)
    taken.push(
      program.call("rt_sigtimedwait", [wanted, place(index), atOnce, SIGSET_SIZE], MAY_FAIL),
    );
  // Where none was taken, the number is an error, and the call says EINVAL.
  const queued = taken.map((signal, index) =>
    queue === "process"
      ? program.call("rt_sigqueueinfo", [process, signal, place(index)], MAY_FAIL)
      : program.call("rt_tgsigqueueinfo", [process, thread, signal, place(index)], MAY_FAIL),
  );
  return (result) => {
    const signals: Buffer[] = [];
    let lost = 0;
    taken.forEach((call, index) => {
      if (result.value(call) < 0) return;
      signals.push(Buffer.from(result.bytes(place(index), SIGINFO_SIZE)));
      if (result.value(queued[index] as Ref) < 0) lost += 1;
    });
    if (lost > 0) throw notQueued(pid, lost);
    return { queue, signals, mask };
  };
}

const MAY_FAIL = { mayFail: true };

function notQueued(pid: number, count: number): RepriseError {
  return new RepriseError(
    "REMOTE_CALL",
    `cannot queue ${count} signals of pid ${pid} again that were looked at`,
    {
      pid,
      syscall: "rt_sigqueueinfo",
      hint: "Its limit of pending signals was used up by others meanwhile (RLIMIT_SIGPENDING, ulimit -i): they are lost.",
    },
  );
}

/** The whole queue, from what was taken and a look at the rest; undefined when more signals have come meanwhile. */
export function withTaken(
  tracee: Tracee,
  { queue, signals, mask }: TakenSignals,
): SignalQueueEntry | undefined {
  const before = tracee.pendingSignals(queue, {
    until: (siginfo) => (mask & (1n << BigInt(siginfo.readInt32LE(0) - 1))) !== 0n,
  });
  const count = countPending(tracee, queue);
  if (before.length + signals.length !== count) return undefined;
  return { signals: [...before, ...signals].map((siginfo) => ({ siginfo })) };
}
