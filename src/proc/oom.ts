// /proc/PID/oom_score_adj: how the out-of-memory killer weighs a process, -1000 (never) to 1000; see
// proc_pid_oom_score_adj(5). Shared by all that share the memory.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** Adjustment of a process, -1000 to 1000. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readOomScoreAdj(pid: number): number {
  return Number.parseInt(readShortProcText(pid, "oom_score_adj"), 10);
}

/** Like readOomScoreAdj; undefined when the process is gone. */
export function readOomScoreAdjIfAlive(pid: number): number | undefined {
  return undefinedIfGone(() => readOomScoreAdj(pid));
}
