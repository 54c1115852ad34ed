// Running programs in stopped threads, many at once: every program is sent and started, then each stop is waited for, so
// that tasks work in parallel.

import { assert } from "../errors.ts";
import { SIGSET_FULL, SIGSTOP } from "../sys/abi/signal.ts";
import { readMemory, writeMemory } from "../sys/memory.ts";
import { assemble, ENTRY_SIZE, INTERPRETER } from "./arch/x86_64/code.ts";
import type { Registers } from "./arch/x86_64/registers.ts";
import {
  type Pointer,
  type Program,
  type ProgramImage,
  ProgramResult,
  type Ref,
} from "./program.ts";
import { logHeldSignal, taskDied, type Tracee } from "./tracee.ts";

/** The interpreter as it is put at the start of a work area. */
export const interpreter: {
  readonly bytes: Buffer;
  readonly labels: Readonly<Record<string, number>>;
} = assemble(INTERPRETER);

/** A program to run: in which thread, with the interpreter where, the program where. */
export interface Job {
  readonly tracee: Tracee;
  readonly program: Program;
  /** Address of the interpreter in the thread's process. */
  readonly code: number;
  /** Address for the program: `program.size` bytes of readable and writable memory. */
  readonly base: number;
  /** Address of the signal frame that puts the thread right if the engine dies; 0 while restoring. */
  readonly frame: number;
  /** Where the thread enters the interpreter, if not at its beginning. */
  readonly entry?: number | undefined;
  /** Runs at the last moment before the thread goes on. */
  readonly justBefore?: () => void;
  /** What is in the thread's registers, where that is known and need not be asked. */
  readonly regs?: Registers;
  /** Is called while the program runs; for the first program in its place. */
  readonly meanwhile?: ((running: RunningProgram) => void) | undefined;
}

/** A program that runs: its results so far, and its data. */
export class RunningProgram {
  readonly #pid: number;
  readonly #image: ProgramImage;

  constructor(pid: number, image: ProgramImage) {
    this.#pid = pid;
    this.#image = image;
  }

