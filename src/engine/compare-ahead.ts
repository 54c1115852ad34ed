// Comparing much memory with the parent set before the tree is frozen, so that the time for which it stands still does not grow
// with its memory. The tasks are stopped for a moment in which their writes begin to be watched (objects/memory/write-watch.ts);
// they run while their pages are compared; and when they are stopped for the dump, what was equal and has not been written
// since is equal still. Everything else is compared then.

import { log } from "../log.ts";
import { common } from "../objects/memory/page-ranges.ts";
import { scanPages } from "../objects/memory/pages.ts";
import { TaskMemory } from "../objects/memory/task-memory.ts";
import type { MemoryRange } from "../sys/memory.ts";
import type { FreezeOptions } from "./freeze.ts";
import type { ParentSet } from "./incremental.ts";
import { runningTree } from "./running-tree.ts";
import { watchMemory, whileStopped, withMuchMemory, type WatchedTask } from "./watch-memory.ts";

export interface CompareAheadOptions extends FreezeOptions {
  readonly parent: ParentSet;
  /** Tasks with less memory of their own are compared while they stand still. @default 64 MiB */
  readonly fromBytes?: number;
}

const FROM_BYTES = 64 * 1024 * 1024;

interface Watched extends WatchedTask {
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
    const large = withMuchMemory(runningTree(root), fromBytes);
    if (large.size === 0) return ahead;
    try {
      const watched = whileStopped(root, options, (tree) => watchMemory(tree, large));
      for (const [pid, task] of watched) ahead.#tasks.set(pid, { ...task, equal: [] });
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

  [Symbol.dispose](): void {
    for (const { watch } of this.#tasks.values()) watch[Symbol.dispose]();
    this.#tasks.clear();
  }
}
