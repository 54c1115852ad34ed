// One traced thread: seizing, stopping, waiting, registers, mask. Every stop that is waited for is counted.

import { assert, RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { readStatIfAlive, readThreadStatIfAlive } from "../proc/stat.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import * as pt from "../sys/abi/ptrace.ts";
import { SIGINFO_SIZE, SIGSET_SIZE, SIGTRAP, signalName } from "../sys/abi/signal.ts";
import { EIO, EPERM, ESRCH, errnoName } from "../sys/errno.ts";
import { addressOf, trySyscall } from "../sys/ffi.ts";
import { iovecs, readU64 } from "../sys/memory.ts";
import { waitAwake, waitPatiently } from "../sys/process.ts";
import { REGISTERS_SIZE, Registers } from "./arch/x86_64/registers.ts";
import { describeWaitStatus, waitStatus, type WaitStatus } from "./wait-status.ts";

/** Largest extended state that any x86-64 CPU has today (AMX tiles included), with room. */
const XSTATE_MAX = 16384;

/**
 * What goes to the kernel and comes from it, with the addresses: thousands of threads are looked at, and making a buffer, or asking for
 * its address, takes longer than the call. A register set is smaller than there is room for.
 */
const regset = Buffer.alloc(XSTATE_MAX);
const regsetVector = iovecs([{ address: addressOf(regset), length: 0 }]);
const regsetVectorAt = addressOf(regsetVector);
const signalSet = Buffer.alloc(SIGSET_SIZE);
const signalSetAt = addressOf(signalSet);
const configuration = Buffer.alloc(32);
const configurationAt = addressOf(configuration);

/** Counts for the statistics: ptrace stops waited for, and system calls run by programs. */
export interface TraceCounters {
  stops: number;
  remoteCalls: number;
}

/** A seccomp filter: its sock_filter instructions, and SECCOMP_FILTER_FLAG_LOG or 0. */
export interface SeccompProgram {
  readonly instructions: Uint8Array;
  readonly flags: number;
}

/** struct sock_filter. */
const SOCK_FILTER_SIZE = 8;

/** struct ptrace_sud_config. */
export interface DispatchConfiguration {
  readonly mode: bigint;
  readonly selector: bigint;
  readonly offset: bigint;
  readonly length: bigint;
}

/** A thread under ptrace; ids are of the engine's pid namespace. */
export class Tracee {
  readonly tid: number;
  /** Its process: the number of the first thread, or of another one where that has ended. */
  leader: number;
  readonly counters: TraceCounters;
  /** Signals that came while the thread worked for us: to be sent again when it is let go. */
  readonly heldSignals: number[] = [];
  /** A SIGCONT was pending (blocked) when the thread was stopped. */
  continuePending = false;

  constructor(tid: number, leader: number, counters: TraceCounters) {
    this.tid = tid;
    this.leader = leader;
    this.counters = counters;
  }

  /**
   * PTRACE_SEIZE. Seccomp filters are suspended while traced where the kernel allows that.
   *
   * @returns false when the thread is gone.
   * @throws RepriseError NOT_PERMITTED when it may not be traced, or is traced already.
   */
  seize(options: number): boolean {
    let result = trySyscall(
      "ptrace",
      pt.PTRACE_SEIZE,
      this.tid,
      0,
      options | pt.PTRACE_O_SUSPEND_SECCOMP,
    );
    if (result === -EPERM || result === -EIO) {
      result = trySyscall("ptrace", pt.PTRACE_SEIZE, this.tid, 0, options);
    }
    if (result === -ESRCH || (result === -EPERM && hasEnded(this.leader, this.tid))) return false;
    if (result < 0) {
      const tracer = readStatusIfAlive(this.leader)?.tracerPid ?? 0;
      if (tracer !== 0) throw isTraced(this.leader, tracer);
      throw new RepriseError(
        "NOT_PERMITTED",
        `cannot stop pid ${this.leader} (thread ${this.tid}): ptrace(PTRACE_SEIZE): ${errnoName(-result)}`,
        {
          pid: this.leader,
          syscall: "ptrace",
          errno: errnoName(-result),
          hint: "You may lack the rights: run as root.",
        },
      );
    }
    return true;
  }

  /** PTRACE_INTERRUPT; the stop comes by `wait`. */
  interrupt(): void {
    trySyscall("ptrace", pt.PTRACE_INTERRUPT, this.tid, 0, 0);
  }

  /** Waits for the next stop or end of this thread; `impatient` is told how long it takes, and may throw. */
  wait(impatient?: (ms: number) => void): WaitStatus {
    const result =
      impatient === undefined ? waitAwake(this.tid) : waitPatiently(this.tid, impatient);
    if (result === undefined) return { kind: "killed", signal: 9 };
    this.counters.stops += 1;
    return waitStatus(result.status);
  }

  /**
   * Waits for the stop of an interrupt. Signals that were on their way are delivered first, as without us.
   *
   * @returns the group stop's signal when the thread was stopped by job control already (0 when not), or undefined when
   * the thread ended.
   */
  waitInterrupted(impatient?: (ms: number) => void): number | undefined {
    for (;;) {
      const status = this.wait(impatient);
      switch (status.kind) {
        case "event-stop":
          return status.signal === SIGTRAP ? 0 : status.signal;
        case "signal":
          this.#resume(pt.PTRACE_CONT, status.signal);
          break;
        case "syscall":
        case "event":
          this.#resume(pt.PTRACE_CONT, 0);
          break;
        case "exited":
        case "killed":
          return undefined;
      }
    }
  }

  /** Lets the thread run to its next stop; a signal number is delivered to it. */
  resume(options: { readonly toSyscall?: boolean; readonly signal?: number } = {}): void {
    this.#resume(
      options.toSyscall === true ? pt.PTRACE_SYSCALL : pt.PTRACE_CONT,
      options.signal ?? 0,
    );
  }

  #resume(request: number, signal: number): void {
    this.#ptrace("let it run", request, 0, signal);
  }

  /** PTRACE_DETACH; a thread that is gone already is not an error. */
  detach(signal: number = 0): void {
    const result = trySyscall("ptrace", pt.PTRACE_DETACH, this.tid, 0, signal);
    if (result < 0 && result !== -ESRCH) this.#fail("let it go", result);
  }

  setOptions(options: number): void {
    this.#ptrace("set the options", pt.PTRACE_SETOPTIONS, 0, options);
  }

  registers(): Registers {
    // It copies them.
    return new Registers(this.#readRegset(pt.NT_PRSTATUS, REGISTERS_SIZE));
  }

  setRegisters(regs: Registers): void {
    this.#setRegset(pt.NT_PRSTATUS, regs.bytes);
  }

  /** The whole extended state in the XSAVE layout, as long as this CPU and task have it. */
  extendedState(): Buffer {
    return Buffer.from(this.#readRegset(pt.NT_X86_XSTATE, XSTATE_MAX));
  }

  setExtendedState(state: Uint8Array): void {
    this.#setRegset(pt.NT_X86_XSTATE, state);
  }

  signalMask(): bigint {
    this.#ptrace("read the signal mask", pt.PTRACE_GETSIGMASK, SIGSET_SIZE, signalSetAt);
    return signalSet.readBigUInt64LE(0);
  }

  setSignalMask(mask: bigint): void {
    signalSet.writeBigUInt64LE(mask);
    this.#ptrace("set the signal mask", pt.PTRACE_SETSIGMASK, SIGSET_SIZE, signalSetAt);
  }

  /**
   * The pending signals of the thread, or of the whole process, as raw siginfo in queue order; `until` ends the list before a signal. It
   * takes the square of their number: see objects/task/long-queues.ts.
   */
  pendingSignals(
    queue: "thread" | "process",
    { until }: { readonly until?: (siginfo: Buffer) => boolean } = {},
  ): Buffer[] {
    const signals: Buffer[] = [];
    for (;;) {
      const count = this.#peekSignals(queue, { from: signals.length, count: PEEK_BATCH });
      for (let i = 0; i < count; i++) {
        const siginfo = Buffer.from(peeked.subarray(i * SIGINFO_SIZE, (i + 1) * SIGINFO_SIZE));
        if (until?.(siginfo) === true) return signals;
        signals.push(siginfo);
      }
      if (count < PEEK_BATCH) return signals;
    }
  }

  /** Whether a queue of pending signals has one at an index. */
  hasPending(queue: "thread" | "process", index: number): boolean {
    return this.#peekSignals(queue, { from: index, count: 1 }) === 1;
  }

  #peekSignals(
    queue: "thread" | "process",
    { from, count }: { readonly from: number; readonly count: number },
  ): number {
    peekArguments.writeBigUInt64LE(BigInt(from), 0);
    peekArguments.writeUInt32LE(queue === "process" ? pt.PTRACE_PEEKSIGINFO_SHARED : 0, 8);
    peekArguments.writeInt32LE(count, 12);
    return this.#ptrace(
      "read the pending signals",
      pt.PTRACE_PEEKSIGINFO,
      peekArgumentsAt,
      peekedAt,
    );
  }

  /** struct ptrace_rseq_configuration, or undefined on kernels without it. */
  rseqConfiguration():
    | { pointer: number; size: number; signature: number; flags: number }
    | undefined {
    const conf = configuration;
    const result = trySyscall(
      "ptrace",
      pt.PTRACE_GET_RSEQ_CONFIGURATION,
      this.tid,
      pt.RSEQ_CONFIGURATION_SIZE,
      configurationAt,
    );
    if (result < 0) return undefined;
    return {
      pointer: readU64(conf, 0),
      size: conf.readUInt32LE(8),
      signature: conf.readUInt32LE(12),
      flags: conf.readUInt32LE(16),
    };
  }

  /** A seccomp filter of the thread, 0 being its oldest; undefined when there are no more, or the kernel does not tell. */
  seccompFilter(index: number): SeccompProgram | undefined {
    const { tid } = this;
    const length = trySyscall("ptrace", pt.PTRACE_SECCOMP_GET_FILTER, tid, index, 0);
    if (length < 0) return undefined;
    const instructions = Buffer.alloc(length * SOCK_FILTER_SIZE);
    this.#ptrace("read a seccomp filter", pt.PTRACE_SECCOMP_GET_FILTER, index, instructions);
    const metadata = Buffer.alloc(16);
    metadata.writeBigUInt64LE(BigInt(index), 0);
    const told = trySyscall("ptrace", pt.PTRACE_SECCOMP_GET_METADATA, tid, 16, metadata);
    return { instructions, flags: told < 0 ? 0 : metadata.readUInt32LE(8) };
  }

  /** Syscall User Dispatch, where it is on: calls are sent to the program's own handler. */
  syscallUserDispatch(): DispatchConfiguration | undefined {
    const result = trySyscall(
      "ptrace",
      pt.PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
      this.tid,
      configuration.length,
      configurationAt,
    );
    if (result < 0 || configuration.readUInt32LE(0) === 0) return undefined;
    const [mode, selector, offset, length] = [0, 8, 16, 24].map((at) =>
      configuration.readBigUInt64LE(at),
    ) as [bigint, bigint, bigint, bigint];
    return { mode, selector, offset, length };
  }

  setSyscallUserDispatch({ mode, selector, offset, length }: DispatchConfiguration): void {
    const words = Buffer.from(BigUint64Array.of(mode, selector, offset, length).buffer);
    const request = pt.PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG;
    this.#ptrace("set Syscall User Dispatch", request, pt.SUD_CONFIG_SIZE, words);
  }

  /** Good until the next is read or set. */
  #readRegset(type: number, size: number): Buffer {
    regsetVector.writeUInt32LE(size, LENGTH);
    this.#ptrace("read the registers", pt.PTRACE_GETREGSET, type, regsetVectorAt);
    return regset.subarray(0, regsetVector.readUInt32LE(LENGTH));
  }

  #setRegset(type: number, bytes: Uint8Array): void {
    assert(bytes.length > 0 && bytes.length <= regset.length, "a register set of no known size");
    regset.set(bytes);
    regsetVector.writeUInt32LE(bytes.length, LENGTH);
    this.#ptrace("set the registers", pt.PTRACE_SETREGSET, type, regsetVectorAt);
  }

  #ptrace(doing: string, request: number, address: number, data: number | Uint8Array): number {
    const result = trySyscall("ptrace", request, this.tid, address, data);
    if (result < 0) this.#fail(doing, result);
    return result;
  }

  #fail(doing: string, result: number): never {
    if (result === -ESRCH) throw taskDied(this, "is gone");
    throw new RepriseError(
      "SYSCALL",
      `cannot ${doing} of pid ${this.leader} (thread ${this.tid}): ptrace: ${errnoName(-result)}`,
      {
        pid: this.leader,
        syscall: "ptrace",
        errno: errnoName(-result),
      },
    );
  }
}

