// The end of a tree that was saved. The first process of a pid namespace ends only when everybody else in it was reaped
// (kernel/pid_namespace.c, zap_pid_ns_processes), also who was brought in from outside, by a parent that may have stopped or never asks.

import { readlinkSync } from "node:fs";
import { log } from "../log.ts";
import { processNumber, type FrozenTask } from "../objects/task/task.ts";
import { readPids } from "../proc/tasks.ts";
import { readStatIfAlive, type TaskStat } from "../proc/stat.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { isReaped, sendSignal, waitForAll } from "../sys/process.ts";
import type { FrozenTree } from "./freeze.ts";
import { reapAfterNode, reapLater } from "./wait-exit.ts";

/** Anonymous memory up to which the end of a task is waited for. */
const QUICK_END_BYTES = 64 * 1024 * 1024;
/** How long is waited before it is asked why. */
const PATIENCE_MS = 1000;
/** How long for others who do not reap their dead. */
const REAPING_PATIENCE_MS = 10_000;
/** How long the end of a task may take, of much memory or for a disk that does not answer. */
const ENDING_PATIENCE_MS = 60_000;

/** Ends all tasks, the root first so that nobody makes new ones for the dead. Children of ours are left to `reapOwn`. */
export function killTree(tree: FrozenTree): void {
  tree.bystanders.awaitStops();
  tree.bystanders.letGo();
  tree.freezer.close();
  const slow = tree.tasks.filter(endsSlowly);
  if (slow.length > 0) reapLater(slow.flatMap(tidsOf));
  for (const task of tree.tasks) if (task.state !== "zombie") sendSignal(task.pid, SIGKILL);
  // As their tracer we are told of their end first; their parents reap them.
  const own = ownChildren(tree);
  const tids = tree.tasks
    .filter((task) => !slow.includes(task))
    .flatMap(tidsOf)
    .filter((tid) => !own.includes(tid));
  let left = waitForAll(tids, PATIENCE_MS);
  for (const since = performance.now(); left.length > 0;) {
    const others = othersInNamespaces(left, tree.tasks);
    if (performance.now() - since > patienceWith(others)) {
      tellOfOthers(left, others);
      reapLater(left);
      return;
    }
    left = waitForAll(left, PATIENCE_MS);
  }
}

/**
 * Reaps those of the killed that are children of this process, as a library's user may have, or have become so when their parents
 * died: it may be a subreaper, or the first process of its pid namespace.
 */
export async function reapOwn(tree: FrozenTree): Promise<void> {
  const own = ownChildren(tree);
  if (own.length > 0) await reapAfterNode(own);
  // Of these the parents have ended by now.
  for (const number of tree.tasks.map(processNumber)) {
    const now = readStatIfAlive(number);
    if (now?.state === "Z" && now.ppid === process.pid) isReaped(number);
  }
}

function ownChildren({ tasks }: FrozenTree): number[] {
  return tasks
    .filter((task) => task.stat.ppid === process.pid && task.state !== "zombie")
    .filter((task) => !endsSlowly(task))
    .map(processNumber);
}

/** How long the end may take, by who is in the same pid namespaces. */
function patienceWith(others: readonly TaskStat[]): number {
  if (others.length === 0 || others.some(isAlive)) return ENDING_PATIENCE_MS;
  const isStopped = ({ ppid }: TaskStat): boolean =>
    STOPPED.has(readStatIfAlive(ppid)?.state ?? "");
  return others.every(isStopped) ? 0 : REAPING_PATIENCE_MS;
}

/** States in which nobody reaps. */
const STOPPED: ReadonlySet<string> = new Set(["T", "t"]);

/**
 * Whether a task is left to end by itself: to give back a gigabyte takes the kernel as long as to write a quarter of it, and the task
 * runs no more. In a pid namespace of its own a restore does not wait for its numbers, so there all must be over.
 */
function endsSlowly({ status }: FrozenTask): boolean {
  return status.nsPid.length === 1 && (status.memory?.rssAnon ?? 0) * 1024 > QUICK_END_BYTES;
}

function tidsOf({ threads }: FrozenTask): number[] {
  return threads.map(({ tid }) => tid);
}

/** Who is in the pid namespaces of processes and not in the tree. */
function othersInNamespaces(pids: readonly number[], tree: readonly FrozenTask[]): TaskStat[] {
  const namespaces = new Set(pids.map(pidNamespace));
  namespaces.delete(undefined);
  const isInTree = new Set(tree.map(processNumber));
  return readPids()
    .filter((pid) => !isInTree.has(pid) && namespaces.has(pidNamespace(pid)))
    .flatMap((pid) => readStatIfAlive(pid) ?? []);
}

function pidNamespace(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined; // it has ended
  }
}

function isAlive({ state }: TaskStat): boolean {
  return state !== "Z" && state !== "X";
}

function tellOfOthers(left: readonly number[], others: readonly TaskStat[]): void {
  const names = others.map(({ pid, comm, ppid }) => `${pid} (${comm}), a child of ${ppid}`);
  const who =
    names.length === 0 ? "" : `; in its pid namespace is still pid ${names.join(", pid ")}`;
  for (const pid of left) log.warn(`pid ${pid} was killed, and is not reaped yet${who}`);
}
