// Processes in a frozen cgroup that are not in the tree: somebody has brought them into the container from outside (docker exec, runc
// exec). The cgroup is thawed while the tree stands in ptrace stops, and they must not run meanwhile: they may write into files that are
// being saved, and who has paused a container wants it to stand still. They are stopped and let go again, never changed, and not saved.

import { readStatIfAlive } from "../proc/stat.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { ownPids } from "../sys/front.ts";
import { Tracee } from "../tracee/tracee.ts";
import { detachLater, detachThreads, stopsAtLast } from "./let-go.ts";

/** Those of one freeze. */
export class Bystanders {
  /** By pid; those who cannot be stopped (they have a tracer) have none. */
  readonly #tracees = new Map<number, Tracee[]>();

  /** Their pids, whoever of them may be alive still. */
  get pids(): readonly number[] {
    return [...this.#tracees.keys()];
  }

  /** Seizes processes that cannot run at the moment: they stop before they could do anything. */
  seize(pids: readonly number[]): void {
    const own = ownPids();
    for (const pid of pids) {
      if (own.includes(pid) || isGone(pid)) continue;
      const tracees = (readTasksIfAlive(pid) ?? []).map((tid) => new Tracee(tid, pid, UNCOUNTED));
      this.#tracees.set(pid, tracees.filter(seizes));
    }
  }

  /** Waits for their stops, which a cgroup that is frozen again would keep them from. */
  awaitStops(): void {
    for (const [pid, tracees] of this.#tracees) {
      const stopped = tracees.filter((tracee) => stopsAtLast(tracee));
      for (const tracee of tracees) if (!stopped.includes(tracee)) detachLater(tracee);
      this.#tracees.set(pid, stopped);
    }
  }

  /** Lets those run on that stand in their stops. Doing it twice is harmless. */
  letGo(): void {
    for (const [pid, tracees] of this.#tracees) detachThreads(pid, tracees.splice(0));
  }
}

/** They are no part of what the statistics tell. */
const UNCOUNTED = { stops: 0, remoteCalls: 0 };

function seizes(tracee: Tracee): boolean {
  try {
    if (!tracee.seize(0)) return false;
    tracee.interrupt();
    return true;
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    log.warn(`a process that is not saved goes on running: ${error.message}`);
    return false;
  }
}

/** Also one that is a zombie: who brought it in has not asked for its end yet. */
function isGone(pid: number): boolean {
  const state = readStatIfAlive(pid)?.state;
  return state === undefined || state === "Z" || state === "X";
}
