// /proc/PID/coredump_filter: which kinds of memory a core dump holds, a hexadecimal mask; see core(5).
// A task without memory (kernel thread, zombie) has an empty file; CONFIG_ELF_CORE brings the file.
import { readShortProcTextIfSupported } from "./procfs.ts";

/** The mask; undefined when the task has no memory or the kernel no such file. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readCoredumpFilter(pid: number): number | undefined {
  const text = readShortProcTextIfSupported(pid, "coredump_filter");
  return text === undefined ? undefined : parseCoredumpFilter(text);
}

/** Parses the text of the file. */
export function parseCoredumpFilter(text: string): number | undefined {
  const mask = Number.parseInt(text, 16);
  return Number.isNaN(mask) ? undefined : mask;
}
