// Processes that sleep through the beginning of a dump: what was found out about them while they were free to run still holds
// when they are stopped, if each of their threads was blocked in one and the same system call all the time. A breakpoint that
// counts tells it: to block in this call again a thread has to execute the instruction that makes it, and it has not. When it is
// stopped it stands behind that instruction, and the call's result says that it was interrupted.

import type { FrozenTask, FrozenThread } from "../objects/task/task.ts";
import { readSleep, readSwitches, type Sleep } from "../proc/sleep.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { EINTR } from "../sys/errno.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { ExecutionCounter } from "../tracee/executions.ts";

/** Most threads that are watched. */
const MAX_THREADS = 64;

/** The registers of a system call's arguments, in order. */
export const ARGUMENTS = ["rdi", "rsi", "rdx", "r10", "r8", "r9"] as const;

/** ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h), and what some calls say instead. */
const INTERRUPTED: readonly bigint[] = [-512n, -513n, -514n, -516n, BigInt(-EINTR)];

/** `syscall` is two bytes long. */
const SYSCALL_LENGTH = 2;
/** Where the instruction pointer is among a sleep's words. */
const RIP = 7;

interface SleepingThread {
  readonly sleep: Sleep;
  /** Of the instruction that makes the call. */
  readonly counter: ExecutionCounter;
}

/** A process all of whose threads sleep. */
export class Sleeper {
  readonly pid: number;
  readonly #starttime: number;
  readonly #threads = new Map<number, SleepingThread>();

  /** Undefined for a process that does not sleep, has too many threads to look at, or cannot be watched. */
  static of(pid: number): Sleeper | undefined {
    const stat = readStatIfAlive(pid);
    const tids = readTasksIfAlive(pid) ?? [];
    if (stat === undefined || tids.length === 0 || tids.length > MAX_THREADS) return undefined;
    const sleeper = new Sleeper(pid, stat.starttime);
    if (tids.every((tid) => sleeper.#watch(tid))) return sleeper;
    sleeper.close();
    return undefined;
  }

  private constructor(pid: number, starttime: number) {
    this.pid = pid;
    this.#starttime = starttime;
  }

  /** The calls in which the threads are blocked. */
  get calls(): Sleep[] {
    return [...this.#threads.values()].map(({ sleep }) => sleep);
  }

  /** Whether it has slept so far; for a process that is free to run. */
  sleepsStill(): boolean {
    return [...this.#threads].every(
      ([tid, { sleep, counter }]) =>
        readSwitches(this.pid, tid) === sleep.switches && counter.count() === 0,
    );
  }

  /** Whether it slept until it was stopped. To be asked before its threads do anything for us. */
  sleptUntil(task: FrozenTask): boolean {
    return (
      task.stat.starttime === this.#starttime &&
      task.threads.length === this.#threads.size &&
      task.threads.every((thread) => {
        const watched = this.#threads.get(thread.tid);
        return watched !== undefined && isSame(thread, watched);
      })
    );
  }

  /** Watches no longer. */
  close(): void {
    for (const { counter } of this.#threads.values()) counter.close();
    this.#threads.clear();
  }

  #watch(tid: number): boolean {
    const sleep = readSleep(this.pid, tid);
    if (sleep === undefined) return false;
    const counter = ExecutionCounter.of(tid, Number(sleep.words[RIP] ?? 0n) - SYSCALL_LENGTH);
    if (counter === undefined) return false;
    this.#threads.set(tid, { sleep, counter });
    // From here on it cannot begin another sleep unseen.
    return isEqual(readSleep(this.pid, tid), sleep);
  }
}

function isEqual(a: Sleep | undefined, b: Sleep): boolean {
  return (
    a?.call === b.call &&
    a.switches === b.switches &&
    a.words.every((word, index) => word === b.words[index])
  );
}

function isSame({ stopped: { regs } }: FrozenThread, { sleep, counter }: SleepingThread): boolean {
  const words = [...ARGUMENTS, "rsp" as const, "rip" as const].map((name) => regs.get(name));
  return (
    // What is called restart_syscall there was a call before (freeze.ts).
    (regs.get("orig_rax") === BigInt(sleep.call) || sleep.call === SYSCALLS.restart_syscall.nr) &&
    INTERRUPTED.includes(BigInt.asIntN(64, regs.get("rax"))) &&
    words.every((word, index) => word === sleep.words[index]) &&
    counter.count() === 0
  );
}
