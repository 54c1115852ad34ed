// Scheduling of a thread: policy, priority and nice value, the processors that it may use, its I/O priority and timer slack;
// see sched(7), sched_setaffinity(2), ioprio_set(2). All but the first three are fields of ours in the image.
//
// The kernel does not say whether someone chose a thread's processors. A set that holds all that are online is taken for
// "none chosen" and not saved, so that a task that moves to a bigger machine may use it.

import { existsSync, readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type {
  RepriseThreadEntry,
  ThreadCoreEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import {
  IOPRIO_CLASS_SHIFT,
  IOPRIO_WHO_PROCESS,
  PR_SET_TIMERSLACK,
  PRIO_PROCESS,
  SCHED_ATTR_SIZE,
  SCHED_BATCH,
  SCHED_DEADLINE,
  SCHED_FIFO,
  SCHED_FLAG_RESET_ON_FORK,
  SCHED_IDLE,
  SCHED_OTHER,
  SCHED_RESET_ON_FORK,
  SCHED_RR,
} from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, syscallError } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Answers, type Argument, type Ref } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

/** Bytes for 8192 processors, the most that x86-64 kernels are built for. */
const CPU_SET_SIZE = 1024;
/** getpriority(2) itself returns 20 - nice, so that no value is negative. */
const NICE_BASE = 20;

/** What `thread_core` holds of the scheduling; `reprise` is to be merged with our other fields. */
export type Scheduling = Pick<ThreadCoreEntry, "sched_nice" | "sched_policy" | "sched_prio"> & {
  readonly reprise: Pick<
    RepriseThreadEntry,
    "cpu_affinity" | "ioprio" | "timerslack_ns" | "slice_ns" | "deadline"
  >;
};

/**
 * Reads the scheduling of a thread from outside, but its timer slack, which takes CAP_SYS_NICE or the thread itself.
 *
 * @throws RepriseError UNSUPPORTED for policies that we do not know; SYSCALL
 */
export function collectScheduling(tid: number, timerSlack: bigint): Scheduling {
  const program = new Program();
  const scheduling = lookAtScheduling(program, tid);
  return scheduling(runHere(program), { tid, timerSlack });
}

/**
 * Adds the calls of the engine that look at a thread's scheduling. Threads with the same answers get the same object.
 *
 * @returns what reads the answers, and throws as `collectScheduling` does
 */
export function lookAtScheduling(
  program: Program,
  thread: Argument,
): (answers: Answers, of: { readonly tid: number; readonly timerSlack: bigint }) => Scheduling {
  const attributes = program.output(SCHED_ATTR_SIZE, 8);
  // The kernel has sets of one size for all.
  const size = readAffinity(0).length;
  const affinity = program.output(size, 8);
  const calls = {
    sched_getattr: program.call("sched_getattr", [thread, attributes, SCHED_ATTR_SIZE, 0], ASKING),
    getpriority: program.call("getpriority", [PRIO_PROCESS, thread], ASKING),
    sched_getaffinity: program.call("sched_getaffinity", [thread, size, affinity], ASKING),
  } as const;
  const ioprio = program.call("ioprio_get", [IOPRIO_WHO_PROCESS, thread], ASKING);
  const known = new Map<string, Scheduling>();
  return (answers, { tid, timerSlack }) => {
    const told = (name: keyof typeof calls): number => {
      const result = answers.value(calls[name]);
      if (result < 0) throw syscallError(name, -result, `look at thread ${tid}`);
      return result;
    };
    told("sched_getattr");
    const bytes = answers.bytes(attributes, SCHED_ATTR_SIZE);
    const nice = NICE_BASE - told("getpriority");
    const mask = answers.bytes(affinity, told("sched_getaffinity"));
    const io = answers.value(ioprio);
    const text = bytes.toString("latin1") + mask.toString("latin1");
    const key = `${nice} ${io} ${timerSlack} ${text}`;
    const same = known.get(key);
    if (same !== undefined) return same;
    const found = { attributes: parseAttributes(bytes), nice, mask, ioprio: io, timerSlack };
    const scheduling = schedulingOf(tid, found);
    known.set(key, scheduling);
    return scheduling;
  };
}

const ASKING = { mayFail: true };

/** What the kernel says of a thread. */
interface Told {
  readonly attributes: SchedAttributes;
  readonly nice: number;
  readonly mask: Uint8Array;
  readonly ioprio: number;
  readonly timerSlack: bigint;
}

