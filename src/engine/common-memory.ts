// Processes in one address space (CLONE_VM) or with one table of descriptors, found by kcmp(2): what is known of one holds only if
// it is known of all of them, and their memory is there once.

import { KCMP_VM } from "../sys/abi/sched.ts";
import { KernelOrder } from "../sys/process.ts";

/** The first process of each address space. */
export function onePerMemory<T extends { readonly pid: number }>(tasks: readonly T[]): T[] {
  if (tasks.length < 2) return [...tasks];
  const seen = new KernelOrder<T>(KCMP_VM);
  return tasks.filter((task) => seen.findOrAdd(task) === undefined);
}

/**
 * The processes that have an object of any of these kinds (KCMP_…) in common with another one.
 *
 * @throws RepriseError SYSCALL when one has ended
 */
export function sharersAmong(pids: Iterable<number>, kinds: readonly number[]): Set<number> {
  const all = [...pids].map((pid) => ({ pid }));
  const found = new Set<number>();
  for (const kind of all.length < 2 ? [] : kinds) {
    const seen = new KernelOrder<{ pid: number }>(kind);
    for (const task of all) {
      const other = seen.findOrAdd(task);
      if (other !== undefined) found.add(other.pid).add(task.pid);
    }
  }
  return found;
}
