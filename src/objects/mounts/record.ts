// A mount as the images have it (mnt_entry), out of a line of mountinfo, and the other way round: its flags for mount(2) and
// mount_setattr(2). See format.md section 13.

import { Fstype, type MntEntry } from "../../images/schema/messages.generated.ts";
import type { Mount } from "../../proc/mountinfo.ts";
import {
  MOUNT_ATTR_NOATIME,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NODIRATIME,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_NOSYMFOLLOW,
  MOUNT_ATTR_RDONLY,
  MOUNT_ATTR_STRICTATIME,
  MS_DIRSYNC,
  MS_MANDLOCK,
  MS_NOATIME,
  MS_NODEV,
  MS_NODIRATIME,
  MS_NOEXEC,
  MS_NOSUID,
  MS_NOSYMFOLLOW,
  MS_PRIVATE,
  MS_RDONLY,
  MS_REC,
  MS_RELATIME,
  MS_SHARED,
  MS_SLAVE,
  MS_STRICTATIME,
  MS_SYNCHRONOUS,
  MS_UNBINDABLE,
} from "../../sys/abi/mount.ts";
import { fstypeCode, plainName } from "./filesystem.ts";

export interface RecordOptions {
  /** Types that --enable-fs allows to be mounted as they are. */
  readonly enabled: readonly string[];
  /** Device numbers (kernelDevice) of file systems that the host shares with everybody. */
  readonly hostDevpts: number | undefined;
  /** Where the tree has a cgroup namespace: what the root task sees as the root of a hierarchy, by device. */
  readonly cgroupRoots: ReadonlyMap<number, string> | undefined;
  /** A user or group id of outside as the tree's user namespace numbers it. */
  readonly innerId: (kind: "uid" | "gid", outer: number) => number;
}

const DELETED = "//deleted";

/** The image's form of a mount. */
export function mountRecord(mount: Mount, options: RecordOptions): MntEntry {
  const fstype = fstypeCode(mount.fsType, options.enabled);
  const root_dev = kernelDevice(mount.devMajor, mount.devMinor);
  const deleted = mount.root.endsWith(DELETED);
  const root = deleted ? mount.root.slice(0, -DELETED.length) : mount.root;
  const superblock = splitSuperOptions(mount.superOptions, options);
  // The kernel does not show `newinstance`; an instance that is not the host's had it.
  const isNewDevpts = fstype === Fstype.DEVPTS && root_dev !== options.hostDevpts;
  const isCgroup = fstype === Fstype.CGROUP || fstype === Fstype.CGROUP2;
  return {
    fstype,
    mnt_id: mount.mntId,
    root_dev,
    parent_mnt_id: mount.parentId,
    flags: mountFlags(mount, fstype),
    sb_flags: superblock.flags,
    root: isCgroup ? rootInNamespace(root, options.cgroupRoots, root_dev) : root,
    mountpoint: mount.mountPoint,
    source: mount.source,
    options: [...superblock.rest, ...(isNewDevpts ? ["newinstance"] : [])].join(","),
    shared_id: mount.shared ?? 0,
    master_id: mount.master ?? 0,
    ...(fstype === Fstype.AUTO ? { fsname: plainName(mount.fsType) } : {}),
    ...(deleted ? { deleted: true } : {}),
  };
}

/** A cgroup as the tree's namespace has it, by what the root task sees as the root of that hierarchy. */
function rootInNamespace(
  root: string,
  roots: RecordOptions["cgroupRoots"],
  device: number,
): string {
  if (roots === undefined) return root;
  const top = roots.get(device);
  if (top === undefined || !root.startsWith(`${top}/`)) return "/";
  return root.slice(top.length);
}

/** The mount with another SELinux context, if it had one; the kernel writes it with quotes, since it has commas. */
export function withContext(entry: MntEntry, context: string): MntEntry {
  const options = entry.options.replace(
    /(^|,)context=("[^"]*"|[^,]*)/,
    (_, before: string) => `${before}context="${context}"`,
  );
  return { ...entry, options };
}

/** A device number as the kernel and the images write it. */
export function kernelDevice(major: number, minor: number): number {
  return ((major << 20) | minor) >>> 0;
}

const PER_MOUNT: Readonly<Record<string, number>> = {
  ro: MS_RDONLY,
  nosuid: MS_NOSUID,
  nodev: MS_NODEV,
  noexec: MS_NOEXEC,
  noatime: MS_NOATIME,
  nodiratime: MS_NODIRATIME,
  relatime: MS_RELATIME,
  nosymfollow: MS_NOSYMFOLLOW,
};

const PER_SUPERBLOCK: Readonly<Record<string, number>> = {
  rw: 0,
  ro: MS_RDONLY,
  sync: MS_SYNCHRONOUS,
  dirsync: MS_DIRSYNC,
  mand: MS_MANDLOCK,
};

function mountFlags(mount: Mount, fstype: number): number {
  let flags = mount.options.reduce((bits, option) => bits | (PER_MOUNT[option] ?? 0), 0);
  // Neither word: every access is written, which mount(2) must be told.
  if ((flags & (MS_RELATIME | MS_NOATIME)) === 0) flags |= MS_STRICTATIME;
  if (mount.shared !== undefined) flags |= MS_SHARED;
  if (mount.master !== undefined) flags |= MS_SLAVE;
  if (mount.unbindable) flags |= MS_UNBINDABLE;
  // What the kernel mounts below debugfs by itself comes along.
  if (fstype === Fstype.DEBUGFS) flags |= MS_REC;
  return flags >>> 0;
}

function splitSuperOptions(
  options: readonly string[],
  { innerId }: RecordOptions,
): { flags: number; rest: string[] } {
  let flags = 0;
  const rest: string[] = [];
  for (const option of options) {
    const known = PER_SUPERBLOCK[option];
    const owner = /^(uid|gid)=(\d+)$/.exec(option);
    if (known !== undefined) flags |= known;
    else if (owner === null) rest.push(option);
    else rest.push(`${owner[1]}=${innerId(owner[1] as "uid" | "gid", Number(owner[2]))}`);
  }
  return { flags, rest };
}

const PROPAGATION = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE;
const MOUNT_BITS =
  PROPAGATION | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME;

/** The flags of an entry apart: old images have one word for both. */
export function flagsOf(entry: MntEntry): { readonly mount: number; readonly superblock: number } {
  const { flags, sb_flags } = entry;
  if (sb_flags === undefined) {
    return { mount: flags & MOUNT_BITS & ~PROPAGATION, superblock: flags & ~MOUNT_BITS };
  }
  return { mount: flags & ~PROPAGATION & ~MS_REC, superblock: sb_flags };
}

const ATTRIBUTES: readonly (readonly [number, number])[] = [
  [MS_RDONLY, MOUNT_ATTR_RDONLY],
  [MS_NOSUID, MOUNT_ATTR_NOSUID],
  [MS_NODEV, MOUNT_ATTR_NODEV],
  [MS_NOEXEC, MOUNT_ATTR_NOEXEC],
  [MS_NODIRATIME, MOUNT_ATTR_NODIRATIME],
  [MS_NOATIME, MOUNT_ATTR_NOATIME],
  [MS_STRICTATIME, MOUNT_ATTR_STRICTATIME],
  [MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW],
];

/** A mount's flags as mount_setattr wants them. */
export function attributesOf(entry: MntEntry): number {
  const { mount } = flagsOf(entry);
  return ATTRIBUTES.reduce((bits, [flag, attr]) => ((mount & flag) === 0 ? bits : bits | attr), 0);
}
