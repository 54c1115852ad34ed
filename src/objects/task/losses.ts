// What a thread may have that no image holds. Each is told at dump, so that nobody is surprised; --strict makes a refusal of it.

import { log } from "../../log.ts";
import { PR_SCHED_CORE, PR_SCHED_CORE_GET, SCHED_ATTR_WITH_CLAMPS } from "../../sys/abi/sched.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";

/** Where the clamps stand in struct sched_attr, and what the most is, which is the default of the upper one. */
const UTIL_MIN = 48;
const UTIL_MAX = 52;
const FULL = 1024;
/** Tells what of a stopped thread will be lost. */
export function tellLosses(
  task: FrozenTask,
  thread: FrozenThread,
  { parentDeathSignal }: { parentDeathSignal: number },
): void {
  const who = `thread ${thread.innerTid} of pid ${task.innerPid} (${task.stat.comm})`;
  if (parentDeathSignal !== 0 && task.parent === undefined)
    log.loss(
      `${who}: signal ${parentDeathSignal} at its parent's death will not be set: its parent is outside`,
    );
  tellPorts(thread, who);
  const attributes = Buffer.alloc(SCHED_ATTR_WITH_CLAMPS);
  if (trySyscall("sched_getattr", thread.tid, attributes, attributes.length, 0) === 0) {
    const [low, high] = [attributes.readUInt32LE(UTIL_MIN), attributes.readUInt32LE(UTIL_MAX)];
    // All zero: a kernel without clamps.
    if (low !== 0 || (high !== 0 && high !== FULL))
      log.loss(`${who}: its utilization clamps (${low} to ${high}) are not saved`);
  }
  const cookie = Buffer.alloc(8);
  const shares = trySyscall("prctl", PR_SCHED_CORE, PR_SCHED_CORE_GET, thread.tid, 0, cookie);
  if (shares === 0 && cookie.readBigUInt64LE(0) !== 0n)
    log.loss(`${who}: its core scheduling cookie is not saved`);
}

/** Ports that a thread may use (ioperm(2)) are a set of registers to ptrace; absent when it has none. */
function tellPorts({ stopped }: FrozenThread, who: string): void {
  if (stopped.tracee.hasPorts() || (stopped.regs.get("eflags") & IOPL) !== 0n)
    log.loss(`${who}: its right to use I/O ports (ioperm, iopl) is not saved`);
}

/** Of eflags; since Linux 5.5 always clear. */
const IOPL = 0x3000n;
