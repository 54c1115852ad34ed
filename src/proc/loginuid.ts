// /proc/PID/loginuid: the audit user id that login set, inherited by children; the file comes with CONFIG_AUDIT.
import { readShortProcTextIfSupported } from "./procfs.ts";

/** The id that means "never set". */
export const LOGINUID_UNSET = 0xffff_ffff;

/** Login uid of a process (LOGINUID_UNSET when never set); undefined when the kernel has none. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readLoginuid(pid: number): number | undefined {
  const text = readShortProcTextIfSupported(pid, "loginuid");
  return text === undefined ? undefined : Number.parseInt(text, 10);
}
