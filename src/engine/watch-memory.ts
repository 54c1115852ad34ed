// Beginning to watch which pages the tasks of a tree write (objects/memory/write-watch.ts): each makes a userfaultfd while it is
// stopped for a moment, and the engine keeps a copy of it. It is the engine that ends the watch, also by its own end.

import { RepriseError } from "../errors.ts";
import { RING_LINK } from "../objects/io-uring/ring-memory.ts";
import { collectVmas, VMA_AIORING, type DumpedVma } from "../objects/memory/vma.ts";
import {
  copyWatch,
  watchedAreas,
  watchWrites,
  type WriteWatch,
} from "../objects/memory/write-watch.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readFdNumbers } from "../proc/fd.ts";
import { readSmaps } from "../proc/smaps.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import { readLink } from "../sys/files.ts";
import { Program } from "../tracee/program.ts";
import type { RunningProgram } from "../tracee/run.ts";
import { onePerMemory } from "./common-memory.ts";
import { freezeTree, releaseTree, type FreezeOptions, type FrozenTree } from "./freeze.ts";
import { runInLeaders } from "./look-inside.ts";

/** A task whose writes are watched. */
export interface WatchedTask {
  readonly innerPid: number;
  /** Its areas when that began. */
  readonly vmas: readonly DumpedVma[];
  readonly watch: WriteWatch;
}

/** Those of some processes that have at least so much memory of their own. */
export function withMuchMemory(pids: readonly number[], bytes: number): ReadonlySet<number> {
  const isLarge = (pid: number): boolean =>
    (readStatusIfAlive(pid)?.memory?.rssAnon ?? 0) * 1024 >= bytes;
  return new Set(pids.filter(isLarge));
}

/** Whether all that is written to a process's memory can be seen: a ring's requests write without a fault while it stands still. */
export function canBeWatched(pid: number): boolean {
  try {
    return readFdNumbers(pid).every((fd) => readLink(`/proc/${pid}/fd/${fd}`) !== RING_LINK);
  } catch (error) {
    // It has ended, or closed one.
    if (error instanceof RepriseError) return false;
    throw error;
  }
}

/** Stops a tree for as long as something is done. */
export function whileStopped<T>(
  root: number,
  options: FreezeOptions,
  act: (tree: FrozenTree) => T,
): T {
  const tree = freezeTree(root, options);
  try {
    return act(tree);
  } finally {
    releaseTree(tree, { leaveStopped: false });
  }
}

/**
 * Begins to watch some tasks of a stopped tree. Where there is no userfaultfd for a task, it is left out.
 *
 * @throws RepriseError
 */
export function watchMemory(tree: FrozenTree, pids: ReadonlySet<number>): Map<number, WatchedTask> {
  const watched = new Map<number, WatchedTask>();
  const alive = tree.tasks.filter(({ pid, state }) => pids.has(pid) && state !== "zombie");
  const tasks = onePerMemory(alive)
    .map((task) => ({ task, vmas: vmasOf(task) }))
    // The kernel writes into the buffers of asynchronous I/O without a fault.
    .filter(({ vmas }) => vmas.every(({ entry }) => (entry.status & VMA_AIORING) === 0));
  const errands = tasks.map(({ task: { pid, innerPid }, vmas }) => {
    const program = new Program();
    const request = watchWrites(program, watchedAreas(vmas.map(({ entry }) => entry)));
    const meanwhile = (running: RunningProgram): void => {
      const watch = copyWatch(pid, running, request);
      if (watch !== undefined) watched.set(pid, { innerPid, vmas, watch });
    };
    return { program, meanwhile };
  });
  try {
    runInLeaders(tree, tasks, errands);
    for (const { watch } of watched.values()) watch.protect();
    return watched;
  } catch (error) {
    for (const { watch } of watched.values()) watch[Symbol.dispose]();
    throw error;
  }
}

function vmasOf(task: FrozenTask): DumpedVma[] {
  return collectVmas(task, readSmaps(task.pid), () => ({ id: 0, memfd: false }));
}
