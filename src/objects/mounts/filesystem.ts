// File system types as the images number them (enum fstype; format.md section 13), and what can be done with each: made
// anew, with content or without, or only taken from outside. fs/*/super.c; proc_pid_mountinfo(5).

import { Fstype } from "../../images/schema/messages.generated.ts";
import type { NamespaceKind } from "../namespaces/kinds.ts";

/** Where the content of a file system comes from when it is mounted again. */
export type Content =
  /** The kernel makes it, or there is none worth keeping. */
  | "kernel"
  /** Files in memory, which go into the images. */
  | "memory"
  /** Must be empty at the dump. */
  | "empty";

export interface FileSystem {
  /** fstype of the image. */
  readonly code: number;
  /** Name for mount(2). */
  readonly name: string;
  readonly content: Content;
}

const TABLE: readonly FileSystem[] = [
  { name: "proc", code: Fstype.PROC, content: "kernel" },
  { name: "sysfs", code: Fstype.SYSFS, content: "kernel" },
  { name: "devtmpfs", code: Fstype.DEVTMPFS, content: "kernel" },
  { name: "binfmt_misc", code: Fstype.BINFMT_MISC, content: "kernel" },
  { name: "tmpfs", code: Fstype.TMPFS, content: "memory" },
  { name: "devpts", code: Fstype.DEVPTS, content: "kernel" },
  { name: "simfs", code: Fstype.SIMFS, content: "kernel" },
  { name: "pstore", code: Fstype.PSTORE, content: "empty" },
  { name: "mqueue", code: Fstype.MQUEUE, content: "empty" },
  { name: "securityfs", code: Fstype.SECURITYFS, content: "kernel" },
  { name: "fusectl", code: Fstype.FUSECTL, content: "kernel" },
  { name: "debugfs", code: Fstype.DEBUGFS, content: "kernel" },
  { name: "tracefs", code: Fstype.TRACEFS, content: "kernel" },
  { name: "cgroup", code: Fstype.CGROUP, content: "kernel" },
  { name: "cgroup2", code: Fstype.CGROUP2, content: "kernel" },
  { name: "aufs", code: Fstype.AUFS, content: "kernel" },
  { name: "overlay", code: Fstype.OVERLAYFS, content: "kernel" },
  // Its options are its automounter's: autofs.ts.
  { name: "autofs", code: Fstype.AUTOFS, content: "kernel" },
];

/** Of which the kernel has one for all, and which no user namespace but the first may mount (FS_USERNS_MOUNT). */
const ONE_FOR_ALL: ReadonlySet<number> = new Set<number>([
  Fstype.DEVTMPFS,
  Fstype.SECURITYFS,
  Fstype.DEBUGFS,
  Fstype.TRACEFS,
  Fstype.FUSECTL,
  Fstype.PSTORE,
]);

/** Those that may be mounted by who rules the namespace that they show. */
const SHOWS: ReadonlyMap<number, NamespaceKind> = new Map<number, NamespaceKind>([
  [Fstype.PROC, "pid"],
  [Fstype.SYSFS, "net"],
  [Fstype.MQUEUE, "ipc"],
  [Fstype.CGROUP, "cgroup"],
  [Fstype.CGROUP2, "cgroup"],
]);

/** Whether the root of a tree in a user namespace may not mount such a file system: one that shows what is the tree's own it may. */
export function needsOutside(
  { code }: FileSystem,
  isOwn: (kind: NamespaceKind) => boolean,
): boolean {
  const shown = SHOWS.get(code);
  return isOwn("user") && (shown === undefined ? ONE_FOR_ALL.has(code) : !isOwn(shown));
}

const BY_NAME: ReadonlyMap<string, FileSystem> = new Map(TABLE.map((type) => [type.name, type]));
const BY_CODE: ReadonlyMap<number, FileSystem> = new Map(TABLE.map((type) => [type.code, type]));

/** Types that exist but can neither be saved nor made: a FUSE server stands behind them. */
const SERVED: ReadonlyMap<string, number> = new Map([
  ["fuse", Fstype.FUSE],
  ["fuseblk", Fstype.UNSUPPORTED],
]);

/** The fstype of a mount, by the kernel's name of it (a subtype after the dot does not count). */
export function fstypeCode(fsType: string, enabled: readonly string[]): number {
  const name = plainName(fsType);
  const known = BY_NAME.get(name)?.code ?? SERVED.get(name);
  if (known !== undefined) return known;
  return enabled.includes(name) || enabled.includes("all") ? Fstype.AUTO : Fstype.UNSUPPORTED;
}

/** What is mounted again for an entry; undefined for what must come from outside. */
export function fileSystemOf(entry: {
  readonly fstype: number;
  readonly fsname?: string | undefined;
}): FileSystem | undefined {
  if (entry.fstype === Fstype.AUTO) {
    return { name: entry.fsname ?? "", code: Fstype.AUTO, content: "kernel" };
  }
  return BY_CODE.get(entry.fstype);
}

/** Without the subtype: `fuse.sshfs` is `fuse`. */
export function plainName(fsType: string): string {
  return fsType.replace(/\..*$/, "");
}
