// /proc/PID/mountinfo: the mounts of the process's mount namespace below its root directory, one a line; see
// proc_pid_mountinfo(5). Blank, tab, newline and backslash in names are written in octal (and `#` in sources).
// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
import { unescapeOctal } from "./escapes.ts";
import { readProcText, undefinedIfGone } from "./procfs.ts";

/** One mount. */
export interface Mount {
  readonly mntId: number;
  readonly parentId: number;
  readonly devMajor: number;
  readonly devMinor: number;
  /** Directory of the file system that is the root of this mount; ends in `//deleted` when it was removed. */
  readonly root: string;
  /** Where it is mounted, seen from the process's root. */
  readonly mountPoint: string;
  /** Per-mount options: `rw`, `nosuid`, `relatime`, … */
  readonly options: readonly string[];
  /** Peer group (`shared:N`). */
  readonly shared: number | undefined;
  /** Peer group that it is a slave of (`master:N`). */
  readonly master: number | undefined;
  /** Nearest dominant peer group under the process's root. */
  readonly propagateFrom: number | undefined;
  readonly unbindable: boolean;
  /** Optional fields not named above. */
  readonly otherFields: readonly string[];
  /** With a subtype: `fuse.sshfs`. */
  readonly fsType: string;
  readonly source: string;
  /** Per-superblock options, split at commas; `\` escapes in them are undone. */
  readonly superOptions: readonly string[];
}

/** Mounts of a process, in the kernel's order. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL (EINVAL: zombie). */
export function readMountinfo(pid: number): Mount[] {
  return parseMountinfo(readProcText(pid, "mountinfo"));
}

/** Like readMountinfo; undefined when the process is gone. */
export function readMountinfoIfAlive(pid: number): Mount[] | undefined {
  return undefinedIfGone(() => readMountinfo(pid));
}

/** The mounts by their ids, as fdinfo's mnt_id names them. */
export function mountsById(mounts: Iterable<Mount>): Map<number, Mount> {
  const byId = new Map<number, Mount>();
  for (const mount of mounts) byId.set(mount.mntId, mount);
  return byId;
}

/** Parses the text of a mountinfo file; lines without the separator are skipped. */
export function parseMountinfo(text: string): Mount[] {
  const mounts: Mount[] = [];
  for (const line of text.split("\n")) {
    const mount = parseMount(line);
    if (mount !== undefined) mounts.push(mount);
  }
  return mounts;
}

const ESCAPED = " \t\n\\#";

function parseMount(line: string): Mount | undefined {
  const words = line.split(" ");
  const separator = words.indexOf("-", 6);
  if (separator < 0) return undefined;
  const word = (index: number): string => words[index] ?? "";
  const name = (index: number): string => unescapeOctal(word(index), ESCAPED);
  const [major, minor] = word(2).split(":");
  const optional = words.slice(6, separator);
  const group = (tag: string): number | undefined => {
    const field = optional.find((candidate) => candidate.startsWith(`${tag}:`));
    return field === undefined ? undefined : Number(field.slice(tag.length + 1));
  };
  return {
    mntId: Number(word(0)),
    parentId: Number(word(1)),
    devMajor: Number(major),
    devMinor: Number(minor),
    root: name(3),
    mountPoint: name(4),
    options: word(5).split(","),
    shared: group("shared"),
    master: group("master"),
    propagateFrom: group("propagate_from"),
    unbindable: optional.includes("unbindable"),
    otherFields: optional.filter(
      (field) => !/^(?:(?:shared|master|propagate_from):|unbindable$)/.test(field),
    ),
    fsType: name(separator + 1),
    source: name(separator + 2),
    superOptions: word(separator + 3)
      .split(",")
      .map((option) => unescapeOctal(option, ESCAPED)),
  };
}