function schedulingOf(
  tid: number,
  { attributes, nice, mask, ioprio, timerSlack }: Told,
): Scheduling {
  const { policy, flags, priority, slice, deadline, period } = attributes;
  const realTime = policy === SCHED_FIFO || policy === SCHED_RR;
  const byDeadline = policy === SCHED_DEADLINE;
  if (!realTime && !byDeadline && ![SCHED_OTHER, SCHED_BATCH, SCHED_IDLE].includes(policy))
    throw refused(tid, policy);
  const resetOnFork = (flags & SCHED_FLAG_RESET_ON_FORK) !== 0 ? SCHED_RESET_ON_FORK : 0;
  return {
    sched_nice: nice,
    // CRIU takes no deadline: it gets the usual policy.
    sched_policy: (byDeadline ? SCHED_OTHER : policy) | resetOnFork,
    ...(realTime ? { sched_prio: priority } : {}),
    reprise: {
      ...chosenAffinity(mask),
      // One of class 0 means that none was set: the nice value counts.
      ...(ioprio >> IOPRIO_CLASS_SHIFT > 0 ? { ioprio } : {}),
      // Real-time threads have none, and cannot have any.
      ...(realTime || byDeadline ? {} : { timerslack_ns: timerSlack }),
      ...(byDeadline
        ? { deadline: { runtime: slice, deadline, period, flags: BigInt(flags) } }
        : {}),
      ...(realTime || byDeadline || slice === usualSlice() ? {} : { slice_ns: slice }),
    },
  };
}

/**
 * Sets the scheduling of the thread that runs the program: late, since a policy may be lost at a fork or starve the
 * rebuilding. Processors that this machine lacks are left out.
 *
 * @returns a probe of what could not be set, a sentence each: none of it keeps the thread from running.
 */
export function restoreScheduling(
  program: Program,
  core: Pick<ThreadCoreEntry, "sched_nice" | "sched_policy" | "sched_prio" | "reprise">,
): Probe<string[]> {
  const notes: string[] = [];
  const calls: { call: Ref; label: string }[] = [];
  const attempt = (label: string, call: (label: string) => Ref): void => {
    calls.push({ label, call: call(label) });
  };
  const { sched_nice: nice, sched_policy: policy, sched_prio: priority, reprise } = core;

  const affinity = reprise?.cpu_affinity && presentProcessors(reprise.cpu_affinity, notes);
  if (affinity !== undefined) {
    attempt("set the processors that may be used", (label) =>
      program.call("sched_setaffinity", [0, affinity.length, program.data(affinity)], {
        label,
        mayFail: true,
      }),
    );
  }
  const ioprio = reprise?.ioprio;
  if (ioprio !== undefined) {
    attempt(`set the I/O priority 0x${ioprio.toString(16)}`, (label) =>
      program.call("ioprio_set", [IOPRIO_WHO_PROCESS, 0, ioprio], { label, mayFail: true }),
    );
  }
  // A child of a real-time thread has none at all. Nobody can ask for that: 0 means the usual one.
  const slack = reprise?.timerslack_ns;
  if (slack !== undefined) {
    attempt(`set the timer slack ${slack}`, (label) =>
      program.call("prctl", [PR_SET_TIMERSLACK, slack > 0n ? slack : 1n, 0, 0, 0], {
        label,
        mayFail: true,
      }),
    );
  }
  if (nice !== undefined) {
    attempt(`set the nice value ${nice}`, (label) =>
      program.call("setpriority", [PRIO_PROCESS, 0, nice], { label, mayFail: true }),
    );
  }
  if (policy !== undefined) {
    const parameters = Buffer.alloc(4);
    parameters.writeUInt32LE(priority ?? 0);
    attempt(`set the scheduling policy ${policy & ~SCHED_RESET_ON_FORK}`, (label) =>
      program.call("sched_setscheduler", [0, policy, program.data(parameters)], {
        label,
        mayFail: true,
      }),
    );
  }
  if (reprise?.slice_ns !== undefined && policy !== undefined) {
    // After the call before, which sets the usual one.
    const attributes = Buffer.alloc(SCHED_ATTR_SIZE);
    attributes.writeUInt32LE(SCHED_ATTR_SIZE, 0);
    attributes.writeUInt32LE(policy & ~SCHED_RESET_ON_FORK, 4);
    if ((policy & SCHED_RESET_ON_FORK) !== 0) attributes.writeUInt32LE(SCHED_FLAG_RESET_ON_FORK, 8);
    attributes.writeInt32LE(nice ?? 0, 16);
    attributes.writeBigUInt64LE(reprise.slice_ns, SLICE_AT);
    attempt(`set the slice of time ${reprise.slice_ns}`, (label) =>
      program.call("sched_setattr", [0, program.data(attributes), 0], { label, mayFail: true }),
    );
  }
  if (reprise?.deadline !== undefined) {
    const { runtime, deadline, period, flags } = reprise.deadline;
    const attributes = Buffer.alloc(SCHED_ATTR_SIZE);
    attributes.writeUInt32LE(SCHED_ATTR_SIZE, 0);
    attributes.writeUInt32LE(SCHED_DEADLINE, 4);
    attributes.writeBigUInt64LE(flags, 8);
    [runtime, deadline, period].forEach((time, index) =>
      attributes.writeBigUInt64LE(time, SLICE_AT + index * 8),
    );
    attempt(`set the deadline ${deadline}`, (label) =>
      program.call("sched_setattr", [0, program.data(attributes), 0], { label, mayFail: true }),
    );
  }
  return (result) => [
    ...notes,
    ...calls.flatMap(({ call, label }) => {
      const error = result.value(call);
      if (error >= 0) return [];
      const name = program.describe(call.entry).split("(")[0];
      return [`cannot ${label}: ${name}: ${errnoName(-error)}`];
    }),
  ];
}

