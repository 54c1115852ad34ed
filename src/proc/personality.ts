// /proc/PID/personality and /proc/PID/task/TID/personality: the execution domain as eight hexadecimal digits;
// see personality(2). Reading needs ptrace access.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** Personality of a process (of its leader). Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readPersonality(pid: number): number {
  return Number.parseInt(readShortProcText(pid, "personality"), 16);
}

/** Like readPersonality; undefined when the process is gone. */
export function readPersonalityIfAlive(pid: number): number | undefined {
  return undefinedIfGone(() => readPersonality(pid));
}

/** Personality of one thread. Throws as readPersonality does. */
export function readThreadPersonality(pid: number, tid: number): number {
  return Number.parseInt(readShortProcText(pid, `task/${tid}/personality`), 16);
}
