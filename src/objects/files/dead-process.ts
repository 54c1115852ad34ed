// A process that lives while files are opened and is dead when the tree is restored: what a pidfd or a file of /proc that
// outlived its process refers to. It is made by the opening program itself: a child that goes on with the same table of calls,
// finds at once that it is not the root task, and stops itself until it is killed.

import {
  CLONE_ARGS_SIZE,
  CLONE_FILES,
  CLONE_FS,
  PR_SET_PDEATHSIG,
  WALL,
} from "../../sys/abi/sched.ts";
import { SIGKILL } from "../../sys/abi/signal.ts";
import { writeU64 } from "../../sys/memory.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import type { FilesRestore } from "./file-kind.ts";

const made = new WeakMap<FilesRestore, Map<string, Ref>>();

/** The pid of a process that is dead at the end of the opening program; the same one for the same key. */
export function processForPidfd(program: Program, key: number, restore: FilesRestore): Ref {
  const known = stateOf(restore);
  const name = `pidfd ${key}`;
  let process = known.get(name);
  if (process === undefined) {
    process = start(program, undefined, restore.set.rootPid);
    known.set(name, process);
    const child = process;
    restore.later((end) => stop(end, child));
  }
  return process;
}

/** Has a process with this number there until all tasks are filled: its directory in /proc can be opened and entered so long. */
export function processForProc(program: Program, pid: number, restore: FilesRestore): void {
  const known = stateOf(restore);
  const name = `proc ${pid}`;
  if (known.has(name)) return;
  known.set(name, start(program, pid, restore.set.rootPid));
  restore.lastly((end) => stop(end, pid));
}

function stateOf(restore: FilesRestore): Map<string, Ref> {
  let known = made.get(restore);
  if (known === undefined) made.set(restore, (known = new Map()));
  return known;
}

/** Offsets in struct clone_args. */
const SET_TID = 64;
const SET_TID_SIZE = 72;

function start(program: Program, pid: number | undefined, rootPid: number): Ref {
  const what =
    pid === undefined ? "a process that is to be dead" : `process ${pid}, which is to be dead`;
  const args = Buffer.alloc(CLONE_ARGS_SIZE);
  // It shares what it need not copy. No signal tells of its end.
  writeU64(args, 0, CLONE_FILES | CLONE_FS);
  const number = Buffer.alloc(4);
  number.writeInt32LE(pid ?? 0);
  if (pid !== undefined) writeU64(args, SET_TID_SIZE, 1);
  const pointer = program.structure(
    args,
    pid === undefined ? {} : { [SET_TID]: program.data(number) },
  );
  const child = program.call("clone3", [pointer, CLONE_ARGS_SIZE], {
    label: `make ${what}`,
    hint: "Another process may have its number now.",
  });
  // Both are here. Should the root task be killed, the child goes too.
  program.call("prctl", [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0]);
  program.call("getpid", [], { expect: rootPid, label: `make ${what}` });
  program.call("prctl", [PR_SET_PDEATHSIG, 0, 0, 0, 0]);
  return child;
}

function stop(program: Program, child: Argument): void {
  program.call("kill", [child, SIGKILL], { label: "end a process that is to be dead" });
  program.call("wait4", [child, 0, WALL, 0], { label: "end a process that is to be dead" });
}
