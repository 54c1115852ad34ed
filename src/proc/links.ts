// /proc/PID/exe, cwd, root and map_files/START-END: links that name a file and, followed, lead to that very
// file even when its name is gone or means another file by now; see proc_pid_exe(5) and
// proc_pid_map_files(5). Following map_files needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
import type { PlainStat } from "../sys/files.ts";
import { procPath, readProcLink, readProcStat, undefinedIfUnsupported } from "./procfs.ts";

/** What stat says about the file behind a link. */
export type FileStat = PlainStat;

/** A link's text, as the kernel says it (` (deleted)` included), and the file behind it. */
export interface LinkedFile {
  readonly target: string;
  readonly stat: FileStat;
}

/** A memory area, by its addresses. */
export interface MapRange {
  readonly start: number;
  readonly end: number;
}

/** Working directory. Throws NO_SUCH_PROCESS, NOT_PERMITTED, KERNEL_FEATURE (zombie) or SYSCALL. */
export function readCwd(pid: number): LinkedFile {
  return readLinkedFile(pid, "cwd");
}

/** Root directory. Throws as readCwd does. */
export function readRoot(pid: number): LinkedFile {
  return readLinkedFile(pid, "root");
}

/** File of a mapping; undefined when no file is mapped there. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readMapFile(pid: number, range: MapRange): LinkedFile | undefined {
  return undefinedIfUnsupported(() => readLinkedFile(pid, mapFileName(range)));
}

/** Path through which the file of a mapping can be opened, valid while the mapping is there. */
export function mapFilePath(pid: number, range: MapRange): string {
  return procPath(pid, mapFileName(range));
}

/** Path through which the file behind a descriptor can be opened or examined. */
export function fdPath(pid: number, fd: number): string {
  return procPath(pid, `fd/${fd}`);
}

/** Stat of the file behind a descriptor. Throws NO_SUCH_PROCESS, NOT_PERMITTED, KERNEL_FEATURE (closed) or SYSCALL. */
export function readFdStat(pid: number, fd: number): FileStat {
  return readProcStat(pid, `fd/${fd}`);
}

/** Reads and follows a link /proc/PID/NAME. Throws as readCwd does. */
export function readLinkedFile(pid: number, name: string): LinkedFile {
  return { target: readProcLink(pid, name), stat: readProcStat(pid, name) };
}

/** Major number of a device as stat(2) gives it. */
export function deviceMajor(dev: bigint): number {
  return Number(((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xffff_f000n));
}

/** Minor number of a device as stat(2) gives it. */
export function deviceMinor(dev: bigint): number {
  return Number((dev & 0xffn) | ((dev >> 12n) & 0xffff_ff00n));
}

/** Lower-case hexadecimal without leading zeros: the kernel refuses any other spelling. */
function mapFileName({ start, end }: MapRange): string {
  return `map_files/${start.toString(16)}-${end.toString(16)}`;
}
