// Comparing much memory with the parent set before the tree is frozen, so that the time for which it stands still does not grow
// with its memory. The tasks are stopped for a moment in which their writes begin to be watched (objects/memory/write-watch.ts);
// they run while their pages are compared; and when they are stopped for the dump, what was equal and has not been written
// since is equal still. Everything else is compared then.

import { log } from "../log.ts";
import { scanPages } from "../objects/memory/pages.ts";
import { TaskMemory } from "../objects/memory/task-memory.ts";
import { collectVmas, VMA_AIORING, type DumpedVma } from "../objects/memory/vma.ts";
import { watchedAreas, watchWrites, WriteWatch } from "../objects/memory/write-watch.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readSmaps } from "../proc/smaps.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { openPidfd } from "../sys/process.ts";
import type { MemoryRange } from "../sys/memory.ts";
import { Program } from "../tracee/program.ts";
import { onePerMemory } from "./common-memory.ts";
import { freezeTree, releaseTree, type FreezeOptions, type FrozenTree } from "./freeze.ts";
import type { ParentSet } from "./incremental.ts";
import { runInLeaders } from "./look-inside.ts";
import { runningTree } from "./running-tree.ts";

export interface CompareAheadOptions extends FreezeOptions {
  readonly parent: ParentSet;
  /** Tasks with less memory of their own are compared while they stand still. @default 64 MiB */
  readonly fromBytes?: number;
}

const FROM_BYTES = 64 * 1024 * 1024;

interface Watched {
  readonly innerPid: number;
  readonly vmas: readonly DumpedVma[];
  readonly watch: WriteWatch;
  equal: readonly MemoryRange[];
}

/** What was compared before the tree was frozen. */
export class ComparedAhead implements Disposable {
  readonly #tasks = new Map<number, Watched>();

  /** For dumps without a parent. */
  static nothing(): ComparedAhead {
    return new ComparedAhead();
  }

  /** Compares the memory of all tasks of a running tree that have much of it. Whatever fails is compared later. */
  static of(root: number, options: CompareAheadOptions): ComparedAhead {
    const ahead = new ComparedAhead();
    const { parent, fromBytes = FROM_BYTES } = options;
    if (!parent.exists) return ahead;
    const large = largeTasks(root, fromBytes);
    if (large.size === 0) return ahead;
    try {
      ahead.#watch(freezeTree(root, options), large);
      for (const [pid, task] of ahead.#tasks) {
        using memory = new TaskMemory(pid);
        task.equal = parent.equalRanges(scanPages({ pid }, task.vmas).runs, { ...task, memory });
      }
    } catch (error) {
      log.info(`memory is compared when the tree is frozen: ${String(error)}`);
      ahead[Symbol.dispose]();
    }
    return ahead;
  }

  /** Pages of a stopped task that are known to be in the parent set. Ascending. */
  known(pid: number): readonly MemoryRange[] {
    const task = this.#tasks.get(pid);
    return task === undefined ? [] : common(task.equal, task.watch.untouched());
  }

  #watch(tree: FrozenTree, large: ReadonlySet<number>): void {
    try {
      const alive = tree.tasks.filter(({ pid, state }) => large.has(pid) && state !== "zombie");
      const tasks = onePerMemory(alive)
        .map((task) => ({ task, vmas: vmasOf(task) }))
        // The kernel writes into the buffers of asynchronous I/O without a fault.
        .filter(({ vmas }) => vmas.every(({ entry }) => (entry.status & VMA_AIORING) === 0));
      const programs = tasks.map(() => new Program());
      const made = tasks.map(({ vmas }, index) =>
        watchWrites(programs[index] as Program, watchedAreas(vmas.map(({ entry }) => entry))),
      );
      runInLeaders(tree, tasks, programs, (results) =>
        tasks.map(({ task, vmas }, index) => {
          const close = new Program();
          const fd = results[index]?.value(made[index] as (typeof made)[number]) ?? -1;
          if (fd < 0) return close;
          const watch = new WriteWatch(task.pid, copyFd(task.pid, fd));
          this.#tasks.set(task.pid, { innerPid: task.innerPid, vmas, watch, equal: [] });
          close.call("close", [fd]);
          return close;
        }),
      );
      for (const { watch } of this.#tasks.values()) watch.protect();
    } finally {
      releaseTree(tree, { leaveStopped: false });
    }
  }

  [Symbol.dispose](): void {
    for (const { watch } of this.#tasks.values()) watch[Symbol.dispose]();
    this.#tasks.clear();
  }
}

function largeTasks(root: number, fromBytes: number): ReadonlySet<number> {
  const isLarge = (pid: number): boolean =>
    (readStatusIfAlive(pid)?.memory?.rssAnon ?? 0) * 1024 >= fromBytes;
  return new Set(runningTree(root).filter(isLarge));
}

function vmasOf(task: FrozenTask): DumpedVma[] {
  return collectVmas(task, readSmaps(task.pid), () => ({ id: 0, memfd: false }));
}

function copyFd(pid: number, fd: number): number {
  const pidfd = openPidfd(pid);
  try {
    return syscall("pidfd_getfd", pidfd, fd, 0);
  } finally {
    trySyscall("close", pidfd);
  }
}

/** Both ascend. */
function common(left: readonly MemoryRange[], right: readonly MemoryRange[]): MemoryRange[] {
  const found: MemoryRange[] = [];
  let next = 0;
  for (const { address, length } of left) {
    const end = address + length;
    for (; next < right.length; next++) {
      const other = right[next] as MemoryRange;
      const otherEnd = other.address + other.length;
      const from = Math.max(address, other.address);
      const to = Math.min(end, otherEnd);
      if (from < to) found.push({ address: from, length: to - from });
      if (otherEnd > end) break;
    }
  }
  return found;
}
