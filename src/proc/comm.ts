// /proc/PID/comm and /proc/PID/task/TID/comm: the name of a task, at most 15 bytes, followed by a newline.
// The name itself may hold any byte but NUL, newlines too; see proc_pid_comm(5).
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** Name of a process (of its leader). Throws NO_SUCH_PROCESS or SYSCALL. */
export function readComm(pid: number): string {
  return parseComm(readShortProcText(pid, "comm"));
}

/** Like readComm; undefined when the process is gone. */
export function readCommIfAlive(pid: number): string | undefined {
  return undefinedIfGone(() => readComm(pid));
}

/** Takes the final newline off. */
export function parseComm(text: string): string {
  return text.endsWith("\n") ? text.slice(0, -1) : text;
}
