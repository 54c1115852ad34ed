// Waiting for the end of processes without blocking the event loop.

import { RepriseError } from "../errors.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { WALL, WNOHANG } from "../sys/abi/sched.ts";
import { trySyscall } from "../sys/ffi.ts";
import { isReaped, waitFor } from "../sys/process.ts";
import { waitStatus, type WaitStatus } from "../tracee/wait-status.ts";

const POLL_MS = 20;

/**
 * Resolves with the exit code of a child, or 128 and the number of the signal that killed it.
 *
 * @throws RepriseError NO_SUCH_PROCESS when it is not ours to wait for
 */
export async function waitForExit(pid: number): Promise<number> {
  for (;;) {
    const status = endOf(pid);
    if (status !== undefined) return status.kind === "exited" ? status.code : 128 + status.signal;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** How a child ended; undefined as long as it lives. */
function endOf(pid: number): (WaitStatus & { readonly kind: "exited" | "killed" }) | undefined {
  const result = waitFor(pid, { noHang: true });
  if (result === undefined) {
    if (trySyscall("wait4", pid, 0, WALL | WNOHANG, 0) >= 0) return undefined;
    throw new RepriseError("NO_SUCH_PROCESS", `cannot wait for pid ${pid}: wait4: ECHILD`, {
      pid,
      hint: "It is the child of another process (sibling), or its end was told already.",
    });
  }
  const status = waitStatus(result.status);
  return status.kind === "exited" || status.kind === "killed" ? status : undefined;
}

/**
 * Reaps children of ours that were killed, but lets Node do it that has started them: its `ChildProcess` would take the next process
 * of that number for its own, a restored one.
 */
export async function reapAfterNode(pids: readonly number[]): Promise<void> {
  const end = performance.now() + OWN_PATIENCE_MS;
  while (pids.some(isEnding) && performance.now() < end)
    await new Promise((resolve) => setTimeout(resolve, 1));
  // Node hears of it (SIGCHLD) when the event loop comes round.
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
  for (const pid of pids) isReaped(pid);
}

const OWN_PATIENCE_MS = 10_000;

function isEnding(pid: number): boolean {
  const state = readStatIfAlive(pid)?.state;
  return state !== undefined && state !== "Z";
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
