// The path of an inode that the kernel names only by inode number, device and file handle (inotify's fdinfo). A handle that
// can be opened gives the path by the link of /proc/self/fd. Overlay and other file systems have handles that cannot be
// opened, or none: there, files that the task is near to are tried, and then the tree of the mount is searched. Whether a
// path is the one is decided by the kernel: a watch of our own on it must read the same in our fdinfo.

import { closeSync, lstatSync, readdirSync, readlinkSync, statSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { bytesToText, textToBytes } from "../../images/text.ts";
import { log } from "../../log.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { isSameHandle, openFileHandle } from "../../proc/file-handle.ts";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import type { InotifyMark } from "../../proc/notify-marks.ts";
import { IN_DONT_FOLLOW, IN_EXCL_UNLINK } from "../../sys/abi/event-files.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { MountNamespaces } from "../mounts/collect.ts";
import type { OpenFile } from "./file-kind.ts";
import { pathBytes } from "./path.ts";

/** Directory entries that a search looks at before it gives up: a second or so. */
const SEARCH_LIMIT = 200_000;
/** IN_DELETE_SELF: an event that no look at a file makes. */
const PROBE_MASK = 0x400 | IN_EXCL_UNLINK;
/** Minor bits of the kernel's own device numbers. */
const MINOR_BITS = 20;

/** Where a watched file is. */
export interface WatchedPath {
  readonly path: string;
  /** The watch is on the link itself (IN_DONT_FOLLOW). */
  readonly symlink?: boolean;
  /** Of a deleted file: the device by which the images know it. On btrfs that is the subvolume's, and not that of the mount. */
  readonly device?: number;
}

/** Finds paths for the watches of one inotify. Holds a scratch inotify and the mounts open: dispose of it. */
export class PathFinder implements Disposable {
  readonly #file: OpenFile;
  readonly #namespaces: MountNamespaces | undefined;
  #root: string;
  readonly #scratch: number;
  #mounts: readonly Mount[] | undefined;

  /** `namespaces` are those of the tree, where it has mounts of its own. */
  constructor(file: OpenFile, namespaces?: MountNamespaces) {
    this.#file = file;
    this.#namespaces = namespaces;
    this.#root = `/proc/${file.task.pid}/root`;
    this.#scratch = syscall("inotify_init1", O_NONBLOCK | O_CLOEXEC);
  }

  [Symbol.dispose](): void {
    closeSync(this.#scratch);
  }

  /**
   * A path of the watched file, from the task's root.
   *
   * @throws RepriseError UNSUPPORTED when there is none, or none was found.
   */
  find(mark: InotifyMark): WatchedPath {
    this.#mounts ??= readMountinfo(this.#file.task.pid);
    const mounts = this.#mounts.filter((mount) => deviceOf(mount) === mark.sdev);
    let opened = false;
    for (const mount of mounts) {
      const text = this.#byHandle(mark, mount);
      if (text !== undefined && this.#isWatched(mark, text)) return this.#described(text);
      opened ||= text !== undefined;
    }
    for (const path of this.#near()) if (this.#isWatched(mark, path)) return this.#described(path);
    // Whose handle can be opened would have a path if it were there.
    for (const { mountPoint } of opened ? [] : mounts) {
      const path = this.#search(mark, mountPoint);
      if (path !== undefined) return this.#described(path);
    }
    const deleted = this.#deleted(mark);
    if (deleted !== undefined) return deleted;
    throw this.#notFound(mark);
  }

  /**
   * The same, and in the other mount namespaces of the tree, where a mount's id tells which one is meant: a watch may have been put
   * through /proc/PID/fd or before a namespace was left.
   *
   * @throws RepriseError UNSUPPORTED when there is none, or none was found.
   */
  findAnywhere(mark: InotifyMark): WatchedPath & { readonly mnt_id?: number } {
    try {
      return this.find(mark);
    } catch (error) {
      const found = this.#findInOthers(mark);
      if (found !== undefined) return found;
      throw error;
    }
  }

  #findInOthers(mark: InotifyMark): (WatchedPath & { readonly mnt_id: number }) | undefined {
    const own = this.#root;
    try {
      for (const { prefix, entries } of this.#namespaces?.all ?? []) {
        this.#root = prefix;
        for (const { root_dev, mountpoint, mnt_id } of entries) {
          if (root_dev !== mark.sdev) continue;
          const path = this.#byHandle(mark, { mountPoint: mountpoint });
          if (path !== undefined && this.#isWatched(mark, path))
            return { ...this.#described(path), mnt_id };
          if (this.#isWatched(mark, mountpoint)) return { path: mountpoint, mnt_id };
        }
      }
      return undefined;
    } finally {
      this.#root = own;
    }
  }

  #described(path: string): WatchedPath {
    const stat = lstatSync(pathBytes(`${this.#root}${path}`), { throwIfNoEntry: false });
    return { path, ...(stat?.isSymbolicLink() === true ? { symlink: true } : {}) };
  }

  /** A mount of a file system that is known by its device. */
  mountOf(sdev: number): Mount | undefined {
    this.#mounts ??= readMountinfo(this.#file.task.pid);
    return this.#mounts.find((mount) => deviceOf(mount) === sdev);
  }

  /** The name that a deleted file had which the task has open: it is a ghost of the dump. */
  #deleted(mark: InotifyMark): WatchedPath | undefined {
    const { pid } = this.#file.task;
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      const link = `/proc/${pid}/fd/${fd}`;
      const stat = statSync(link, { bigint: true, throwIfNoEntry: false });
      if (stat?.ino !== mark.ino || stat.nlink !== 0n) continue;
      if (!this.#isSame(mark, link, { follow: true })) continue;
      const device = deviceOf({ devMajor: deviceMajor(stat.dev), devMinor: deviceMinor(stat.dev) });
      return { path: linkText(link).replace(/ \(deleted\)$/, ""), device };
    }
    return undefined;
  }

  /** Link text of the file behind the handle: for a deleted or hidden file it leads elsewhere or nowhere. */
  #byHandle(mark: InotifyMark, { mountPoint }: Pick<Mount, "mountPoint">): string | undefined {
    if (mark.handle === undefined) return undefined;
    const fd = openFileHandle(textToBytes(`${this.#root}${mountPoint}`), mark.handle);
    if (fd === undefined) return undefined;
    const text = linkText(`/proc/self/fd/${fd}`);
    closeSync(fd);
    return text;
  }

  /** What the task has open or stands on: watched files are often among these. */
  #near(): Set<string> {
    const { pid } = this.#file.task;
    const names = ["cwd", "exe", ...readdirSync(`/proc/${pid}/fd`).map((fd) => `fd/${fd}`)];
    const paths = new Set(["/"]);
    for (const name of names) {
      const path = linkText(`/proc/${pid}/${name}`);
      for (let at = path; at.startsWith("/") && at !== "/"; at = at.slice(0, at.lastIndexOf("/")))
        paths.add(at);
    }
    return paths;
  }

  /** Breadth first, on one file system. */
  #search(mark: InotifyMark, top: string): string | undefined {
    log.debug(`search ${top} for inode ${mark.ino}`);
    if (this.#isWatched(mark, top)) return top;
    const queue = [top];
    let seen = 0;
    for (let directory = queue.shift(); directory !== undefined; directory = queue.shift()) {
      for (const entry of entriesOf(`${this.#root}${directory}`)) {
        if (++seen > SEARCH_LIMIT) return undefined;
        const path = `${directory === "/" ? "" : directory}/${bytesToText(entry.name)}`;
        if (entry.isDirectory() && !this.#isMountPoint(path)) queue.push(path);
        if (inodeOf(`${this.#root}${path}`) === mark.ino && this.#isWatched(mark, path))
          return path;
      }
    }
    return undefined;
  }

  #isMountPoint(path: string): boolean {
    return this.#mounts?.some(({ mountPoint }) => mountPoint === path) ?? false;
  }

  /** Puts a watch of ours on the path and compares what the kernel says of the two. */
  #isWatched(mark: InotifyMark, path: string): boolean {
    return this.#isSame(mark, `${this.#root}${path}`, { follow: false });
  }

  #isSame(mark: InotifyMark, path: string, { follow }: { readonly follow: boolean }): boolean {
    const mask = follow ? PROBE_MASK : PROBE_MASK | IN_DONT_FOLLOW;
    const wd = trySyscall("inotify_add_watch", this.#scratch, textBytes(path), mask);
    if (wd < 0) return false;
    const mine = readFdInfo({ pid: process.pid, fd: this.#scratch }).inotify.find(
      (found) => found.wd === wd,
    );
    trySyscall("inotify_rm_watch", this.#scratch, wd);
    return mine !== undefined && isSameInode(mine, mark);
  }

  #notFound(mark: InotifyMark): RepriseError {
    const { task, fd } = this.#file;
    const message = `cannot dump watch ${mark.wd} of inotify fd ${fd} of pid ${task.pid}: no path leads to inode ${mark.ino} of device ${mark.sdev >>> MINOR_BITS}:${mark.sdev & ((1 << MINOR_BITS) - 1)}`;
    return new RepriseError("UNSUPPORTED", message, {
      pid: task.pid,
      fd,
      hint: "The watched file was deleted, or lies where it cannot be found. Have the program remove this watch, or stop it and dump without.",
    });
  }
}

/** Device, inode number and, where both have one, the handle (which tells a reused inode number). */
export function isSameInode(a: InotifyMark, b: InotifyMark): boolean {
  if (a.ino !== b.ino || a.sdev !== b.sdev) return false;
  if (a.handle === undefined || b.handle === undefined) return true;
  return isSameHandle(a.handle, b.handle);
}

function deviceOf({ devMajor, devMinor }: Pick<Mount, "devMajor" | "devMinor">): number {
  return devMajor * 2 ** MINOR_BITS + devMinor;
}

function linkText(path: string): string {
  try {
    return bytesToText(readlinkSync(path, "buffer"));
  } catch {
    return "";
  }
}

function inodeOf(path: string): bigint | undefined {
  try {
    return lstatSync(pathBytes(path), { bigint: true, throwIfNoEntry: false })?.ino;
  } catch {
    return undefined;
  }
}

function entriesOf(path: string): ReturnType<typeof readDirectory> {
  try {
    return readDirectory(path);
  } catch {
    return [];
  }
}

function readDirectory(path: string) {
  return readdirSync(pathBytes(path), { withFileTypes: true, encoding: "buffer" });
}

/** A path for a system call. */
function textBytes(path: string): Buffer {
  return Buffer.concat([textToBytes(path), Buffer.of(0)]);
}
