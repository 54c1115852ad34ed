// The tree before it is frozen. Whoever prepares the dump wants to know of whom; to find the children of a process each of its threads
// must be asked, so that is done once for all.

import { readChildrenIfAlive } from "../proc/children.ts";

/** Pids of a running tree, the root first. Some may be zombies, or gone by the time that they are looked at. */
export function runningTree(root: number): readonly number[] {
  const pids = new Set([root]);
  // The set grows while it is walked.
  for (const pid of pids) for (const child of readChildrenIfAlive(pid) ?? []) pids.add(child);
  return [...pids];
}
