// Waiting for, signalling and looking at processes from outside.

import { PIDFD_THREAD } from "./abi/event-files.ts";
import { syscall, trySyscall } from "./ffi.ts";
import { ECHILD, EINTR, EINVAL, ENOENT, ESRCH } from "./errno.ts";
import {
  PR_GET_DUMPABLE,
  PR_GET_SECUREBITS,
  PR_SET_DUMPABLE,
  PR_SET_SECUREBITS,
  SECBIT_NO_SETUID_FIXUP,
  WALL,
  WNOHANG,
} from "./abi/sched.ts";

const statusBuffer = Buffer.alloc(4);

/** One wait4 result: which process, and its raw status word. */
export interface WaitResult {
  readonly pid: number;
  readonly status: number;
}

/**
 * wait4 with __WALL for one thread or any (-1). Blocks unless `noHang`.
 *
 * @returns undefined when there is nothing to wait for (or nothing yet, with `noHang`).
 */
export function waitFor(
  pid: number,
  options: { readonly noHang?: boolean } = {},
): WaitResult | undefined {
  for (;;) {
    const result = trySyscall(
      "wait4",
      pid,
      statusBuffer,
      WALL | (options.noHang === true ? WNOHANG : 0),
      0,
    );
    if (result === -EINTR) continue;
    if (result === 0 || result === -ECHILD || result === -ESRCH) return undefined;
    return { pid: result, status: statusBuffer.readUInt32LE(0) };
  }
}

/** As `waitFor`, for what comes in a moment: to sleep and be woken takes longer than that. */
export function waitAwake(pid: number): WaitResult | undefined {
  const begun = performance.now();
  do {
    const result = trySyscall("wait4", pid, statusBuffer, WALL | WNOHANG, 0);
    if (result === -ECHILD || result === -ESRCH) return undefined;
    if (result > 0) return { pid: result, status: statusBuffer.readUInt32LE(0) };
    trySyscall("sched_yield");
  } while (performance.now() - begun < SPIN_MS);
  return waitFor(pid);
}

/**
 * As `waitFor`, but tells every moment how many milliseconds it has waited; `impatient` ends the wait by throwing. Nearly every stop
 * comes before it is asked.
 */
export function waitPatiently(
  pid: number,
  impatient: (ms: number) => void,
): WaitResult | undefined {
  const begun = performance.now();
  for (;;) {
    const result = trySyscall("wait4", pid, statusBuffer, WALL | WNOHANG, 0);
    if (result === -ECHILD || result === -ESRCH) return undefined;
    if (result > 0) return { pid: result, status: statusBuffer.readUInt32LE(0) };
    const waited = performance.now() - begun;
    if (waited < SPIN_MS) trySyscall("sched_yield");
    else {
      impatient(waited);
      Atomics.wait(sleeper, 0, 0, waited < 10 ? 0.1 : 1);
    }
  }
}

const SPIN_MS = 0.3;

/**
 * Waits until all of these threads, killed tracees or children of ours, have ended, in whatever order they do: the last thread of a
 * pid namespace's init ends only when everybody else in it is reaped (kernel/pid_namespace.c, zap_pid_ns_processes), and which
 * one that is nobody knows. Gives those that have not ended in time.
 */
