// The memory areas of processes with many threads, each of which has a stack with a guard: read before the tree is frozen, too, so that
// only those that are told otherwise then have to be looked at.

import { RepriseError } from "../errors.ts";
import { prepareVma } from "../objects/memory/vma.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readSmaps, readSmapsAgain, type SmapsSeen, type SmapsVma } from "../proc/smaps.ts";

/** Of others a look at sleeping tasks (look-ahead.ts) may know more, and they have few. */
const MANY_THREADS = 65;

export class AreasAhead {
  readonly #seen = new Map<number, SmapsSeen>();

  /** Looks at those of running tasks that have many threads. */
  static of(tasks: readonly FrozenTask[]): AreasAhead {
    const ahead = new AreasAhead();
    for (const { pid, status } of tasks) if (status.threads >= MANY_THREADS) ahead.#look(pid);
    return ahead;
  }

  #look(pid: number): void {
    try {
      const seen = readSmapsAgain(pid);
      for (const area of seen.vmas) prepareVma(area);
      this.#seen.set(pid, seen);
    } catch (error) {
      // It may have ended; what else is wrong is told when it counts.
      if (!(error instanceof RepriseError)) throw error;
    }
  }

  /** The areas of a stopped task. Throws as readSmaps does. */
  read(pid: number): readonly SmapsVma[] {
    const seen = this.#seen.get(pid);
    return seen === undefined ? readSmaps(pid) : readSmapsAgain(pid, seen).vmas;
  }
}
