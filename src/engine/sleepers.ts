// Processes that sleep through the beginning of a dump: what was found out about them while they were free to run still holds
// when they are stopped, if each of their threads was blocked in one and the same system call all the time. Three things say so
// together: the call, with arguments, stack and instruction pointer; the number of times that the thread gave up the processor,
// which the stop itself raises by one; and the call's result, which is that it was interrupted.

import type { FrozenTask, FrozenThread } from "../objects/task/task.ts";
import { readSleep, readSwitches, type Sleep } from "../proc/sleep.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { EINTR } from "../sys/errno.ts";

/** Most threads that are watched. */
const MAX_THREADS = 64;

/** The registers of a system call's arguments, in order. */
export const ARGUMENTS = ["rdi", "rsi", "rdx", "r10", "r8", "r9"] as const;

/** ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h), and what some calls say instead. */
const INTERRUPTED: readonly bigint[] = [-512n, -513n, -514n, -516n, BigInt(-EINTR)];

/** A process all of whose threads sleep. */
export class Sleeper {
  readonly pid: number;
  readonly #starttime: number;
  readonly #sleeps: ReadonlyMap<number, Sleep>;

  /** Undefined for a process that does not sleep, or has too many threads to look at. */
  static of(pid: number): Sleeper | undefined {
    const stat = readStatIfAlive(pid);
    const tids = readTasksIfAlive(pid) ?? [];
    if (stat === undefined || tids.length === 0 || tids.length > MAX_THREADS) return undefined;
    const sleeps = new Map<number, Sleep>();
    for (const tid of tids) {
      const sleep = readSleep(pid, tid);
      if (sleep === undefined) return undefined;
      sleeps.set(tid, sleep);
    }
    return new Sleeper(pid, stat.starttime, sleeps);
  }

  private constructor(pid: number, starttime: number, sleeps: ReadonlyMap<number, Sleep>) {
    this.pid = pid;
    this.#starttime = starttime;
    this.#sleeps = sleeps;
  }

  /** The calls in which the threads are blocked. */
  get calls(): Sleep[] {
    return [...this.#sleeps.values()];
  }

  /** Whether it has slept so far; for a process that is free to run. */
  sleepsStill(): boolean {
    return [...this.#sleeps].every(
      ([tid, { switches }]) => readSwitches(this.pid, tid) === switches,
    );
  }

  /** Whether it slept until it was stopped. To be asked before its threads do anything for us. */
  sleptUntil(task: FrozenTask): boolean {
    return (
      task.stat.starttime === this.#starttime &&
      task.threads.length === this.#sleeps.size &&
      task.threads.every((thread) => {
        const sleep = this.#sleeps.get(thread.tid);
        return sleep !== undefined && isSame(task.pid, thread, sleep);
      })
    );
  }
}

function isSame(pid: number, { tid, stopped: { regs } }: FrozenThread, sleep: Sleep): boolean {
  const words = [...ARGUMENTS, "rsp" as const, "rip" as const].map((name) => regs.get(name));
  return (
    regs.get("orig_rax") === BigInt(sleep.call) &&
    INTERRUPTED.includes(BigInt.asIntN(64, regs.get("rax"))) &&
    words.every((word, index) => word === sleep.words[index]) &&
    readSwitches(pid, tid) === sleep.switches + 1
  );
}
