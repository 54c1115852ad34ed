// Waiting for, signalling and looking at processes from outside.

import { syscall, trySyscall } from "./ffi.ts";
import { ECHILD, EINTR, ESRCH } from "./errno.ts";
import { WALL, WNOHANG } from "./abi/sched.ts";

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

/** Finds, among objects that tasks have (tables of descriptors, memory), those that are the same: see `kcmp`. */
export class KernelOrder<T extends { readonly pid: number }> {
  readonly #type: number;
  /** In the kernel's order, so that a few comparisons find the place of another. */
  readonly #sorted: T[] = [];

  constructor(type: number) {
    this.#type = type;
  }

  /** The one that has the same object; when there is none, `item` is kept for those that come later. */
  findOrAdd(item: T): T | undefined {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const other = this.#sorted[middle] as T;
      const order = kcmp({ pid: item.pid }, { pid: other.pid }, this.#type);
      if (order === 0) return other;
      if (order === KCMP_LESS) high = middle;
      else low = middle + 1;
    }
    this.#sorted.splice(low, 0, item);
    return undefined;
  }
}

const KCMP_LESS = 1;