export function waitForAll(tids: readonly number[], patienceMs: number): readonly number[] {
  let left = tids;
  const end = performance.now() + patienceMs;
  for (let round = 0; ; round += 1) {
    left = left.filter((tid) => !isReaped(tid));
    if (left.length === 0 || performance.now() > end) return left;
    if (round > 0) Atomics.wait(sleeper, 0, 0, 1);
  }
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Takes one report of a thread, if there is one; true when it was its last. */
export function isReaped(tid: number): boolean {
  const result = trySyscall("wait4", tid, statusBuffer, WALL | WNOHANG, 0);
  if (result === -ECHILD || result === -ESRCH) return true;
  // The low byte of a stop's status is 0x7f (wait(2)).
  return result > 0 && (statusBuffer.readUInt32LE(0) & 0xff) !== 0x7f;
}

/**
 * Ends this process without Node's own end, which puts the terminal's settings and the flags of descriptors 0 to 2 back to what
 * they were at its start: by now they may be a restored program's.
 */
export function exitNow(code: number): never {
  syscall("exit_group", code);
  throw new Error("exit_group came back");
}

/** Sends a signal; a process that is gone already is not an error. */
export function sendSignal(pid: number, signal: number): void {
  const result = trySyscall("kill", pid, signal);
  if (result < 0 && result !== -ESRCH) syscall("kill", pid, signal);
}

/**
 * A pidfd of a process, or of one of its threads: what it has open can be had by both.
 *
 * @throws RepriseError SYSCALL
 */
export function openPidfd(pid: number): number {
  const fd = trySyscall("pidfd_open", pid, 0);
  if (fd >= 0) return fd;
  // EINVAL or, later, ENOENT when it is no first thread. Linux 6.9 opens these, too.
  const isThread = fd === -EINVAL || fd === -ENOENT;
  return syscall("pidfd_open", pid, isThread ? PIDFD_THREAD : 0);
}

/**
 * Compares two kernel objects of two tasks (kcmp): 0 equal, 1 less, 2 greater, in the kernel's hidden order.
 *
 * @throws RepriseError SYSCALL
 */
export function kcmp(
  left: { pid: number; fd?: number },
  right: { pid: number; fd?: number },
  type: number,
): number {
  return syscall("kcmp", left.pid, right.pid, type, left.fd ?? 0, right.fd ?? 0);
}

/** Where a kernel object is found: a task has it, an open file as its descriptor `fd`. */
export interface KernelObject {
  readonly pid: number;
  readonly fd?: number;
}

/** Finds, among objects that tasks have (open files, tables of descriptors, memory), those that are the same: see `kcmp`. */
export class KernelOrder<T extends KernelObject> {
  readonly #type: number;
  /** In the kernel's order, so that a few comparisons find the place of another. */
  readonly #sorted: T[] = [];

  constructor(type: number) {
    this.#type = type;
  }

  /** The one that has the same object; when there is none, `item` is kept for those that come later. */
  findOrAdd(item: T): T | undefined {
    const found = this.findOrMake(item, () => item);
    return found === item ? undefined : found;
  }

  /** The one that has the same object; when there is none, `make` gives one for it, which is kept. */
  findOrMake(object: KernelObject, make: () => T): T {
    const at = this.#search(object);
    if (typeof at !== "number") return at.found;
    const before = this.#sorted.length;
    const item = make();
    // Making it may have added others.
    const place = this.#sorted.length === before ? at : this.#search(object);
    if (typeof place === "number") this.#sorted.splice(place, 0, item);
    return item;
  }

  /** The one that has the same object. */
  find(object: KernelObject): T | undefined {
    const at = this.#search(object);
    return typeof at === "number" ? undefined : at.found;
  }

  get items(): readonly T[] {
    return this.#sorted;
  }

  /** The one that has it, or the place where it belongs. */
  #search(object: KernelObject): number | { readonly found: T } {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const other = this.#sorted[middle] as T;
      const order = kcmp(object, other, this.#type);
      if (order === 0) return { found: other };
      if (order === KCMP_LESS) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

const KCMP_LESS = 1;

/** Whether this process, and those that it makes, can be other users for a moment: a restore without privileges has the user of its tasks. */
export function mayBecomeOthers(): boolean {
  return process.geteuid?.() === 0;
}

/**
 * Runs `action`, which must not be asynchronous, with other effective ids in this thread, and with all its capabilities; as itself where
 * it may not change them.
 */
export function withEffectiveIds<T>(
  { uid, gid }: { readonly uid: number; readonly gid: number },
  action: () => T,
): T {
  if (!mayBecomeOthers()) return action();
  const own = { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
  const bits = syscall("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0);
  const dumpable = syscall("prctl", PR_GET_DUMPABLE, 0, 0, 0, 0);
  syscall("prctl", PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
  syscall("setresgid", KEEP_ID, gid, KEEP_ID);
  syscall("setresuid", KEEP_ID, uid, KEEP_ID);
  try {
    return action();
  } finally {
    syscall("setresuid", KEEP_ID, own.uid, KEEP_ID);
    syscall("setresgid", KEEP_ID, own.gid, KEEP_ID);
    syscall("prctl", PR_SET_SECUREBITS, bits, 0, 0, 0);
    // A change of ids takes it away.
    syscall("prctl", PR_SET_DUMPABLE, dumpable === 1 ? 1 : 0, 0, 0, 0);
  }
}

/** Leaves an id as it is. */
const KEEP_ID = -1;
