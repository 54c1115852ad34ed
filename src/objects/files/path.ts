// Paths of open files: what the kernel's link text says, and what of it is the file's name. The text is the path in the
// mount namespace of the file, with ` (deleted)` behind it when the last name by which it was opened is gone; a living
// file's name may end in the same words. See d_path in fs/d_path.c.

import { lstatSync, readlinkSync, statSync, type BigIntStats } from "node:fs";
import { dirname } from "node:path";
import { bytesToText, textToBytes } from "../../images/text.ts";
import { deviceMajor, deviceMinor, type FileStat } from "../../proc/links.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { RepriseError } from "../../errors.ts";
import { S_IFLNK, S_IFMT } from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FrozenTask } from "../task/task.ts";
import type { CollectedMounts } from "../mounts/collect.ts";
import type { FilesDump, FilesDumpOptions, OpenFile } from "./file-kind.ts";
import { isPlainDevice } from "./memory-device.ts";

const DELETED = " (deleted)";

/** Where the file of a link text is found. */
export type Whereabouts =
  /** By its name. */
  | { readonly kind: "there"; readonly name: string }
  /** Not by the name that it had; `taken` when another file has this name now. */
  | { readonly kind: "gone"; readonly name: string; readonly taken: boolean };

/** Looks for a file by its link text, in its mount namespace. */
export function locate(file: OpenFile, dump: FilesDump): Whereabouts {
  const { stat } = file;
  const target = targetOf(file);
  const base = mountRoot(file, dump);
  if (leadsThere(base + target, file, dump)) return { kind: "there", name: target };
  const name = target.endsWith(DELETED) ? target.slice(0, -DELETED.length) : target;
  const found = leadsTo(base + name, stat);
  // The name may have been made again for the same file by link(2).
  if (found === "it") return { kind: "there", name };
  return { kind: "gone", name, taken: found !== "nothing" };
}

/**
 * Whether a path leads to a file. That it did is kept for as long as the tree stands still, or is looked at ahead: many descriptors may
 * have one file.
 */
function leadsThere(path: string, { stat }: OpenFile, { options }: FilesDump): boolean {
  let known = foundPaths.get(options);
  if (known === undefined) foundPaths.set(options, (known = new Map()));
  const found = known.get(path);
  if (found !== undefined && isSameFile(found, stat)) return true;
  if (leadsTo(path, stat) !== "it") return false;
  known.set(path, stat);
  return true;
}

/** By the options, which are others once the tree has been stopped. */
const foundPaths = new WeakMap<FilesDumpOptions, Map<string, FileStat>>();

function isSameFile(a: FileStat, b: FileStat): boolean {
  return a.inode === b.inode && a.devMajor === b.devMajor && a.devMinor === b.devMinor;
}

/** Prefix for the absolute path of a file, seen from the engine: empty in the engine's own mount namespace. */
export function mountRoot(file: OpenFile, dump: FilesDump): string {
  const found = mountOf(file, dump);
  if (found !== undefined) return found.mounts.prefix;
  // A mount namespace that counts as the engine's (namespaces/proc-mount.ts).
  const { task } = file;
  let root = roots.get(task);
  if (root === undefined) {
    const own = readlinkSync("/proc/self/ns/mnt");
    root = readlinkSync(`/proc/${task.pid}/ns/mnt`) === own ? "" : `/proc/${task.pid}/root`;
    roots.set(task, root);
  }
  return root;
}

/** The mnt_id of a file's entry: none where the mounts are not saved. */
export function mountIdField(file: OpenFile, dump: FilesDump): { readonly mnt_id?: number } {
  const found = mountOf(file, dump);
  return found === undefined ? {} : { mnt_id: found.id };
}

/** A mount of the tree. */
interface FoundMount {
  readonly mounts: CollectedMounts;
  readonly id: number;
}

/**
 * The mount on which a file is; undefined where the mounts are not saved.
 *
 * @throws RepriseError UNSUPPORTED for a file that no namespace of the tree has
 */
