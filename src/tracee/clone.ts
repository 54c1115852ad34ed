// Making processes and threads with the numbers that they had, see clone(2). They are traced from their first instant (CLONE_PTRACE).

import * as sched from "../sys/abi/sched.ts";
import { SIGCHLD } from "../sys/abi/signal.ts";
import { writeU64 } from "../sys/memory.ts";
import type { Program, Ref } from "./program.ts";

/** Adds a clone3, with the wanted pid if any; the child is traced from the start. */
export function addClone(
  program: Program,
  child: {
    /** Its numbers, in its innermost pid namespace first; the kernel gives those that are missing. */
    readonly pid?: number | readonly number[];
    readonly flags: number;
    readonly what: string;
    readonly exitSignal?: number;
    readonly mayFail?: boolean;
  },
): Ref {
  const pids = typeof child.pid === "number" ? [child.pid] : (child.pid ?? []);
  const bytes = Buffer.alloc(4 * Math.max(1, pids.length));
  pids.forEach((pid, index) => bytes.writeInt32LE(pid, 4 * index));
  const setTid = program.data(bytes);
  const args = Buffer.alloc(sched.CLONE_ARGS_SIZE);
  writeU64(args, 0, child.flags | sched.CLONE_PTRACE);
  // With CLONE_PARENT the exit signal is the creator's own (clone(2)).
  writeU64(
    args,
    CLONE_EXIT_SIGNAL,
    (child.flags & (sched.CLONE_PARENT | sched.CLONE_THREAD)) === 0
      ? (child.exitSignal ?? SIGCHLD)
      : 0,
  );
  writeU64(args, CLONE_SET_TID_SIZE, pids.length);
  return program.call(
    "clone3",
    [
      program.structure(args, pids.length === 0 ? {} : { [CLONE_SET_TID]: setTid }),
      sched.CLONE_ARGS_SIZE,
    ],
    {
      label: `make ${child.what}`,
      mayFail: child.mayFail ?? false,
      hint: "The pid may have been taken a moment ago, or a limit on processes (RLIMIT_NPROC, pids.max) is reached.",
    },
  );
}

/** Offsets in struct clone_args. */
const CLONE_EXIT_SIGNAL = 32;
const CLONE_SET_TID = 64;
const CLONE_SET_TID_SIZE = 72;
