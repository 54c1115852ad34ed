// /proc/PID/autogroup: the scheduler's group of the task's session and its nice value; see sched(7). The file
// comes with CONFIG_SCHED_AUTOGROUP and is empty for a task that has no such group.
import { readShortProcTextIfSupported } from "./procfs.ts";

export interface Autogroup {
  readonly id: number;
  /** -20 to 19. */
  readonly nice: number;
}

/** Autogroup of a process; undefined when there is none. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readAutogroup(pid: number): Autogroup | undefined {
  const text = readShortProcTextIfSupported(pid, "autogroup");
  return text === undefined ? undefined : parseAutogroup(text);
}

/** Parses `/autogroup-10 nice 0`. */
export function parseAutogroup(text: string): Autogroup | undefined {
  const match = /^\/autogroup-(\d+) nice (-?\d+)/.exec(text);
  return match === null ? undefined : { id: Number(match[1]), nice: Number(match[2]) };
}