/** Offset of the runtime in struct sched_attr: from Linux 6.12 on the slice of a thread that is neither real-time nor deadline. */
const SLICE_AT = 24;

/** Our own, which nobody chose; 0 on older kernels. */
function usualSlice(): bigint {
  return (ownSlice ??= readOwnSlice());
}

let ownSlice: bigint | undefined;

function readOwnSlice(): bigint {
  const bytes = Buffer.alloc(SCHED_ATTR_SIZE);
  syscall("sched_getattr", 0, bytes, bytes.length, 0);
  return parseAttributes(bytes).slice;
}

interface SchedAttributes {
  readonly policy: number;
  readonly flags: number;
  readonly priority: number;
  /** Nanoseconds; of a thread with a deadline, its running time in each period. */
  readonly slice: bigint;
  readonly deadline: bigint;
  readonly period: bigint;
}

function parseAttributes(bytes: Buffer): SchedAttributes {
  return {
    policy: bytes.readUInt32LE(4),
    flags: bytes.readUInt32LE(8),
    priority: bytes.readUInt32LE(20),
    slice: bytes.readBigUInt64LE(SLICE_AT),
    deadline: bytes.readBigUInt64LE(SLICE_AT + 8),
    period: bytes.readBigUInt64LE(SLICE_AT + 16),
  };
}

function refused(tid: number, policy: number): RepriseError {
  const what = `cannot dump thread ${tid}: it has scheduling policy ${policy}`;
  return new RepriseError("UNSUPPORTED", what, {
    pid: tid,
    hint: "Give the thread another policy for the time of the dump (chrt --other --pid 0 TID).",
  });
}

function chosenAffinity(mask: Uint8Array): { cpu_affinity?: Uint8Array } {
  for (const cpu of onlineProcessors())
    if (!holds(mask, cpu)) return { cpu_affinity: Uint8Array.from(mask) };
  return {};
}

/** The saved set as far as this machine has the processors; undefined when there is nothing to set. */
function presentProcessors(saved: Uint8Array, notes: string[]): Uint8Array | undefined {
  const online = onlineProcessors();
  const wanted = Array.from({ length: saved.length * 8 }, (_, cpu) => cpu).filter((cpu) =>
    holds(saved, cpu),
  );
  const missing = wanted.filter((cpu) => !online.includes(cpu));
  if (missing.length > 0) {
    log.info(`processors ${missing.join(", ")} are not online here`);
    notes.push(`cannot use processors ${missing.join(", ")}: they are not online here`);
  }
  const present = Buffer.alloc(saved.length);
  for (const cpu of wanted) {
    if (online.includes(cpu)) present[cpu >> 3] = (present[cpu >> 3] ?? 0) | (1 << (cpu & 7));
  }
  // The restored thread has our own set so far.
  const own = readAffinity(0);
  const same = Array.from({ length: CPU_SET_SIZE * 8 }, (_, cpu) => cpu).every(
    (cpu) => holds(own, cpu) === holds(present, cpu),
  );
  return same || missing.length === wanted.length ? undefined : present;
}

/** Good until the next is read. */
function readAffinity(tid: number): Uint8Array {
  const length = syscall("sched_getaffinity", tid, affinity.length, affinity);
  return affinity.subarray(0, length);
}

const affinity = Buffer.alloc(CPU_SET_SIZE);

function holds(mask: Uint8Array, cpu: number): boolean {
  return ((mask[cpu >> 3] ?? 0) & (1 << (cpu & 7))) !== 0;
}

/** Numbers of the processors that are online. */
function onlineProcessors(): readonly number[] {
  online ??= readOnlineProcessors();
  return online;
}

let online: readonly number[] | undefined;

const ONLINE_LIST = "/sys/devices/system/cpu/online";

/** From a list like `0-3,6`; a small container may have no /sys, but has a line for each in /proc/stat. */
function readOnlineProcessors(): number[] {
  if (!existsSync(ONLINE_LIST)) {
    const lines = readFileSync("/proc/stat", "latin1").matchAll(/^cpu(\d+) /gm);
    return Array.from(lines, ([, cpu]) => Number(cpu));
  }
  return readFileSync(ONLINE_LIST, "latin1")
    .trim()
    .split(",")
    .flatMap((range) => {
      const [first = 0, last = first] = range.split("-").map(Number);
      return Array.from({ length: last - first + 1 }, (_, index) => first + index);
    });
}