/** Where the length stands in `regsetVector`. */
const LENGTH = 8;

const PEEK_BATCH = 32;
const peekArguments = Buffer.alloc(16);
const peekArgumentsAt = addressOf(peekArguments);
const peeked = Buffer.alloc(PEEK_BATCH * SIGINFO_SIZE);
const peekedAt = addressOf(peeked);

/** A process has one tracer. */
function isTraced(pid: number, tracer: number): RepriseError {
  const name = readStatIfAlive(tracer)?.comm;
  return new RepriseError(
    "NOT_PERMITTED",
    `cannot stop pid ${pid}: it is traced by pid ${tracer}${name === undefined ? "" : ` (${name})`}`,
    {
      pid,
      syscall: "ptrace",
      errno: "EPERM",
      hint: "Let the debugger (gdb, strace) detach, or end it, and try again.",
    },
  );
}

/** A zombie cannot be seized (EPERM), and what was alive a moment ago may be one now. */
function hasEnded(leader: number, tid: number): boolean {
  const state = readThreadStatIfAlive(leader, tid)?.state;
  return state === undefined || state === "Z" || state === "X";
}

/** The error for a thread that ended (or stopped in a way that cannot be) under our hands. */
export function taskDied(tracee: Tracee, how: string | WaitStatus): RepriseError {
  const text = typeof how === "string" ? how : describeWaitStatus(how);
  return new RepriseError(
    "TASK_DIED",
    `cannot go on with pid ${tracee.leader}: thread ${tracee.tid} ${text}`,
    {
      pid: tracee.leader,
      hint: "The process ended (or was killed) in the middle of the operation; start again if it still runs.",
    },
  );
}

/** Logs a signal that was held back; it is sent again when the thread is let go. */
export function logHeldSignal(tracee: Tracee, signal: number): void {
  log.info(`holding back ${signalName(signal)} for thread ${tracee.tid} until it goes on`);
}
