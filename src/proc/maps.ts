// /proc/PID/maps: the memory areas (VMAs) of a process, one a line, in address order; see proc_pid_maps(5)
// and show_map_vma in fs/proc/task_mmu.c. The same line heads each block of /proc/PID/smaps. The kernel
// pads the line to a column before the name, and a name may hold blanks; only a newline is escaped.
import { unescapeOctal } from "./escapes.ts";
import { readProcText, undefinedIfGone } from "./procfs.ts";

/** One memory area, as its line in maps says it. */
export interface MapsVma {
  /** First address. */
  readonly start: number;
  /** Address behind the last byte. */
  readonly end: number;
  readonly read: boolean;
  readonly write: boolean;
  readonly exec: boolean;
  /** Shared mapping ('s'); private and copy-on-write otherwise. */
  readonly shared: boolean;
  /** Offset in the file, in bytes. A file offset above 2^53 is rounded. */
  readonly offset: number;
  readonly devMajor: number;
  readonly devMinor: number;
  /** 0n for anonymous memory. */
  readonly inode: bigint;
  /** As the kernel says it, ` (deleted)` and pseudo names like `[heap]` included; "" for anonymous memory. */
  readonly path: string;
}

/** Reads the memory areas of a process. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readMaps(pid: number): MapsVma[] {
  return parseMaps(readProcText(pid, "maps"));
}

/** Like readMaps; undefined when the process is gone. */
export function readMapsIfAlive(pid: number): MapsVma[] | undefined {
  return undefinedIfGone(() => readMaps(pid));
}

/** Parses the text of /proc/PID/maps. */
export function parseMaps(text: string): MapsVma[] {
  const vmas: MapsVma[] = [];
  let at = 0;
  while (at < text.length) {
    let eol = text.indexOf("\n", at);
    if (eol < 0) eol = text.length;
    vmas.push(parseMapsHeader(text, { from: at, to: eol }));
    at = eol + 1;
  }
  return vmas;
}

/** Parses one line of maps, the characters `from` to `to` (exclusive) of the text. */
export function parseMapsHeader(
  text: string,
  range: { readonly from: number; readonly to: number },
): MapsVma {
  const { from, to } = range;
  const dash = text.indexOf("-", from);
  const perms = text.indexOf(" ", dash) + 1;
  const offset = perms + 5;
  const device = text.indexOf(" ", offset) + 1;
  const colon = text.indexOf(":", device);
  const inode = text.indexOf(" ", colon) + 1;
  let inodeEnd = text.indexOf(" ", inode);
  if (inodeEnd < 0 || inodeEnd > to) inodeEnd = to;
  let name = inodeEnd;
  while (name < to && text.charCodeAt(name) === 0x20) name++;
  return {
    start: Number.parseInt(text.slice(from, dash), 16),
    end: Number.parseInt(text.slice(dash + 1, perms - 1), 16),
    read: text[perms] === "r",
    write: text[perms + 1] === "w",
    exec: text[perms + 2] === "x",
    shared: text[perms + 3] === "s",
    offset: Number.parseInt(text.slice(offset, device - 1), 16),
    devMajor: Number.parseInt(text.slice(device, colon), 16),
    devMinor: Number.parseInt(text.slice(colon + 1, inode - 1), 16),
    inode: BigInt(text.slice(inode, inodeEnd)),
    path: unescapeOctal(text.slice(name, to), "\n"),
  };
}
