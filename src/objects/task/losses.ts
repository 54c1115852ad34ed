// What a thread may have that no image holds. Each is told at dump, so that nobody is surprised; --strict makes a refusal of it.

import { log } from "../../log.ts";
import { NT_386_IOPERM, PTRACE_GETREGSET } from "../../sys/abi/ptrace.ts";
import { PR_SCHED_CORE, PR_SCHED_CORE_GET, SCHED_ATTR_WITH_CLAMPS } from "../../sys/abi/sched.ts";
import { IOVEC_SIZE } from "../../sys/memory.ts";
import type { Answers, Argument, Program } from "../../tracee/program.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";

/** Where the clamps stand in struct sched_attr, and what the most is, which is the default of the upper one. */
const UTIL_MIN = 48;
const UTIL_MAX = 52;
const FULL = 1024;
/** A bit a port. */
const PORT_MAP_MAX = 8192;
/** Of eflags; since Linux 5.5 always clear. */
const IOPL = 0x3000n;

/** Whose losses are told. */
export interface Loser {
  readonly task: FrozenTask;
  readonly thread: FrozenThread;
  readonly parentDeathSignal: number;
}

/** Adds the calls of the engine that look for what of a stopped thread will be lost; what reads the answers tells of it, and whether there is any. */
export function lookForLosses(
  program: Program,
  tid: Argument,
): (answers: Answers, loser: Loser) => boolean {
  // Ports that a thread may use (ioperm(2)) are a set of registers to ptrace; absent when it has none.
  const map = program.data(Buffer.alloc(PORT_MAP_MAX));
  const vector = Buffer.alloc(IOVEC_SIZE);
  vector.writeUInt32LE(PORT_MAP_MAX, 8);
  const into = program.structure(vector, { 0: map });
  const ports = program.call("ptrace", [PTRACE_GETREGSET, tid, NT_386_IOPERM, into], ASKING);
  const attributes = program.output(SCHED_ATTR_WITH_CLAMPS, 8);
  const size = SCHED_ATTR_WITH_CLAMPS;
  const asked = program.call("sched_getattr", [tid, attributes, size, 0], ASKING);
  const cookie = program.output(8, 8);
  const shares = program.call("prctl", [PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, 0, cookie], ASKING);
  return (answers, { task, thread, parentDeathSignal }) => {
    let isAny = false;
    const tell = (what: string): void => {
      isAny = true;
      log.loss(`thread ${thread.innerTid} of pid ${task.innerPid} (${task.stat.comm}): ${what}`);
    };
    if (parentDeathSignal !== 0 && task.parent === undefined)
      tell(
        `signal ${parentDeathSignal} at its parent's death will not be set: its parent is outside`,
      );
    if (answers.value(ports) >= 0 || mayUsePorts(thread))
      tell("its right to use I/O ports (ioperm, iopl) is not saved");
    if (answers.value(asked) === 0) {
      const bytes = answers.bytes(attributes, SCHED_ATTR_WITH_CLAMPS);
      const [low, high] = [bytes.readUInt32LE(UTIL_MIN), bytes.readUInt32LE(UTIL_MAX)];
      // All zero: a kernel without clamps.
      if (low !== 0 || (high !== 0 && high !== FULL))
        tell(`its utilization clamps (${low} to ${high}) are not saved`);
    }
    if (answers.value(shares) === 0 && !answers.bytes(cookie, 8).equals(NO_COOKIE))
      tell("its core scheduling cookie is not saved");
    return isAny;
  };
}

/** By iopl(2), before Linux 5.5. */
export function mayUsePorts({ stopped }: FrozenThread): boolean {
  return (stopped.regs.get("eflags") & IOPL) !== 0n;
}

const ASKING = { mayFail: true };
const NO_COOKIE = Buffer.alloc(8);
