// /proc/PID/task: the threads of a process. The list is a moment's view: threads come and go unless the
// process is stopped, so freezing reads it again until nothing new shows up.
import { readProcDir, undefinedIfGone } from "./procfs.ts";

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
