// Whether a thread slept all the time between two looks: /proc/PID/task/TID/syscall tells in which system call it is blocked, with
// which arguments, stack pointer and instruction pointer, and status counts how often it gave up the processor. See
// proc_pid_syscall(5), proc_pid_status(5).

import { RepriseError } from "../errors.ts";
import { readShortProcText, undefinedIfGone, undefinedIfUnsupported } from "./procfs.ts";

/** A thread that is blocked in a system call. */
export interface Sleep {
  readonly call: number;
  /** The six arguments, then stack and instruction pointer. */
  readonly words: readonly bigint[];
  /** Times that it has given up the processor by itself. */
  readonly switches: number;
}

/** The sleep of a thread; undefined when it runs, is blocked in no system call, is gone, or may not be looked at. */
export function readSleep(pid: number, tid: number): Sleep | undefined {
  const switches = readSwitches(pid, tid);
  const text = readCall(pid, tid);
  if (text === undefined || switches === undefined) return undefined;
  const parsed = parseSyscall(text);
  return parsed === undefined ? undefined : { ...parsed, switches };
}

/** It takes the right to trace the thread. */
function readCall(pid: number, tid: number): string | undefined {
  try {
    return undefinedIfGone(() =>
      undefinedIfUnsupported(() => readShortProcText(pid, `task/${tid}/syscall`)),
    );
  } catch (error) {
    if (error instanceof RepriseError && error.code === "NOT_PERMITTED") return undefined;
    throw error;
  }
}

/** How often a thread has given up the processor by itself; undefined when it is gone. */
export function readSwitches(pid: number, tid: number): number | undefined {
  const text = undefinedIfGone(() => readShortProcText(pid, `task/${tid}/status`));
  const match = /^voluntary_ctxt_switches:\s*(\d+)/m.exec(text ?? "");
  return match === null ? undefined : Number(match[1]);
}

/** Parses the text of a syscall file; undefined unless it is about a blocked system call. */
export function parseSyscall(text: string): Omit<Sleep, "switches"> | undefined {
  const [call = "", ...words] = text.trim().split(" ");
  if (!/^\d+$/.test(call) || words.length !== SYSCALL_WORDS) return undefined;
  return { call: Number(call), words: words.map(BigInt) };
}

const SYSCALL_WORDS = 8;
