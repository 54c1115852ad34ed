// How long a wait still lasts that a stop has interrupted: poll(2), futex(2) with FUTEX_WAIT, and sleeps whose caller has no place for the
// rest. The kernel knows when it ends (task_struct.restart_block) and goes on with it (restart_syscall(2)), but tells nobody. It is read
// from the kernel's memory, where that is allowed; else a restored thread begins the wait anew.
//
// A restored thread makes the call with the time that is left and is interrupted in it, so that the kernel knows the end again. Then it
// stands as the saved one did, and none of its registers is another one.

import type { CoreEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { RepriseError } from "../../errors.ts";
import { readSleep } from "../../proc/sleep.ts";
import { readTasksIfAlive } from "../../proc/tasks.ts";
import { CLOCK_BOOTTIME, CLOCK_MONOTONIC } from "../../sys/abi/event-files.ts";
import { ERESTART_RESTARTBLOCK } from "../../sys/errno.ts";
import { syscall } from "../../sys/ffi.ts";
import { readText } from "../../sys/files.ts";
import { KernelMemory } from "../../sys/kernel-memory.ts";
import { KernelObjects } from "../../sys/kernel-objects.ts";
import { writeMemory } from "../../sys/memory.ts";
import {
  CLOCK_NANOSLEEP,
  FUTEX,
  interruption,
  POLL,
  type Registers,
} from "../../tracee/arch/x86_64/registers.ts";
import { SYSCALLS } from "../../sys/syscalls.x86_64.ts";
import { runInterruptedCall } from "../../tracee/run.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import { registersOf } from "./cpu-state.ts";
import { taskStruct } from "./alike.ts";
import type { FrozenThread } from "./task.ts";

const FUTEX_PRIVATE_FLAG = 128n;
const FUTEX_WAIT = 0n;
const NSEC_PER_SEC = 1_000_000_000n;
const NSEC_PER_MSEC = 1_000_000n;

type Arguments = readonly [bigint, bigint, bigint, bigint];

/** Whether a wait has an end that only the kernel knows. Calls with a point in time have it in their arguments. */
function hidesItsEnd(call: number, [, second, third, fourth]: Arguments): boolean {
  switch (call) {
    case POLL:
      return BigInt.asIntN(32, third) > 0n;
    case FUTEX:
      return (BigInt.asUintN(32, second) & ~FUTEX_PRIVATE_FLAG) === FUTEX_WAIT && fourth !== 0n;
    case SYSCALLS.nanosleep.nr:
      return second === 0n;
    case CLOCK_NANOSLEEP:
      return fourth === 0n;
    default:
      return false;
  }
}

function isHidden(regs: Registers): boolean {
  const call = regs.getNumber("orig_rax");
  return interruption(regs) === "restart-block" && hidesItsEnd(call, argumentsOf(regs));
}

function argumentsOf(regs: Registers): Arguments {
  return [regs.get("rdi"), regs.get("rsi"), regs.get("rdx"), regs.get("r10")];
}

/** Threads of a process that are looked at before they are stopped. */
const FIRST_THREADS = 32;

/** Whether a process that runs has a thread in such a wait. */
export function waitsWithHiddenEnd(pid: number): boolean {
  return (readTasksIfAlive(pid) ?? []).slice(0, FIRST_THREADS).some((tid) => {
    const sleep = readSleep(pid, tid);
    const [first = 0n, second = 0n, third = 0n, fourth = 0n] = sleep?.words ?? [];
    return sleep !== undefined && hidesItsEnd(sleep.call, [first, second, third, fourth]);
  });
}

/** Asks the kernel for the ends of waits. */
export class WaitWatch implements Disposable {
  #kernel: KernelObjects | undefined;
  #isRefused = false;

  /** Nanoseconds that are left; undefined where there is nothing to ask for, or nobody to ask. */
  rest({ tid, stopped: { regs } }: Pick<FrozenThread, "tid" | "stopped">): bigint | undefined {
    if (this.#isRefused || !isHidden(regs)) return undefined;
    try {
      this.#kernel ??= openKernel();
      const task = taskStruct(tid, this.#kernel);
      const rest = readRest(regs, task, this.#kernel);
      if (rest === undefined) return undefined;
      return rest > 0n ? rest : 1n;
    } catch (error) {
      if (!(error instanceof RepriseError)) throw error;
      log.debug(`waits with a limit begin anew at a restore: ${error.message}`);
      this.#isRefused = true;
      return undefined;
    }
  }

  [Symbol.dispose](): void {
    this.#kernel?.memory[Symbol.dispose]();
    this.#kernel = undefined;
  }
}

function openKernel(): KernelObjects {
  // The kernel's times are those of the initial time namespace.
  if (/[1-9]/.test(offsets()))
    throw new RepriseError("KERNEL_FEATURE", "the engine has other clocks than the kernel");
  const memory = new KernelMemory();
  try {
    return new KernelObjects(memory);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

function offsets(): string {
  const text = readText("/proc/self/timens_offsets");
  return typeof text === "string" ? text.replaceAll(/^\S+/gm, "") : "";
}

/**
 * How long a wait still lasts; below 0 when it should have ended. The block is one of several calls, and which call a thread stands in
 * may be a guess (restarted-call.ts).
 */
function readRest(regs: Registers, task: bigint, kernel: KernelObjects): bigint | undefined {
  const word = (name: string): bigint => kernel.word(task, `task_struct.restart_block.${name}`);
  const first = regs.get("rdi");
  switch (regs.getNumber("orig_rax")) {
    case POLL:
      if (word("poll.ufds") !== first) return undefined;
      return word("poll.tv_sec") * NSEC_PER_SEC + word("poll.tv_nsec") - now(CLOCK_MONOTONIC);
    case FUTEX:
      return word("futex.uaddr") === first ? word("futex.time") - now(CLOCK_MONOTONIC) : undefined;
    default: {
      const clock = kernel.number(task, "task_struct.restart_block.nanosleep.clockid");
      return clock === CLOCK_MONOTONIC || clock === CLOCK_BOOTTIME
        ? word("nanosleep.expires") - now(clock)
        : undefined;
    }
  }
}

function now(clock: number): bigint {
  const time = Buffer.alloc(16);
  syscall("clock_gettime", clock, time);
  return time.readBigInt64LE(0) * NSEC_PER_SEC + time.readBigInt64LE(8);
}

/**
 * Tells the kernel when the wait of a restored thread ends; the thread stands in our code.
 *
 * @returns whether it knows: a wait that has nothing to wait for is simply begun again
 */
export function beginRest(
  tracee: Tracee,
  core: CoreEntry,
  { code, scratch }: { readonly code: number; readonly scratch: number },
): boolean {
  const rest = core.thread_core?.reprise?.rest_of_wait;
  const regs = registersOf(core);
  const [first, second, third, fourth] = argumentsOf(regs);
  const call = regs.getNumber("rax");
  if (rest === undefined || !hidesItsEnd(call, [first, second, third, fourth])) return false;
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(rest / NSEC_PER_SEC, 0);
  time.writeBigInt64LE(rest % NSEC_PER_SEC, 8);
  writeMemory(tracee.leader, [{ address: scratch, length: time.length }], time);
  const milliseconds = (rest + NSEC_PER_MSEC - 1n) / NSEC_PER_MSEC;
  const at = BigInt(scratch);
  const given: Arguments =
    call === POLL
      ? [first, second, milliseconds < third ? milliseconds : third, fourth]
      : call === FUTEX
        ? [first, second, third, at]
        : call === CLOCK_NANOSLEEP
          ? [first, second, at, 0n]
          : [at, 0n, third, fourth];
  return runInterruptedCall(tracee, code, { call, given }) === -ERESTART_RESTARTBLOCK;
}
