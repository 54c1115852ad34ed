// Counting how often a thread executes an instruction, without stopping it: a hardware breakpoint of perf_event_open(2), which
// is there in most virtual machines, too. The thread does not notice; when the descriptor is closed, or we die, it is gone. A
// machine that pretends to have breakpoints (some hypervisors keep the debug registers of confidential guests to themselves) would
// count nothing, so one has to count an instruction of ours first.

import { closeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import {
  AT_BP_ADDR,
  AT_BP_LEN,
  AT_BP_TYPE,
  AT_CONFIG,
  AT_FLAGS,
  ATTR_SIZE,
  EXECUTION_LENGTH,
  HW_BREAKPOINT_X,
  PERF_COUNT_SW_DUMMY,
  PERF_FLAG_FD_CLOEXEC,
  PERF_TYPE_BREAKPOINT,
  PERF_TYPE_SOFTWARE,
  USER_ONLY,
} from "../sys/abi/perf-event.ts";
import { callNative, syscall, syscallInBackground, trySyscall } from "../sys/ffi.ts";
import { readU64, writeU64 } from "../sys/memory.ts";
import { RETURN } from "./arch/x86_64/code.ts";
import { loadCode } from "./local.ts";

/**
 * Has the kernel prepare for counters of threads. Where there is none yet in the whole machine, the first one waits for a grace
 * period of RCU, 10 to 30 ms (account_event in kernel/events/core.c); so an event that counts nothing is made on another thread. As
 * long as it is open, and for a second after that, counters are made at once.
 *
 * @returns resolves with its descriptor, or a negative number
 */
export function prepareCounting(): Promise<number> {
  const attr = Buffer.alloc(ATTR_SIZE);
  attr.writeUInt32LE(PERF_TYPE_SOFTWARE, 0);
  attr.writeUInt32LE(ATTR_SIZE, 4);
  attr.writeUInt32LE(PERF_COUNT_SW_DUMMY, AT_CONFIG);
  writeU64(attr, AT_FLAGS, USER_ONLY);
  // The kernel knows it by its address only: it must be there until then.
  return syscallInBackground(
    "perf_event_open",
    attr,
    THIS_THREAD,
    -1,
    -1,
    PERF_FLAG_FD_CLOEXEC,
  ).finally(() => attr.length);
}

export class ExecutionCounter {
  readonly #fd: number;

  /** Undefined where the kernel or the processor does not give one: all debug registers are taken, say. */
  static of(tid: number, address: number): ExecutionCounter | undefined {
    isCounting ??= ExecutionCounter.#counts();
    return isCounting ? ExecutionCounter.#open(tid, address) : undefined;
  }

  /** Whether instructions that this thread executes are counted. */
  static #counts(): boolean {
    try {
      const code = loadCode(RETURN);
      const counter = ExecutionCounter.#open(THIS_THREAD, code);
      if (counter === undefined) return false;
      for (let call = 0; call < PROOFS; call++) callNative(code, 0, 0, 0);
      const count = counter.count();
      counter.close();
      if (count !== PROOFS)
        log.debug(`nothing is done ahead: of ${PROOFS} executions ${count} were counted`);
      return count === PROOFS;
    } catch (error) {
      if (!(error instanceof RepriseError)) throw error;
      log.debug(`nothing is done ahead: ${error.message}`);
      return false;
    }
  }

  static #open(tid: number, address: number): ExecutionCounter | undefined {
    const attr = Buffer.alloc(ATTR_SIZE);
    attr.writeUInt32LE(PERF_TYPE_BREAKPOINT, 0);
    attr.writeUInt32LE(ATTR_SIZE, 4);
    writeU64(attr, AT_FLAGS, USER_ONLY);
    attr.writeUInt32LE(HW_BREAKPOINT_X, AT_BP_TYPE);
    writeU64(attr, AT_BP_ADDR, address);
    writeU64(attr, AT_BP_LEN, EXECUTION_LENGTH);
    const fd = trySyscall("perf_event_open", attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? undefined : new ExecutionCounter(fd);
  }

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Executions since it was made. */
  count(): number {
    const value = Buffer.alloc(8);
    syscall("read", this.#fd, value, value.length);
    return readU64(value, 0);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

let isCounting: boolean | undefined;

const PROOFS = 2;
const THIS_THREAD = 0;
