// Taking over a process that a task of the tree has made: it is traced from its first instant, and its number here may be another
// one than in the pid namespace of the tree.

import { RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import { Tracee, type TraceCounters } from "../tracee/tracee.ts";
import type { RestorePlan } from "./plan.ts";

/** Waits for the first stop of a child that `creator` has made. */
export function adoptChild(plan: RestorePlan, creator: Tracee, pid: number): Tracee {
  return adopt(creator.counters, {
    pid,
    outer: plan.hasInnerPids ? outerChild(creator.leader, pid) : pid,
  });
}

export function adopt(
  counters: TraceCounters,
  { pid, outer }: { pid: number; outer: number | undefined },
): Tracee {
  const tracee = outer === undefined ? undefined : new Tracee(outer, outer, counters);
  if (tracee?.waitInterrupted() === undefined) {
    throw new RepriseError(
      "TASK_DIED",
      `cannot restore pid ${pid}: it ended as soon as it was made`,
      { pid },
    );
  }
  return tracee;
}

/** The number here of a child by its number in the innermost pid namespace. */
export function outerChild(parent: number, pid: number): number | undefined {
  return outerChildren(parent).get(pid);
}

/** Children of a process that we trace, by their numbers in a pid namespace: their own, or one at a depth. */
export function outerChildren(parent: number, depth = -1): Map<number, number> {
  const found = new Map<number, number>();
  for (const child of readChildrenIfAlive(parent) ?? []) {
    const status = readStatusIfAlive(child);
    const inner = status?.nsPid.at(depth);
    if (status?.tracerPid === process.pid && inner !== undefined && status.nsPid.length > 1)
      found.set(inner, child);
  }
  return found;
}
