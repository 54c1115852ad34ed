// The calls that mounts are made by, as entries of programs: see open_tree(2), move_mount(2), mount_setattr(2).

import {
  AT_EMPTY_PATH,
  AT_NO_AUTOMOUNT,
  AT_SYMLINK_NOFOLLOW,
  S_IFREG,
} from "../../sys/abi/fcntl.ts";
import * as abi from "../../sys/abi/mount.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";

export const PRIVATE = { set: 0, clear: 0, propagation: abi.MS_PRIVATE };
const HINT_SETATTR = "mount_setattr needs Linux 5.12 or later.";

/** Adds the call that makes a mount point. */
export function makePlace(
  program: Program,
  directory: Argument,
  { place, isDirectory: isDir }: { place: Argument; isDirectory: boolean },
): void {
  const label = "make a mount point";
  if (isDir) program.call("mkdirat", [directory, place, 0o700], { label });
  else program.call("mknodat", [directory, place, S_IFREG | 0o600, 0], { label });
}

/** Adds the call that moves a mount to its place. */
export function move(
  program: Program,
  fd: Argument,
  { to, place, what, hint }: { to: Argument; place: Argument; what: string; hint?: string },
): void {
  const flags = abi.MOVE_MOUNT_F_EMPTY_PATH | abi.MOVE_MOUNT_T_EMPTY_PATH;
  program.call("move_mount", [fd, program.string(""), to, place, flags], {
    label: `put ${what} in its place`,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Adds the call that binds what is below a mount's root, without a place yet. */
export function bind(
  program: Program,
  source: Argument,
  { below, what }: { below: string; what: string },
): Ref {
  const flags =
    abi.OPEN_TREE_CLONE |
    AT_NO_AUTOMOUNT |
    AT_SYMLINK_NOFOLLOW |
    (below === "" ? AT_EMPTY_PATH : 0);
  return program.call("open_tree", [source, pathArgument(program, below), flags], {
    label: `bind ${what}`,
    hint: "The directory or file that was mounted there is gone. Put it back as it was at the dump.",
  });
}

interface Attributes {
  readonly set: number;
  readonly clear: number;
  readonly propagation: number;
}

/** Adds the call that sets flags and propagation of a mount. */
export function setAttributes(
  program: Program,
  fd: Argument,
  { set, clear, propagation }: Attributes,
  what = "a mount",
): void {
  const attr = Buffer.alloc(abi.MOUNT_ATTR_SIZE);
  attr.writeBigUInt64LE(BigInt(set), 0);
  attr.writeBigUInt64LE(BigInt(clear), 8);
  attr.writeBigUInt64LE(BigInt(propagation), 16);
  const args = [fd, program.string(""), AT_EMPTY_PATH, program.data(attr), attr.length];
  program.call("mount_setattr", args, { label: `set the flags of ${what}`, hint: HINT_SETATTR });
}

/** struct mount_attr for a mount that is to show the owners of a user namespace, by a descriptor of that. */
export function idmapAttributes(userNamespace: number): Buffer {
  const attr = Buffer.alloc(abi.MOUNT_ATTR_SIZE);
  attr.writeBigUInt64LE(BigInt(abi.MOUNT_ATTR_IDMAP), 0);
  attr.writeBigUInt64LE(BigInt(userNamespace), 24);
  return attr;
}

/** Adds the call that has a mount show the owners of a user namespace. It must be in no place yet. */
export function setIdmap(
  program: Program,
  fd: Argument,
  { userNamespace, what }: { readonly userNamespace: number; readonly what: string },
): void {
  const attr = idmapAttributes(userNamespace);
  const args = [fd, program.string(""), AT_EMPTY_PATH, program.data(attr), attr.length];
  program.call("mount_setattr", args, {
    label: `map the owners of ${what}`,
    hint: "The file system must be able to be idmapped, and this kernel, too.",
  });
}

export const ALL_ATTRIBUTES =
  abi.MOUNT_ATTR_RDONLY |
  abi.MOUNT_ATTR_NOSUID |
  abi.MOUNT_ATTR_NODEV |
  abi.MOUNT_ATTR_NOEXEC |
  abi.MOUNT_ATTR_NODIRATIME |
  abi.MOUNT_ATTR_NOSYMFOLLOW |
  abi.MOUNT_ATTR_ATIME;
