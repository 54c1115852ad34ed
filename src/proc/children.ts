// /proc/PID/task/TID/children: the children that a thread made, as pids between blanks; see proc(5).
// The list is exact only while the task is stopped, and the file exists only with CONFIG_PROC_CHILDREN;
// without it the parent pids of all processes are compared.
import { readShortProcText, undefinedIfGone, undefinedIfUnsupported } from "./procfs.ts";
import { readStatIfAlive } from "./stat.ts";
import { readPids, readTasks } from "./tasks.ts";

/** Pids of the children of all threads of a process, ascending. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readChildren(pid: number): number[] {
  const children: number[] = [];
  for (const tid of readTasks(pid)) {
    const text = undefinedIfGone(
      () => undefinedIfUnsupported(() => readShortProcText(pid, `task/${tid}/children`)) ?? null,
    );
    if (text === null) return scanForChildren(pid);
    if (text !== undefined) children.push(...parseChildren(text));
  }
  return children.sort((a, b) => a - b);
}

/** Like readChildren; undefined when the process is gone. */
export function readChildrenIfAlive(pid: number): number[] | undefined {
  return undefinedIfGone(() => readChildren(pid));
}

/** Parses the text of a children file. */
export function parseChildren(text: string): number[] {
  const trimmed = text.trim();
  return trimmed === "" ? [] : trimmed.split(" ").map(Number);
}

/** The children of a process found by the parent pid that every process names. */
export function scanForChildren(pid: number): number[] {
  return readPids().filter((candidate) => readStatIfAlive(candidate)?.ppid === pid);
}
