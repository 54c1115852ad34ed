// Letting go of threads that were stopped, with what must happen at that moment, and of those that are still to come to their stop.

import { readStatIfAlive } from "../proc/stat.ts";
import { SIGCONT } from "../sys/abi/signal.ts";
import { trySyscall } from "../sys/ffi.ts";
import { sendSignal } from "../sys/process.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { isInVfork } from "./vfork-wait.ts";

const PATIENCE_MS = 500;
const LATER_MS = 20;

/** Detaches the threads of a process that all stand in a stop; signals that were kept from them are sent on. */
export function detachThreads(pid: number, tracees: readonly Tracee[]): void {
  const continued = tracees.some(({ continuePending }) => continuePending);
  for (const tracee of tracees) tracee.detach();
  // Our own SIGSTOP took a blocked and pending SIGCONT off the queue (kernel/signal.c: prepare_signal).
  if (continued) sendSignal(pid, SIGCONT);
  for (const tracee of tracees) tracee.continuePending = false;
  for (const tracee of tracees) {
    for (const signal of tracee.heldSignals.splice(0))
      trySyscall("tgkill", pid, tracee.tid, signal);
  }
}

/** Stops a thread to let it go; false when it does not come in time. */
export function stopsAtLast(tracee: Tracee, patienceMs = PATIENCE_MS): boolean {
  tracee.interrupt();
  try {
    tracee.waitInterrupted((ms) => {
      if (ms > patienceMs || isInVfork(tracee.leader, tracee.tid)) throw new Deaf();
    });
    return true;
  } catch (error) {
    if (error instanceof Deaf) return false;
    throw error;
  }
}

class Deaf extends Error {}

/** It goes on when it comes to its stop: the kernel lets it go when this process ends before. */
export function detachLater(tracee: Tracee): void {
  const timer = setInterval(() => {
    if (!stopsAtLast(tracee, 0)) return;
    clearInterval(timer);
    tracee.detach();
  }, LATER_MS);
  timer.unref();
}

const STOP_MS = 1000;

/** A stop signal takes effect when each thread comes to it: whoever looks afterwards is to find the process stopped. */
export function waitUntilStopped(pid: number): void {
  const end = performance.now() + STOP_MS;
  while (performance.now() < end) {
    const stat = readStatIfAlive(pid);
    if (stat === undefined || stat.state === "T") return;
    Atomics.wait(sleeper, 0, 0, 1);
  }
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));
