// Memory devices: /dev/null, zero, full, random, urandom and the log of the kernel, see mem(4) and null(4).

import type { FileStat } from "../../proc/links.ts";
import { S_IFCHR, S_IFMT } from "../../sys/abi/fcntl.ts";

export const MEM_MAJOR = 1;
export const KMSG_MINOR = 11;

/** /dev/null and its like, but no log of the kernel: what their names say, and nothing else. */
export function isPlainDevice({
  mode,
  rdevMajor,
  rdevMinor,
}: Pick<FileStat, "mode" | "rdevMajor" | "rdevMinor">): boolean {
  return (mode & S_IFMT) === S_IFCHR && rdevMajor === MEM_MAJOR && rdevMinor !== KMSG_MINOR;
}
