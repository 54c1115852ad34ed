// Paths of open files: what the kernel's link text says, and what of it is the file's name. The text is the path in the
// mount namespace of the file, with ` (deleted)` behind it when the last name by which it was opened is gone; a living
// file's name may end in the same words. See d_path in fs/d_path.c.

import { lstatSync, readlinkSync, statSync } from "node:fs";
import { bytesToText, textToBytes } from "../../images/text.ts";
import { deviceMajor, deviceMinor, type FileStat } from "../../proc/links.ts";
import { S_IFLNK, S_IFMT } from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FrozenTask } from "../task/task.ts";
import type { OpenFile } from "./file-kind.ts";

const DELETED = " (deleted)";

/** Where the file of a link text is found. */
export type Whereabouts =
  /** By its name. */
  | { readonly kind: "there"; readonly name: string }
  /** Not by the name that it had; `taken` when another file has this name now. */
  | { readonly kind: "gone"; readonly name: string; readonly taken: boolean };

/** Looks for a file by its link text, in the task's mount namespace. */
export function locate(file: OpenFile): Whereabouts {
  const { stat } = file;
  const target = targetOf(file);
  const base = mountRoot(file.task);
  if (leadsTo(base + target, stat) === "it") {
    return { kind: "there", name: target };
  }
  const name = target.endsWith(DELETED) ? target.slice(0, -DELETED.length) : target;
  const found = leadsTo(base + name, stat);
  // The name may have been made again for the same file by link(2).
  if (found === "it") return { kind: "there", name };
  return { kind: "gone", name, taken: found !== "nothing" };
}

/** Prefix for absolute paths of a task, seen from the engine: empty in the engine's own mount namespace. */
export function mountRoot(task: FrozenTask): string {
  let root = roots.get(task);
  if (root === undefined) {
    const own = readlinkSync("/proc/self/ns/mnt");
    root = readlinkSync(`/proc/${task.pid}/ns/mnt`) === own ? "" : `/proc/${task.pid}/root`;
    roots.set(task, root);
  }
  return root;
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
function targetOf({ target, procPath }: OpenFile): string {
  return target.includes("\ufffd") ? bytesToText(readlinkSync(procPath, "buffer")) : target;
}

const roots = new WeakMap<FrozenTask, string>();

function leadsTo(path: string, stat: FileStat): "it" | "another" | "nothing" {
  const look = (stat.mode & S_IFMT) === S_IFLNK ? lstatSync : statSync;
  try {
    const found = look(pathBytes(path), { bigint: true, throwIfNoEntry: false });
    if (found === undefined) return "nothing";
    const same =
      found.ino === stat.inode &&
      deviceMajor(found.dev) === stat.devMajor &&
      deviceMinor(found.dev) === stat.devMinor;
    return same ? "it" : "another";
  } catch {
    // ELOOP, ENOTDIR, ENAMETOOLONG, EACCES: whatever stands there does not lead to the file.
    return "nothing";
  }
}
