// Threads that wait for a child made by vfork (CLONE_VFORK) to call exec or to end. The kernel lets nothing but a deadly signal
// disturb them (kernel/fork.c, wait_for_vfork_done), so a tracer cannot stop them, and nobody learns their registers. It lasts a
// moment, as a rule; the child and all that it may need have to run meanwhile.

import { RepriseError } from "../errors.ts";
import { readThreadStatIfAlive } from "../proc/stat.ts";
import { readSleep } from "../proc/sleep.ts";
import { CLONE_VFORK } from "../sys/abi/sched.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";

/** How long the tree stands still for the sake of one such thread. */
const PATIENCE_MS = 50;

const VFORK = 58;
const CLONE = 56;

/** A thread did not come back from vfork while the rest of the tree stood still. */
export class VforkWait extends RepriseError {
  declare readonly pid: number;
  readonly tid: number;
  /** It was not known in time, so the thread is traced already. */
  readonly tracee: Tracee | undefined;

  constructor(pid: number, tid: number, tracee?: Tracee) {
    super(
      "UNSUPPORTED",
      `cannot dump pid ${pid}: thread ${tid} waits for a child that it made by vfork and that has not called exec`,
      {
        pid,
        hint: "A vfork lasts only until the child calls exec or ends: try again. A child that does neither keeps its parent from being saved.",
      },
    );
    this.tid = tid;
    this.tracee = tracee;
  }
}

/**
 * Waits a moment for a thread that is in an uninterruptible sleep, if it is for a child made by vfork.
 *
 * @throws VforkWait
 */
export function waitForVfork(pid: number, tid: number): void {
  const end = performance.now() + PATIENCE_MS;
  while (isInVfork(pid, tid)) {
    if (performance.now() > end) throw new VforkWait(pid, tid);
    sleepMs(1);
  }
}

/** Whether a thread waits for a child made by vfork. */
export function isInVfork(pid: number, tid: number): boolean {
  if (readThreadStatIfAlive(pid, tid)?.state !== UNINTERRUPTIBLE) return false;
  const sleep = readSleep(pid, tid);
  if (sleep === undefined) return false;
  const { call, words } = sleep;
  // clone3 has its flags in memory; what else it might wait for there is as deaf.
  if (call === VFORK || call === SYSCALLS.clone3.nr) return true;
  return call === CLONE && ((words[0] ?? 0n) & BigInt(CLONE_VFORK)) !== 0n;
}

/** State in /proc/PID/stat of a thread that waits for a disk or for a vfork child, or is frozen (cgroup v1). */
export const UNINTERRUPTIBLE = "D";

const sleeper = new Int32Array(new SharedArrayBuffer(4));

function sleepMs(ms: number): void {
  Atomics.wait(sleeper, 0, 0, ms);
}