function mountOf(file: OpenFile, { mounts }: FilesDump): FoundMount | undefined {
  const own = mounts?.ofTask((file.near ?? file.task).pid);
  if (mounts === undefined || own === undefined) return undefined;
  const id = mountId(file);
  const found = mounts.all.find(({ byId }) => byId.has(id));
  if (found !== undefined) return { mounts: found, id };
  // What a task had open or mapped when it left its first mount namespace (unshare) is in its new one, too.
  const path = own.prefix + targetOf(file);
  const here = leadsTo(path, file.stat) === "it" ? mountIdOf(pathBytes(path)) : undefined;
  if (here !== undefined && own.byId.has(here)) return { mounts: own, id: here };
  const { task, fd, target } = file;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump ${fd < 0 ? "" : `fd ${fd} of `}pid ${task.pid} (${target}): it is in no mount that the tree sees`,
    {
      pid: task.pid,
      ...(fd < 0 ? {} : { fd }),
      hint: "It was opened outside of the tree's mount namespace, or its mount has been taken away (umount -l).",
    },
  );
}

const mountIds = new WeakMap<OpenFile, number>();

/** fdinfo tells it of descriptors; of links, statx. */
function mountId(file: OpenFile): number {
  if (file.info.mntId >= 0) return file.info.mntId;
  let id = mountIds.get(file);
  if (id === undefined) mountIds.set(file, (id = mountIdOf(file.procPath) ?? -1));
  return id;
}

/** A path as a program's argument: also bytes that are not UTF-8 (see images/text.ts). */
export function pathArgument(program: Program, path: string): Argument {
  const bytes = textToBytes(path);
  if (Buffer.from(path).equals(bytes)) return program.string(path);
  return program.data(Buffer.concat([bytes, Buffer.of(0)]), 1);
}

/** The same for node:fs. */
export function pathBytes(path: string): Buffer {
  return Buffer.from(textToBytes(path));
}

/** The link text; one that is not UTF-8 is read again, byte by byte. */
export function targetOf({ target, procPath }: OpenFile): string {
  return target.includes("\ufffd") ? bytesToText(readlinkSync(procPath, "buffer")) : target;
}

/**
 * Whether two files are one memory device: /dev/null is the same in every file system. Who was started in a container from outside
 * (docker exec -d) has that of the host open.
 */
function isSameDevice({ mode, rdev }: BigIntStats, stat: FileStat): boolean {
  const [rdevMajor, rdevMinor] = [deviceMajor(rdev), deviceMinor(rdev)];
  return (
    isPlainDevice(stat) &&
    isPlainDevice({ mode: Number(mode), rdevMajor, rdevMinor }) &&
    rdevMinor === stat.rdevMinor
  );
}

const roots = new WeakMap<FrozenTask, string>();

/** What a path, seen from the engine, leads to. */
export function leadsTo(path: string, stat: FileStat): "it" | "another" | "nothing" {
  const look = (stat.mode & S_IFMT) === S_IFLNK ? lstatSync : statSync;
  try {
    const found = look(pathBytes(path), { bigint: true, throwIfNoEntry: false });
    if (found === undefined) return "nothing";
    const same =
      found.ino === stat.inode &&
      deviceMajor(found.dev) === stat.devMajor &&
      deviceMinor(found.dev) === stat.devMinor;
    return same || isSameDevice(found, stat) ? "it" : "another";
  } catch {
    // ELOOP, ENOTDIR, ENAMETOOLONG, EACCES: whatever stands there does not lead to the file.
    return "nothing";
  }
}

/** The deepest directory above a path that is there. */
export function nearestDirectory(path: string): string {
  let directory = dirname(path);
  while (directory !== "/" && !isDirectory(directory)) directory = dirname(directory);
  return directory;
}

function isDirectory(path: string): boolean {
  try {
    return statSync(pathBytes(path), { throwIfNoEntry: false })?.isDirectory() === true;
  } catch {
    return false; // ENOTDIR, ENAMETOOLONG
  }
}
