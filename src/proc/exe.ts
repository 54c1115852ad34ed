// /proc/PID/exe: the program that a process runs; see proc_pid_exe(5). Kernel threads and zombies have none.
import { readLinkedFile, type LinkedFile } from "./links.ts";
import { undefinedIfGone, undefinedIfUnsupported } from "./procfs.ts";

/** Program of a process; undefined when it has none. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readExe(pid: number): LinkedFile | undefined {
  return undefinedIfUnsupported(() => readLinkedFile(pid, "exe"));
}

/** Like readExe; undefined also when the process is gone. */
export function readExeIfAlive(pid: number): LinkedFile | undefined {
  return undefinedIfGone(() => readExe(pid));
}
