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
