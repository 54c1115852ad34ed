// What a process's end undoes of its operations on System V semaphores (SEM_UNDO, semop(2)): a list of sets, with a number for each
// semaphore (struct sem_undo_list, ipc/sem.c). No interface shows it, so it is read from the kernel's memory; where the kernel does not
// allow that, what can be found is that there is one, for processes with one thread: only then they have a list of their own making, and
// kcmp(2) tells whether that is the same as the none of a fresh process (threads share a list from their making on). It is looked for
// only where there are semaphores.
//
// A list comes back by operations that make it and that leave the values as they are. Where the semaphores are not the tree's own, the
// end of the dumped process has undone its operations, and they are done again.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { RepriseSemUndo } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { PIDFD_THREAD } from "../../sys/abi/event-files.ts";
import { IPC_NOWAIT, SEM_NSEMS, SEM_UNDO } from "../../sys/abi/ipc.ts";
import { KCMP_SYSVSEM } from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { readText } from "../../sys/files.ts";
import { KernelMemory } from "../../sys/kernel-memory.ts";
import { KernelObjects } from "../../sys/kernel-objects.ts";
import type { Program, Ref } from "../../tracee/program.ts";
import { endProcess, startSeed, workAreaAt } from "../../tracee/seed.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import { inNamespace } from "../namespaces/enter.ts";
import type { Probe } from "../probe.ts";
import type { FrozenTask } from "../task/task.ts";
import { status } from "./sysv.ts";

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

/** An IPC namespace. */
interface IpcNamespace {
  readonly id: number;
  /** The engine's, too. */
  readonly isOwn: boolean;
}

/** Looks at the tasks of a dump. */
export class UndoWatch implements Disposable {
  /** A process without a list. */
  #fresh: Tracee | undefined;
  /** Whether there are semaphores, by the number that the images have for the namespace. */
  readonly #semaphores = new Map<number, boolean>();
  #memory: KernelMemory | undefined;
  /** Lists that were seen, by their addresses. */
  readonly #lists = new Map<bigint, FrozenTask>();

