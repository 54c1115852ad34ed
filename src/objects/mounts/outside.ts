// Mounts of the engine's own namespace that a tree gets (its root, external mounts): detached copies, made before there is any
// task and inherited by all; and file systems that only the engine may mount. See open_tree(2), fsopen(2).

import { closeSync, existsSync, fstatSync } from "node:fs";
import { resolve } from "node:path";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT } from "../../sys/abi/fcntl.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import {
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_FLAG,
  FSCONFIG_SET_STRING,
  MS_RDONLY,
  OPEN_TREE_CLONE,
} from "../../sys/abi/mount.ts";
import { EPERM, errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { pathBytes } from "../files/path.ts";
import { idmapAttributes } from "./calls.ts";
import { copyCovered } from "./clean-mount.ts";
import { needsOutside } from "./filesystem.ts";
import { Idmaps } from "./idmap.ts";
import type { NamespaceKind } from "../namespaces/kinds.ts";
import type { MountPlan, MountSource } from "./plan.ts";
import { flagsOf, kernelDevice } from "./record.ts";

/** Mounts of the engine's namespace that the tree gets: detached copies, which the seed inherits. */
export interface OutsideMounts {
  /** Number of the descriptor by source. */
  readonly fds: ReadonlyMap<number, { readonly fd: number; readonly isDirectory: boolean }>;
  readonly idmaps: Idmaps;
  /** Closes the engine's own. */
  close(): void;
}

export interface OutsideOptions {
  /** Whether the tree gets a namespace of its own of a kind. */
  readonly isOwn: (kind: NamespaceKind) => boolean;
  /** Directory that becomes the root of the tree. */
  readonly root: string;
  /** Copies a descriptor to where the seed inherits it, and it is not in the way of the restore's own. */
  readonly keep: (fd: number, what: string) => number;
}

/**
 * Copies what comes from outside, before the seed is started.
 *
 * @throws RepriseError SYSCALL naming the path
 */
export function copyOutsideMounts(plan: MountPlan, options: OutsideOptions): OutsideMounts {
  const { root, keep, isOwn } = options;
  const fds = new Map<number, { fd: number; isDirectory: boolean }>();
  const nodes = plan.namespaces.flatMap(({ mounts }) => mounts);
  const idmaps = new Idmaps(
    nodes.map(({ entry }) => entry.idmap),
    keep,
  );
  let open = true;
  // The numbers stay: they are those of the root task's descriptors.
  const close = (): void => {
    if (open) for (const { fd } of fds.values()) closeSync(fd);
    if (open) idmaps.close();
    open = false;
  };
  try {
    for (const { index, from, device } of plan.sources) {
      if (from.kind === "late") continue;
      if (from.kind === "new") {
        if (needsOutside(from.type, isOwn))
          fds.set(index, { fd: mountOwn(from, keep), isDirectory: true });
        continue;
      }
      // criu's current directory is the root when it mounts.
      const path = resolve("/", from.kind === "root" ? root : from.path);
      const isCovered =
        from.kind === "path" && (manyAt(plan, from.path) || !existsSync(pathBytes(path)));
      const copy = (isCovered ? copyOfDevice(path, device) : undefined) ?? openTree(path);
      if (from.kind === "path" && from.entry.idmap !== undefined)
        mapOwners(copy, path, idmaps.of(from.entry.idmap));
      const fd = keepCopy(copy, { what: path, keep });
      fds.set(index, { fd, isDirectory: isDirectory(fd) });
    }
  } catch (error) {
    close();
    throw error;
  }
  return { fds, idmaps, close };
}

/** What the caller gives may show the owners already that it is to show: another map is refused (EPERM). */
function mapOwners(copy: number, path: string, userNamespace: number): void {
  const attr = idmapAttributes(userNamespace);
  const name = Buffer.of(0);
  const result = trySyscall("mount_setattr", copy, name, AT_EMPTY_PATH, attr, attr.length);
  if (result === -EPERM) log.debug(`${path} has a map of owners already`);
  else if (result < 0) {
    throw new RepriseError(
      "SYSCALL",
      `cannot map the owners of ${path}: mount_setattr: ${errnoName(-result)}`,
      {
        syscall: "mount_setattr",
        errno: errnoName(-result),
        hint: "Its file system must be able to be idmapped.",
      },
    );
  }
}

/** Whether the tree had several file systems of one place outside, one over the other. */
function manyAt({ sources }: MountPlan, path: string): boolean {
  const devices = sources.flatMap(({ from, device }) =>
    from.kind === "path" && from.path === path ? [device] : [],
  );
  return new Set(devices).size > 1;
}

/** A copy of the mount of a file system at a path, which another one covers; undefined where it is on top, or is not here. */
function copyOfDevice(path: string, device: number): number | undefined {
  const mounts = readMountinfo(process.pid);
  const there = mounts.filter(({ mountPoint }) => mountPoint === path);
  const isOf = ({ devMajor, devMinor }: Mount): boolean =>
    kernelDevice(devMajor, devMinor) === device;
  const wanted = there.find(isOf);
  if (wanted === undefined || mountIdOf(path) === wanted.mntId) return undefined;
  const entries = mounts.map(({ mntId, parentId, mountPoint }) => ({
    mnt_id: mntId,
    parent_mnt_id: parentId,
    mountpoint: mountPoint,
  }));
  const entry = entries[mounts.indexOf(wanted)];
  return entry === undefined ? undefined : copyCovered({ pid: process.pid, entries }, entry);
}

function openTree(path: string): number {
  const name = Buffer.concat([pathBytes(path), Buffer.of(0)]);
  const copy = trySyscall("open_tree", AT_FDCWD, name, OPEN_TREE_CLONE | AT_NO_AUTOMOUNT);
  if (copy >= 0) return copy;
  throw new RepriseError(
    "SYSCALL",
    `cannot bring ${path} into the restored tree: open_tree: ${errnoName(-copy)}`,
    {
      syscall: "open_tree",
      errno: errnoName(-copy),
      hint: "The directory or file that is to be mounted must be there, and mounting be allowed.",
    },
  );
}

/** A new mount of a file system that only the engine may mount, in no place. */
function mountOwn(
  { entry, type }: MountSource["from"] & { readonly kind: "new" },
  keep: OutsideOptions["keep"],
): number {
  const what = `mount ${type.name} for ${entry.mountpoint}`;
  const must = (call: string, result: number): number => {
    if (result >= 0) return result;
    throw new RepriseError("SYSCALL", `cannot ${what}: ${call}: ${errnoName(-result)}`, {
      syscall: call,
      errno: errnoName(-result),
      hint: "The kernel must know this file system.",
    });
  };
  const text = (value: string): Buffer => Buffer.from(`${value}\0`);
  const context = must("fsopen", trySyscall("fsopen", text(type.name), 0));
  try {
    const set = (key: string, value: string | undefined): void => {
      const [kind, given] =
        value === undefined ? [FSCONFIG_SET_FLAG, 0] : [FSCONFIG_SET_STRING, text(value)];
      must(`fsconfig ${key}`, trySyscall("fsconfig", context, kind, text(key), given, 0));
    };
    set("source", entry.source);
    for (const option of entry.options.split(",").filter((one) => one !== "")) {
      const [key = "", ...value] = option.split("=");
      set(key, value.length === 0 ? undefined : value.join("="));
    }
    if ((flagsOf(entry).superblock & MS_RDONLY) !== 0) set("ro", undefined);
    must("fsconfig", trySyscall("fsconfig", context, FSCONFIG_CMD_CREATE, 0, 0, 0));
    const mount = must("fsmount", trySyscall("fsmount", context, 0, 0));
    return keepCopy(mount, { what, keep });
  } finally {
    trySyscall("close", context);
  }
}

function keepCopy(
  copy: number,
  { what, keep }: { readonly what: string; readonly keep: OutsideOptions["keep"] },
): number {
  try {
    return keep(copy, what);
  } finally {
    trySyscall("close", copy);
  }
}

function isDirectory(fd: number): boolean {
  return fstatSync(fd).isDirectory();
}
