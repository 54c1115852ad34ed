// /proc/PID/task: the threads of a process. The list is a moment's view: threads come and go unless the
// process is stopped, so freezing reads it again until nothing new shows up.
import { readdirSync } from "node:fs";
import { readProcDir, undefinedIfGone } from "./procfs.ts";

/** Pids of all processes that a mounted proc file system shows, ascending. */
export function readPids(proc = "/proc"): number[] {
  return readdirSync(proc)
    .filter((name) => /^[1-9]/.test(name))
    .map(Number)
    .sort((a, b) => a - b);
}

/** Thread ids of a process, ascending; the leader's is the pid. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readTasks(pid: number): number[] {
  return readProcDir(pid, "task")
    .map(Number)
    .sort((a, b) => a - b);
}

/** Like readTasks; undefined when the process is gone. */
export function readTasksIfAlive(pid: number): number[] | undefined {
  return undefinedIfGone(() => readTasks(pid));
}