  /** The list of a task; tells of what cannot be saved. */
  read(task: FrozenTask, namespace: IpcNamespace): RepriseSemUndo[] {
    if (!this.#hasSemaphores(task, namespace)) return [];
    const isAlone = task.threads.length === 1;
    if (isAlone && !this.#hasList(task)) return [];
    const lists = this.#listsOf(task, namespace);
    // Threads have a list in any case.
    if (lists === undefined && isAlone) this.#tell(task, "is not saved");
    return this.#choose(task, lists ?? []);
  }

  [Symbol.dispose](): void {
    if (this.#fresh !== undefined) endProcess(this.#fresh.tid);
    this.#fresh = undefined;
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
  }

  #hasList({ pid }: FrozenTask): boolean {
    const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
    this.#fresh ??= startSeed(area, { stops: 0, remoteCalls: 0 });
    return trySyscall("kcmp", pid, this.#fresh.tid, KCMP_SYSVSEM, 0, 0) > 0;
  }

  /** The lists of a task's threads that have something in them; undefined where they cannot be read. */
  #listsOf(task: FrozenTask, namespace: IpcNamespace): UndoList[] | undefined {
    try {
      this.#memory ??= new KernelMemory();
      const kernel = new KernelObjects(this.#memory);
      // All threads of a process have one list, as a rule.
      const [leader, ...others] = task.threads.map(({ tid }) => tid);
      const differing = others.filter((tid) => !hasListOf(tid, leader ?? tid));
      const lists = new Set([leader ?? task.pid, ...differing].map((tid) => listOf(tid, kernel)));
      return [...lists]
        .filter((list) => list !== 0n)
        .map((list) => ({ list, undo: readList(list, kernel, inside(task, namespace)) }))
        .filter(({ undo }) => undo.length > 0);
    } catch (error) {
      if (!(error instanceof RepriseError)) throw error;
      log.debug(`pid ${task.innerPid}: its SEM_UNDO cannot be read: ${error.message}`);
      return undefined;
    }
  }

  /** One list becomes one process's. */
  #choose(task: FrozenTask, lists: readonly UndoList[]): RepriseSemUndo[] {
    for (const { list } of lists) {
      const other = this.#lists.get(list);
      if (other !== undefined)
        this.#tell(task, `is common with pid ${other.innerPid}, and will be that one's alone`);
      this.#lists.set(list, other ?? task);
    }
    const own = lists.filter(({ list }) => this.#lists.get(list) === task);
    if (own.length > 1) this.#tell(task, "differs from thread to thread: one's is saved");
    return own[0]?.undo ?? [];
  }

  #tell({ innerPid, stat }: FrozenTask, what: string): void {
    log.loss(
      `pid ${innerPid} (${stat.comm}): what its end would undo of System V semaphores (SEM_UNDO) ${what}`,
    );
  }

  #hasSemaphores(task: FrozenTask, namespace: IpcNamespace): boolean {
    let has = this.#semaphores.get(namespace.id);
    if (has === undefined) {
      has = inside(task, namespace)(listsSemaphores);
      this.#semaphores.set(namespace.id, has);
    }
    return has;
  }
}

interface UndoList {
  /** Its address in the kernel. */
  readonly list: bigint;
  readonly undo: RepriseSemUndo[];
}

type Inside = <T>(action: () => T) => T;

function inside({ pid }: FrozenTask, { isOwn }: IpcNamespace): Inside {
  return (action) => (isOwn ? action() : inNamespace("ipc", { pid }, action));
}

/** A line for each set, below the heading. A kernel without them has no such file. */
export function listsSemaphores(): boolean {
  const text = readText("/proc/sysvipc/sem");
  return typeof text === "string" && text.trim().includes("\n");
}

function hasListOf(tid: number, other: number): boolean {
  return trySyscall("kcmp", tid, other, KCMP_SYSVSEM, 0, 0) === 0;
}

/** The list of a thread; 0 for none. */
function listOf(tid: number, kernel: KernelObjects): bigint {
  const pidfd = syscall("pidfd_open", tid, PIDFD_THREAD);
  try {
    const inode = kernel.word(kernel.memory.file(pidfd, kernel.types), "file.f_inode");
    const pid = kernel.word(inode, "inode.i_private");
    const node = kernel.word(pid, "pid.tasks"); // the first list is that of the thread with this number
    return kernel.word(
      kernel.around(node, "task_struct.pid_links"),
      "task_struct.sysvsem.undo_list",
    );
  } finally {
    closeSync(pidfd);
  }
}

/** More sets than a system has. */
const MANY = 0x1_0000;
const ADJUSTMENT_SIZE = 2;
/** Of a set that was removed. */
const NO_SET = -1;

function readList(list: bigint, kernel: KernelObjects, within: Inside): RepriseSemUndo[] {
  const head = kernel.at(list, "sem_undo_list.list_proc");
  const found: RepriseSemUndo[] = [];
  for (let at = kernel.word(head, "list_head.next"), seen = 0; at !== head && seen < MANY; seen++) {
    const entry = kernel.around(at, "sem_undo.list_proc");
    const id = kernel.number(entry, "sem_undo.semid") | 0;
    const set = id === NO_SET ? undefined : within(() => status("sem", id));
    if (set !== undefined) {
      const count = Number(set.readBigUInt64LE(SEM_NSEMS));
      const bytes = kernel.memory.read(
        kernel.at(entry, "sem_undo.semadj"),
        count * ADJUSTMENT_SIZE,
      );
      const adjustments = Array.from({ length: count }, (_, index) =>
        bytes.readInt16LE(index * ADJUSTMENT_SIZE),
      );
      if (adjustments.some((value) => value !== 0)) found.push({ id, adjustments });
    }
    at = kernel.word(at, "list_head.next");
  }
  return found;
}

/** SEMOPM's usual value is more. */
const OPERATIONS_AT_ONCE = 32;
/** struct sembuf: number, change, flags. */
const SEMBUF_SIZE = 6;

/**
 * Adds the calls that make a list again. With `isSaved` the sets have the values that they had in the dump.
 *
 * @returns a probe of what could not be given back
 */
export function restoreUndo(
  program: Program,
  undo: readonly RepriseSemUndo[],
  { isSaved }: { readonly isSaved: boolean },
): Probe<string[]> {
  const calls = undo.flatMap(({ id, adjustments }) => {
    const operations = adjustments.flatMap((value, number) =>
      value === 0 ? [] : operationsFor(number, value, isSaved),
    );
    return chunks(operations, OPERATIONS_AT_ONCE).map((part) => ({
      id,
      call: operate(program, id, part),
    }));
  });
  return (result) =>
    calls.flatMap(({ id, call }) => {
      const value = result.value(call);
      return value >= 0
        ? []
        : [`what its end would undo of semaphore set ${id} is not restored: ${errnoName(-value)}`];
    });
}

type Operation = readonly [number: number, change: number, flags: number];

/** The kernel notes the opposite of a change. All operations of one call are done, or none. */
function operationsFor(number: number, adjustment: number, isSaved: boolean): Operation[] {
  const noted: Operation = [number, -adjustment, SEM_UNDO | IPC_NOWAIT];
  if (!isSaved) return [noted];
  const silent: Operation = [number, adjustment, IPC_NOWAIT];
  // Up before down: nothing has to wait.
  return adjustment > 0 ? [silent, noted] : [noted, silent];
}

function operate(program: Program, id: number, operations: readonly Operation[]): Ref {
  const list = Buffer.alloc(operations.length * SEMBUF_SIZE);
  operations.forEach(([number, change, flags], index) => {
    list.writeUInt16LE(number, index * SEMBUF_SIZE);
    list.writeInt16LE(change, index * SEMBUF_SIZE + 2);
    list.writeInt16LE(flags, index * SEMBUF_SIZE + 4);
  });
  return program.call("semop", [id, program.data(list), operations.length], {
    label: `have the end undo operations on semaphore set ${id}`,
    mayFail: true,
  });
}

function chunks<T>(list: readonly T[], size: number): T[][] {
  const count = Math.ceil(list.length / size);
  return Array.from({ length: count }, (_, index) => list.slice(index * size, (index + 1) * size));
}
