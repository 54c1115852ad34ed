// restore --lazy-pages: tasks' userfaultfds go to the lazy-pages daemon, which fills what is missing.

import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { lazyAreas, watchMissing } from "../objects/memory/lazy.ts";
import { isMapped } from "../objects/memory/vma.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import type { Tracee } from "../tracee/tracee.ts";
import type { Growth } from "./growth.ts";
import { LazyDaemon } from "./lazy-wire.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Descriptors in the tasks, by the pids of the images. */
export type UserFaults = ReadonlyMap<number, number>;

/**
 * Gives the missing memory of all tasks to the daemon that listens in the work directory. Tell it to `finish` when nothing can
 * fail any more.
 *
 * @throws RepriseError SYSCALL
 */
export function handOver(
  plan: RestorePlan,
  growth: Growth,
  { workDir, faults }: { readonly workDir: string; readonly faults: UserFaults },
): LazyDaemon {
  const daemon = new LazyDaemon(workDir);
  try {
    for (const pid of plan.set.tasks.keys()) {
      const fault = faults.get(pid);
      if (fault === undefined) daemon.skip(pid);
      else {
        const { mm, later } = plan.tasks.get(pid) as TaskPlan;
        const areas = lazyAreas(mm.vmas.filter(isMapped), later);
        giveOne(daemon, { pid, fault, areas, tracee: growth.tracees.get(pid) as Tracee });
      }
    }
    return daemon;
  } catch (error) {
    daemon.close();
    throw error;
  }
}

function giveOne(
  daemon: LazyDaemon,
  {
    pid,
    fault,
    areas,
    tracee,
  }: { pid: number; fault: number; areas: readonly VmaEntry[]; tracee: Tracee },
): void {
  const pidfd = syscall("pidfd_open", tracee.leader, 0);
  try {
    const copy = syscall("pidfd_getfd", pidfd, fault, 0);
    try {
      watchMissing(copy, areas);
      daemon.give(pid, copy);
    } finally {
      trySyscall("close", copy);
    }
  } finally {
    trySyscall("close", pidfd);
  }
}
