// Waiting for the end of processes without blocking the event loop.

import { readStatIfAlive } from "../proc/stat.ts";
import { WALL, WNOHANG } from "../sys/abi/sched.ts";
import { trySyscall } from "../sys/ffi.ts";
import { isReaped, waitFor } from "../sys/process.ts";
import { waitStatus } from "../tracee/wait-status.ts";

const POLL_MS = 20;

/** Resolves with the exit code of a child, or 128 and the number of the signal that killed it. */
export function waitForExit(pid: number): Promise<number> {
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      const result = waitFor(pid, { noHang: true });
      if (result === undefined) {
        if (isChild(pid)) return;
        clearInterval(timer);
        resolve(0);
        return;
      }
      const status = waitStatus(result.status);
      if (status.kind !== "exited" && status.kind !== "killed") return;
      clearInterval(timer);
      resolve(status.kind === "exited" ? status.code : 128 + status.signal);
    }, POLL_MS);
  });
}

/** Whether there is still something to wait for. */
function isChild(pid: number): boolean {
  return trySyscall("wait4", pid, 0, WALL | WNOHANG, 0) >= 0;
}

/**
 * Takes the reports of tracees that are about to be killed as they end, so that their parents can reap them. It keeps nobody from
 * exiting: then the kernel lets go of them by itself.
 */
export function reapLater(tids: readonly number[]): void {
  const begins = new Map(tids.map((tid) => [tid, readStatIfAlive(tid)?.starttime]));
  let left = tids;
  const reaping = new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      // Node may have reaped a child of ours, and a restore given the number to a task whose reports are its own.
      left = left.filter((tid) => readStatIfAlive(tid)?.starttime === begins.get(tid));
      left = left.filter((tid) => !isReaped(tid));
      if (left.length > 0) return;
      clearInterval(timer);
      resolve();
    }, POLL_MS);
    timer.unref();
  });
  reapings.add(reaping);
  void reaping.then(() => reapings.delete(reaping));
}

const reapings = new Set<Promise<void>>();

/** Resolves when all that `reapLater` was told of has ended, for an engine that stays. */
export async function reapingDone(): Promise<void> {
  await Promise.all(reapings);
}
