// /proc/TID/timerslack_ns: how much later than asked a thread's timers may fire, in nanoseconds; see
// PR_SET_TIMERSLACK(2const). The file is below /proc/TID alone, not below /proc/PID/task, and any thread's
// id names its directory there. Reading another's needs CAP_SYS_NICE.
import { readShortProcTextIfSupported } from "./procfs.ts";

/** Timer slack of a thread in nanoseconds; undefined when the kernel has no such file. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readTimerslack(tid: number): bigint | undefined {
  const text = readShortProcTextIfSupported(tid, "timerslack_ns");
  return text === undefined ? undefined : BigInt(text.trim());
}
