// A mount without what is mounted on it: a detached copy, by whose descriptor the engine reads the whole file system. The
// engine's thread enters the tree's namespace for that. For a mount that is covered by another, or must not be bound, a helper
// process makes a copy of the namespace (as the root of its user namespace: for others the mounts of a copy are locked) in which the
// covers are taken off.

import { closeSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { RepriseError } from "../../errors.ts";
import type { MntEntry } from "../../images/schema/messages.generated.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import {
  AT_FDCWD,
  AT_NO_AUTOMOUNT,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
} from "../../sys/abi/fcntl.ts";
import { MNT_DETACH, MS_PRIVATE, MS_REC, OPEN_TREE_CLONE } from "../../sys/abi/mount.ts";
import { CLONE_NEWNS, CLONE_NEWUSER } from "../../sys/abi/sched.ts";
import { EINVAL } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import { runPrograms } from "../../tracee/run.ts";
import { endProcess, startSeed, workAreaAt } from "../../tracee/seed.ts";
import { pathArgument, pathBytes } from "../files/path.ts";
import { inNamespace } from "../namespaces/enter.ts";
import type { CollectedMounts } from "./collect.ts";

/** The root of a mount. */
export interface CleanMount {
  readonly fd: number;
  /** Where the mounts on it are there, too: its number, by which what is its own is told from those. */
  readonly mountId?: number;
}

/**
 * A descriptor of a mount's root without the mounts on it: where it has some, of a detached copy. To close that is slow (the kernel
 * waits for all its readers of mounts), so it is better done when the tasks go on. Undefined where something covers it that nobody
 * in the tree may take off.
 *
 * @throws RepriseError UNSUPPORTED when it cannot be reached
 */
export function openClean(mounts: CollectedMounts, entry: MntEntry): CleanMount | undefined {
  const { pid } = mounts.namespace;
  const bare = openBare(mounts, entry) ?? inNamespace("mnt", { pid }, () => copyVisible(entry));
  if (bare !== undefined) return { fd: bare };
  const locked = openLocked(mounts, entry);
  if (locked !== undefined) return locked;
  const fd = copyCovered({ pid, entries: mounts.entries }, entry);
  return fd === undefined ? undefined : { fd };
}

/**
 * The mount itself with what is mounted on it: the kernel neither copies it without, nor takes that off, when it was there before the
 * namespace was copied into another user namespace (mount_namespaces(7), locked mounts).
 */
function openLocked(
  { prefix }: CollectedMounts,
  { mountpoint, mnt_id }: MntEntry,
): CleanMount | undefined {
  const path = pathBytes(prefix + mountpoint);
  if (mountIdOf(path) !== mnt_id) return undefined;
  return { fd: openSync(path, O_PATH | O_DIRECTORY), mountId: mnt_id };
}

/** The mount itself, when nothing is mounted on it or over it. */
function openBare(
  { entries, prefix }: CollectedMounts,
  { mountpoint, mnt_id }: MntEntry,
): number | undefined {
  if (entries.some((entry) => entry.parent_mnt_id === mnt_id)) return undefined;
  const path = pathBytes(prefix + mountpoint);
  return mountIdOf(path) === mnt_id ? openSync(path, O_PATH | O_DIRECTORY) : undefined;
}

function copyVisible({ mountpoint, mnt_id }: MntEntry): number | undefined {
  if (mountIdOf(pathBytes(mountpoint)) !== mnt_id) return undefined;
  const name = Buffer.concat([pathBytes(mountpoint), Buffer.of(0)]);
  const copy = trySyscall("open_tree", AT_FDCWD, name, COPY_FLAGS);
  return copy < 0 ? undefined : copy;
}

const COPY_FLAGS: number = OPEN_TREE_CLONE | O_CLOEXEC | AT_NO_AUTOMOUNT;
/** The number of covers that are taken off before it is given up. */
const MAX_COVERS = 1000;

/** A mount namespace, by somebody who lives there, and its mounts. */
interface MountsOf {
  readonly pid: number;
  readonly entries: readonly Tied[];
}

type Tied = Pick<MntEntry, "mnt_id" | "parent_mnt_id" | "mountpoint">;

/**
 * A detached copy of a mount that others cover, without them; undefined where one of them may not be taken off: it came with the mounts
 * of a namespace that another user namespace rules (mount_namespaces(7), locked mounts).
 *
 * @throws RepriseError UNSUPPORTED when it is not found
 */
