// /proc/PID/fd: the open descriptors of a process; each entry is a link whose text names what is open:
// a path (perhaps with ` (deleted)`), `socket:[inode]`, `pipe:[inode]`, `anon_inode:[eventfd]` and so on.
// See proc_pid_fd(5). Reading a link's text needs ptrace access to the process.
import { statSync } from "node:fs";
import { readProcDir, readProcLink, undefinedIfGone, undefinedIfUnsupported } from "./procfs.ts";

/** One open descriptor. */
export interface FdLink {
  readonly fd: number;
  /** The link's text, as the kernel says it. */
  readonly target: string;
}

/**
 * Descriptors of a process, ascending; empty for kernel threads and zombies. One that is closed meanwhile is
 * left out. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL.
 */
export function readFds(pid: number): FdLink[] {
  const links: FdLink[] = [];
  for (const fd of readFdNumbers(pid)) {
    const target = undefinedIfUnsupported(() => readProcLink(pid, `fd/${fd}`));
    if (target !== undefined) links.push({ fd, target });
  }
  return links;
}

/** Like readFds; undefined when the process is gone. */
export function readFdsIfAlive(pid: number): FdLink[] | undefined {
  return undefinedIfGone(() => readFds(pid));
}

/** Descriptor numbers of a process, ascending. Throws as readFds does. */
export function readFdNumbers(pid: number): number[] {
  return readProcDir(pid, "fd")
    .map(Number)
    .sort((a, b) => a - b);
}

/**
 * How many descriptors a process has: the size of the directory since Linux 6.2 (proc_pid_fd(5)).
 *
 * @param atMost what is told of an older kernel or of a process that is gone: the size of its table, say
 */
export function countFds(pid: number, atMost: number): number {
  const size = statSync(`/proc/${pid}/fd`, { throwIfNoEntry: false })?.size ?? 0;
  return size === 0 ? atMost : size;
}
