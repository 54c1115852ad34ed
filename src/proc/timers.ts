// /proc/PID/timers: the POSIX timers of a process, four lines each; see proc_pid_timers(5) and show_timer in
// fs/proc/base.c. The file exists with CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS. It says how a timer
// notifies; its time left and interval only the process itself can ask (timer_gettime).
import { readProcText, undefinedIfGone } from "./procfs.ts";

/** How a timer tells that it expired. */
export type TimerNotify = "none" | "signal" | "thread";

/** One POSIX timer. */
export interface PosixTimer {
  readonly id: number;
  readonly signo: number;
  /** sigev_value: a pointer or an integer, in 64 bits. */
  readonly sigval: bigint;
  readonly notify: TimerNotify;
  /** Signal goes to the one thread `target` (SIGEV_THREAD_ID) and not to the process. */
  readonly toThread: boolean;
  /** Pid or tid that is told, in the reader's pid namespace; 0 when it is gone. */
  readonly target: number;
  readonly clockId: number;
}

/** POSIX timers of a process. Throws NO_SUCH_PROCESS, KERNEL_FEATURE (no such file) or SYSCALL. */
export function readTimers(pid: number): PosixTimer[] {
  return parseTimers(readProcText(pid, "timers"));
}

/** Like readTimers; undefined when the process is gone. */
export function readTimersIfAlive(pid: number): PosixTimer[] | undefined {
  return undefinedIfGone(() => readTimers(pid));
}

/** Parses the text of a timers file. */
export function parseTimers(text: string): PosixTimer[] {
  return text
    .split(/^(?=ID:)/m)
    .filter((block) => block.startsWith("ID:"))
    .map(parseTimer);
}

function parseTimer(block: string): PosixTimer {
  // Older kernels write a value of 0 as `(null)`, padded with blanks.
  const signal = /^signal: (-?\d+)\/ *([0-9a-f]+|\(null\))$/m.exec(block);
  const notify = /^notify: (\w+)\/(\w+)\.(-?\d+)$/m.exec(block);
  const sigval = signal?.[2] ?? "0";
  return {
    id: Number(/^ID: (\d+)/.exec(block)?.[1] ?? 0),
    signo: Number(signal?.[1] ?? 0),
    sigval: sigval === "(null)" ? 0n : BigInt(`0x${sigval}`),
    notify: notifyKind(notify?.[1]),
    toThread: notify?.[2] === "tid",
    target: Number(notify?.[3] ?? 0),
    clockId: Number(/^ClockID: (-?\d+)$/m.exec(block)?.[1] ?? 0),
  };
}

function notifyKind(word: string | undefined): TimerNotify {
  return word === "signal" || word === "thread" ? word : "none";
}
