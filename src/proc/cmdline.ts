// /proc/PID/cmdline: the argument strings, each ended by NUL, as they lie in the memory of the process,
// which may have overwritten them; see proc_pid_cmdline(5).
import { readProcText, undefinedIfGone } from "./procfs.ts";

/** Arguments of a process; empty for zombies and kernel threads. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readCmdline(pid: number): string[] {
  return parseCmdline(readProcText(pid, "cmdline"));
}

/** Like readCmdline; undefined when the process is gone. */
export function readCmdlineIfAlive(pid: number): string[] | undefined {
  return undefinedIfGone(() => readCmdline(pid));
}

/** Splits at the NULs; a missing last NUL (a title set by the process) does no harm. */
export function parseCmdline(text: string): string[] {
  if (text === "") return [];
  return (text.endsWith("\0") ? text.slice(0, -1) : text).split("\0");
}
