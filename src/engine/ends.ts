// The three ends of a dump: the tasks are killed when their images are on the disk, or they go on, or stay stopped.

import { closeSync } from "node:fs";
import { PE_LAZY } from "../images/pagemap.ts";
import { TaskMemory } from "../objects/memory/task-memory.ts";
import type { MessageInput } from "../images/codec.ts";
import type { InventoryEntry } from "../images/schema/messages.generated.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type { NetworkLock } from "../objects/network/lock.ts";
import type { LandlockWatch } from "../objects/task/landlock.ts";
import type { FileTable } from "../objects/files/table.ts";
import { releaseTree, type FrozenTree } from "./freeze.ts";
import type { DumpStats } from "./progress.ts";
import { killTree } from "./kill-tree.ts";
import { syncDirectory } from "./sync.ts";
import { writeDumpStats } from "./stats.ts";
import { leftPages, servePages } from "./page-source.ts";
import type { WrittenTree } from "./write.ts";
import type { CheckpointOptions } from "./checkpoint.ts";

/** A tree that stands still, and what was found out and written of it. */
export interface Captured {
  readonly tree: FrozenTree;
  readonly images: ImageSetWriter;
  readonly files: FileTable;
  readonly lock: NetworkLock;
  readonly landlock: LandlockWatch;
  readonly memory: WrittenTree;
  readonly inventory: MessageInput<InventoryEntry>;
  readonly phase: (done: string) => void;
  readonly tell: (kind: "resumed" | "committed" | "killed") => void;
  /** To be called when the tree stands still no longer, or is about to be killed. */
  readonly stats: () => DumpStats;
}

/** The tasks go on, and then their images are encoded. */
export function goOnAndCommit(options: CheckpointOptions, captured: Captured): DumpStats {
  const { tree, images, files, lock, inventory, phase, tell } = captured;
  files.prepareCommit();
  files.end("alive");
  unlock(lock, options);
  releaseTree(tree, { leaveStopped: false });
  const stats = captured.stats();
  tell("resumed");
  phase("let it go");
  images.commit(inventory);
  finish(options, images, stats);
  return stats;
}

/** The tasks go on, or stay stopped, when the set is whole, but before the disk has caught up. */
export function commitAndLetGo(options: CheckpointOptions, captured: Captured): DumpStats {
  const { tree, images, files, lock, memory, inventory, phase, tell } = captured;
  images.commit(inventory, () => files.prepareCommit());
  if (options.hooks?.script !== undefined) {
    // A script may save more (a file system) that belongs to this state.
    syncDirectory(options.imagesDir);
    options.hooks.script("post-dump", options.pid);
  }
  serveLeftPages(memory, options);
  const isStopped = options.leave === "stopped";
  files.end(isStopped ? "stopped" : "alive");
  // Who leaves tasks stopped is going to end them: nobody must hear of it.
  if (isStopped) lock.leave();
  else unlock(lock, options);
  releaseTree(tree, { leaveStopped: isStopped });
  const stats = captured.stats();
  tell("resumed");
  phase("let it go");
  finish(options, images, stats);
  return stats;
}

/** The tasks end when the set is on the disk. */
export function commitAndKill(options: CheckpointOptions, captured: Captured): DumpStats {
  const { tree, images, files, lock, landlock, memory, inventory, phase, tell } = captured;
  images.commit(inventory, () => files.prepareCommit());
  const stats = captured.stats();
  phase("committed");
  images.closeWritten();
  writeDumpStats(options.workDir ?? options.imagesDir, stats);
  syncDirectory(options.imagesDir);
  tell("committed");
  // When this throws the tasks go on.
  options.hooks?.script?.("post-dump", options.pid);
  serveLeftPages(memory, options);
  lock.leave();
  // The end of a pid namespace waits for all that are in it.
  landlock[Symbol.dispose]();
  files.closeCopies();
  killTree(tree);
  images.tidy();
  files.end("dead");
  tell("killed");
  return stats;
}

/** What need not be waited for by the tasks. */
function finish(options: CheckpointOptions, images: ImageSetWriter, stats: DumpStats): void {
  writeDumpStats(options.workDir ?? options.imagesDir, stats);
  images.tidy();
  syncDirectory(options.imagesDir);
}

/** Gives a lazy-pages daemon what the images lack. When it does not take all, the tasks go on. */
function serveLeftPages({ pagemaps }: WrittenTree, { lazyPages }: CheckpointOptions): void {
  if (lazyPages === undefined) return;
  const connection = lazyPages.connect();
  const tasks = pagemaps.map(({ task, runs }) => ({
    pid: task.innerPid,
    runs: runs.filter(({ flags }) => flags === PE_LAZY),
    memory: new TaskMemory(task.pid),
  }));
  try {
    servePages(connection, leftPages(tasks), lazyPages);
  } finally {
    for (const { memory } of tasks) memory[Symbol.dispose]();
    closeSync(connection);
  }
}

/** Lets the network go, and tells whoever was told that it was locked. */
export function unlock(lock: NetworkLock, { hooks, pid }: CheckpointOptions): void {
  const announced = lock.isElsewhere;
  lock.unlock();
  if (announced) hooks?.script?.("network-unlock", pid);
}