export function copyCovered(mounts: MountsOf, entry: Tied): number | undefined {
  using helper = startHelper(mounts.pid);
  const { pid } = helper;
  const copies = copiesOf(mounts, readMountinfo(pid));
  const wanted = copies.get(entry.mnt_id)?.mntId;
  const label = `take off what covers the mount ${entry.mountpoint}`;
  for (let taken = 0; taken < MAX_COVERS; taken++) {
    const seen = mountOver(pid, entry.mountpoint);
    if (seen === wanted) return copyIn(helper, entry);
    const cover = [...copies.values()].find(({ mntId }) => mntId === seen);
    if (cover === undefined) break;
    const program = new Program();
    const args = [pathArgument(program, cover.mountPoint), MNT_DETACH];
    const taking = program.call("umount2", args, { label, mayFail: true });
    const result = helper.run(program).value(taking);
    if (result === -EINVAL) return undefined;
    if (result < 0) break;
  }
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump the mount ${entry.mountpoint}: what covers it cannot be taken off`,
    { pid: mounts.pid },
  );
}

/** A process in a copy of a mount namespace. */
interface Helper extends Disposable {
  readonly pid: number;
  run(program: Program): ProgramResult;
}

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

function startHelper(of: number): Helper {
  const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
  const seed = startSeed(area, { stops: 0, remoteCalls: 0 });
  const run = (program: Program): ProgramResult => {
    const job = { tracee: seed, program, code: area.code, base: area.programs, frame: 0 };
    return runPrograms([job])[0] as ProgramResult;
  };
  try {
    const program = new Program();
    const enter = (kind: "user" | "mnt", flag: number): void => {
      const path = program.string(`/proc/${of}/ns/${kind}`);
      const fd = program.call("openat", [AT_FDCWD, path, O_RDONLY, 0]);
      const label = `enter the ${kind} namespace of pid ${of}`;
      // One's own user namespace cannot be entered again (EINVAL).
      program.call("setns", [fd, flag], { label, mayFail: kind === "user" });
    };
    enter("user", CLONE_NEWUSER);
    enter("mnt", CLONE_NEWNS);
    const label = `copy the mount namespace of pid ${of}`;
    program.call("unshare", [CLONE_NEWNS], { label });
    program.call("mount", [0, program.string("/"), 0, MS_REC | MS_PRIVATE, 0], { label });
    run(program);
  } catch (error) {
    endProcess(seed.tid);
    throw error;
  }
  return { pid: seed.tid, run, [Symbol.dispose]: () => endProcess(seed.tid) };
}

/** Makes the copy in the helper; the engine takes it over. */
function copyIn(helper: Helper, { mountpoint }: Tied): number {
  const program = new Program();
  const path = pathArgument(program, mountpoint);
  const copy = program.call("open_tree", [AT_FDCWD, path, COPY_FLAGS], {
    label: `copy the mount ${mountpoint}`,
  });
  const fd = helper.run(program).value(copy);
  const pidfd = syscall("pidfd_open", helper.pid, 0);
  try {
    return syscall("pidfd_getfd", pidfd, fd, 0);
  } finally {
    closeSync(pidfd);
  }
}

/** The mount that a path leads to, or the one in which it comes to an end because something is in the way. */
function mountOver(pid: number, path: string): number | undefined {
  const look = (at: string): number | undefined =>
    mountIdOf(pathBytes(`/proc/${pid}/root${at === "/" ? "" : at}`));
  let at = path;
  while (at !== "/" && look(at) === undefined) at = dirname(at);
  return look(at);
}

/** The mounts of a copied namespace by the ids of the originals: the trees have the same form. */
function copiesOf(original: MountsOf, copy: readonly Mount[]): Map<number, Mount> {
  const found = new Map<number, Mount>();
  const ids = new Set(copy.map(({ mntId }) => mntId));
  const root = copy.find(({ mountPoint, parentId }) => mountPoint === "/" && !ids.has(parentId));
  const known = new Set(original.entries.map(({ mnt_id }) => mnt_id));
  const first = original.entries.find(
    (entry) => entry.mountpoint === "/" && !known.has(entry.parent_mnt_id),
  );
  if (root === undefined || first === undefined) return found;
  const visit = (entry: Tied, mount: Mount): void => {
    found.set(entry.mnt_id, mount);
    for (const child of original.entries) {
      if (child.parent_mnt_id !== entry.mnt_id || child === entry) continue;
      const same = copy.find(
        (one) => one.parentId === mount.mntId && one.mountPoint === child.mountpoint,
      );
      if (same !== undefined) visit(child, same);
    }
  };
  visit(first, root);
  return found;
}