  /** A call's result; 0 as long as it has not been made. @throws RepriseError SYSCALL */
  result({ entry }: Ref): number {
    const bytes = Buffer.alloc(8);
    readMemory(this.#pid, [{ address: this.#image.results + entry * 8, length: 8 }], bytes);
    return Number(bytes.readBigInt64LE());
  }

  /** Writes into the program's data. @throws RepriseError SYSCALL */
  put({ offset }: Pointer, bytes: Uint8Array): void {
    writeMemory(this.#pid, [{ address: this.#image.base + offset, length: bytes.length }], bytes);
  }
}

interface Started {
  readonly job: Job;
  readonly image: ProgramImage;
}

/** Jobs in threads of one process. */
type Together<T> = readonly [T, ...T[]];

/**
 * Runs one program in each thread, all at the same time. All signals stay blocked afterwards.
 *
 * @returns the results in the order of the jobs.
 * @throws RepriseError REMOTE_CALL for the first call that must succeed and did not, TASK_DIED. All other programs have
 * come to their end by then.
 */
export function runPrograms(jobs: readonly Job[]): ProgramResult[] {
  const started = byProcess(jobs, (job) => job).flatMap(startTogether);
  const failures = started.flatMap(visit);
  const ended = started.map(({ job }) => waitForProgram(job));
  const failed = ended.find((end) => end instanceof Error) ?? failures[0];
  if (failed !== undefined) throw failed;
  const results = byProcess(started, ({ job }) => job).flatMap(fetchTogether);
  started.forEach((one, index) =>
    checkEnd(one, results[index] as ProgramResult, ended[index] as Registers),
  );
  return results;
}

/** Neighbours in threads of one process: what they take and bring is copied at once. */
function byProcess<T>(items: readonly T[], jobOf: (item: T) => Job): Together<T>[] {
  const groups: [T, ...T[]][] = [];
  let leader: number | undefined;
  for (const item of items) {
    if (jobOf(item).tracee.leader === leader) groups.at(-1)?.push(item);
    else groups.push([item]);
    ({ leader } = jobOf(item).tracee);
  }
  return groups;
}

/**
 * Starts a program that runs to its end by itself, whatever becomes of the engine: nobody waits for it, and its thread does not die
 * with the engine any more. It must end its process.
 *
 * @throws RepriseError TASK_DIED
 */
export function runUnattended(job: Job): void {
  const { tracee } = job;
  prepareThread(job, layOutTogether([job])[0] as ProgramImage);
  // Out of the SIGSTOP, which would take effect if the engine died here, into a stop that is nothing but a stop.
  tracee.interrupt();
  tracee.resume();
  if (tracee.waitInterrupted() === undefined) throw taskDied(tracee, "is gone");
  tracee.setOptions(0);
  tracee.resume();
}

function startTogether(jobs: Together<Job>): Started[] {
  const images = layOutTogether(jobs);
  return jobs.map((job, index) => {
    const image = images[index] as ProgramImage;
    prepareThread(job, image);
    job.justBefore?.();
    job.tracee.resume();
    return { job, image };
  });
}

/** What goes wrong with one program must not keep anybody from waiting for the others. */
function visit({ job: { meanwhile, tracee }, image }: Started): Error[] {
  try {
    meanwhile?.(new RunningProgram(tracee.leader, image));
    return [];
  } catch (error) {
    return [error as Error];
  }
}

/** Puts programs into their places. */
function layOutTogether(jobs: Together<Job>): ProgramImage[] {
  const images = jobs.map(({ program, base }) => program.layout(base));
  const uploads = images.map(({ upload }) => upload);
  const ranges = images.map(({ base, upload }) => ({ address: base, length: upload.length }));
  writeMemory(
    jobs[0].tracee.leader,
    ranges,
    uploads.length === 1 ? (uploads[0] as Buffer) : Buffer.concat(uploads),
  );
  return images;
}

/** Puts a thread to the beginning of its program. */
function prepareThread({ tracee, program, ...job }: Job, image: ProgramImage): void {
  const regs = job.regs?.copy() ?? tracee.registers();
  regs
    .set("r12", image.table)
    .set("r13", image.results)
    .set("r14", image.end)
    .set("rbp", job.frame);
  regs.set("rip", job.entry ?? job.code).set("orig_rax", -1n);
  tracee.setRegisters(regs);
  // The order matters: registers first. From here on the frame restores the mask too if we die.
  tracee.setSignalMask(SIGSET_FULL);
  tracee.counters.remoteCalls += program.calls;
}

/** A program that has come to its end, or to a call that failed. */
export interface ProgramRun {
  readonly leader: number;
  readonly tid: number;
  readonly program: Program;
  readonly result: ProgramResult;
  /** How many of its entries were run. */
  readonly entries: number;
}

let listener: ((run: ProgramRun) => void) | undefined;

/** Has every program told when it has run, for logs. */
export function tellPrograms(to: ((run: ProgramRun) => void) | undefined): void {
  listener = to;
}

/** Waits for the interpreter's own SIGSTOP, and gives the registers there; any other signal stop is from outside and is swallowed. */
function waitForProgram(job: Job): Registers | Error {
  const { tracee } = job;
  for (;;) {
    const status = tracee.wait();
    if (status.kind === "exited" || status.kind === "killed") return taskDied(tracee, status);
    if (status.kind === "signal") {
      const regs = tracee.registers();
      if (status.signal === SIGSTOP && regs.getNumber("rip") === job.code + label("stopped"))
        return regs;
      if (status.signal !== SIGSTOP) return taskDied(tracee, status);
      logHeldSignal(tracee, status.signal);
      tracee.heldSignals.push(status.signal);
    }
    tracee.resume();
  }
}

/** How many entries of a job's program have been run, for who has to clean up after a failure; 0 when its thread is gone. */
export function entriesRun({ tracee, program, base }: Job): number {
  try {
    return (tracee.registers().getNumber("r12") - program.layout(base).table) / ENTRY_SIZE;
  } catch {
    return 0;
  }
}

/** What programs have brought. */
function fetchTogether(started: Together<Started>): ProgramResult[] {
  const ranges = started.map(({ image }) => ({
    address: image.results,
    length: image.downloadSize,
  }));
  const bytes = Buffer.alloc(ranges.reduce((sum, { length }) => sum + length, 0));
  if (bytes.length > 0) readMemory(started[0].job.tracee.leader, ranges, bytes);
  let at = 0;
  return started.map(({ image }) => {
    const from = at;
    at += image.downloadSize;
    return new ProgramResult(image, bytes.subarray(from, at));
  });
}

/** @throws RepriseError REMOTE_CALL unless a program came to its end */
function checkEnd({ job, image }: Started, result: ProgramResult, regs: Registers): void {
  const { tracee, program } = job;
  const stoppedAt = (regs.getNumber("r12") - image.table) / ENTRY_SIZE;
  if (listener !== undefined) {
    const entries = Math.min(stoppedAt + 1, program.length);
    listener({ leader: tracee.leader, tid: tracee.tid, program, result, entries });
  }
  if (stoppedAt < program.length) {
    throw program.failure(
      stoppedAt,
      result.value({ kind: "ref", entry: stoppedAt }),
      tracee.leader,
    );
  }
}

/** Offset of a label in the interpreter. */
export function label(name: string): number {
  const offset = interpreter.labels[name];
  assert(offset !== undefined, `the interpreter has no label ${name}`);
  return offset;
}

/**
 * Makes one system call and catches the thread at its exit, before it is back in user space: for the call that unmaps the
 * ground under its own feet. The registers are then the caller's to set.
 */
export function runCaughtCall(
  tracee: Tracee,
  at: number,
  call: { nr: number; args: readonly number[] },
): number {
  const regs = tracee.registers();
  regs.set("rip", at).set("rax", call.nr).set("orig_rax", -1n);
  const names = ["rdi", "rsi", "rdx", "r10", "r8", "r9"] as const;
  names.forEach((name, index) => regs.set(name, call.args[index] ?? 0));
  tracee.setRegisters(regs);
  tracee.setSignalMask(SIGSET_FULL);
  startCaughtCall(tracee);
  return finishCaughtCall(tracee);
}

/** First half of a caught call: to the entry of the system call. */
export function startCaughtCall(tracee: Tracee): void {
  tracee.resume({ toSyscall: true });
}

/** Second half: over the entry stop to the exit stop; returns the call's result. */
export function finishCaughtCall(tracee: Tracee): number {
  waitForSyscallStop(tracee);
  tracee.resume({ toSyscall: true });
  waitForSyscallStop(tracee);
  return tracee.registers().getNumber("rax");
}

/** A call as the kernel gets it. */
export interface PlainCall {
  readonly call: number;
  /** The first four arguments. */
  readonly given: readonly [bigint, bigint, bigint, bigint];
}

/**
 * Lets a thread that stands in the interpreter's code at `code` make a call that is interrupted as soon as it waits. The thread is left at
 * the call's exit; the stop of the interrupt comes if it runs on.
 *
 * @returns the call's result
 */
export function runInterruptedCall(tracee: Tracee, code: number, what: PlainCall): number {
  const { call, given } = what;
  const [first, second, third, fourth] = given;
  const regs = tracee.registers();
  regs
    .set("rip", code + label("single"))
    .set("rax", call)
    .set("orig_rax", -1n);
  regs.set("rdi", first).set("rsi", second).set("rdx", third).set("r10", fourth);
  tracee.setRegisters(regs);
  startCaughtCall(tracee);
  waitForSyscallStop(tracee);
  tracee.interrupt();
  tracee.resume({ toSyscall: true });
  waitForSyscallStop(tracee);
  return tracee.registers().getNumber("rax");
}

function waitForSyscallStop(tracee: Tracee): void {
  for (;;) {
    const status = tracee.wait();
    if (status.kind === "syscall") return;
    if (status.kind === "exited" || status.kind === "killed") throw taskDied(tracee, status);
    if (status.kind === "signal") {
      logHeldSignal(tracee, status.signal);
      tracee.heldSignals.push(status.signal);
    }
    tracee.resume({ toSyscall: true });
  }
}
