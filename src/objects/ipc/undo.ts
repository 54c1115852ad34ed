// What a process's end undoes of its operations on System V semaphores (SEM_UNDO, semop(2)) cannot be read. That it asked for it at all
// can be found of processes with one thread: only then they have a list, and kcmp(2) tells whether that is the same as the none of
// a fresh process (threads share a list from their making on, so that of others tells nothing). It is looked for only where
// there are semaphores.

import { log } from "../../log.ts";
import { KCMP_SYSVSEM } from "../../sys/abi/sched.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { readText } from "../../sys/files.ts";
import { endProcess, startSeed, workAreaAt } from "../../tracee/seed.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import { inNamespace } from "../namespaces/enter.ts";
import type { FrozenTask } from "../task/task.ts";

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

/** Looks at the tasks of a dump. */
export class UndoWatch implements Disposable {
  /** A process without a list. */
  #fresh: Tracee | undefined;
  /** Whether there are semaphores, by the number that the images have for the namespace. */
  readonly #semaphores = new Map<number, boolean>();

  /** Tells of a task that has a list. */
  tell(
    task: FrozenTask,
    ipcNamespace: { readonly id: number; /** The engine's, too. */ readonly isOwn: boolean },
  ): void {
    if (task.threads.length !== 1 || !this.#hasSemaphores(task, ipcNamespace)) return;
    const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
    this.#fresh ??= startSeed(area, { stops: 0, remoteCalls: 0 });
    if (trySyscall("kcmp", task.pid, this.#fresh.tid, KCMP_SYSVSEM, 0, 0) <= 0) return;
    log.loss(
      `pid ${task.innerPid} (${task.stat.comm}): what its end would undo of System V semaphores (SEM_UNDO) is not saved`,
    );
  }

  [Symbol.dispose](): void {
    if (this.#fresh !== undefined) endProcess(this.#fresh.tid);
    this.#fresh = undefined;
  }

  #hasSemaphores(
    { pid }: FrozenTask,
    { id, isOwn }: { readonly id: number; readonly isOwn: boolean },
  ): boolean {
    let has = this.#semaphores.get(id);
    if (has === undefined) {
      has = isOwn ? listsSemaphores() : inNamespace("ipc", { pid }, listsSemaphores);
      this.#semaphores.set(id, has);
    }
    return has;
  }
}

/** A line for each set, below the heading. A kernel without them has no such file. */
function listsSemaphores(): boolean {
  const text = readText("/proc/sysvipc/sem");
  return typeof text === "string" && text.trim().includes("\n");
}
