// What an open file is called in the images: by its own name where it is found by that, else a remap says what stands for it
// (remap-fpath.img; format.md 10.3): its content (ghost.ts), another name of the same file (lost-name.ts), or a process that has ended.
// The other half is path-for-opening.ts.

import { lstatSync, rmSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import { assert } from "../../errors.ts";
import { RemapType, type RemapFilePathEntry } from "../../images/schema/messages.generated.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { S_IFLNK, S_IFMT, S_IFREG } from "../../sys/abi/fcntl.ts";
import {
  DEVPTS_SUPER_MAGIC,
  OVERLAYFS_SUPER_MAGIC,
  PROC_SUPER_MAGIC,
} from "../../sys/abi/mount.ts";
import { ENOENT } from "../../sys/errno.ts";
import type { FilesDump, OpenFile } from "./file-kind.ts";
import { ghostOf } from "./ghost.ts";
import { linkOf, linkTo } from "./lost-name.ts";
import { locate, mountIdField, mountRoot, pathBytes, type Whereabouts } from "./path.ts";
import { refused } from "./refusals.ts";

/** The remaps of one dump. */
interface Remaps {
  readonly entries: RemapFilePathEntry[];
  written: boolean;
}

const states = new WeakMap<FilesDump, Remaps>();

/**
 * The path to store for a file, which gets the entry `id`. When the file is not found by it, the file's content or a way to
 * another name of it is put away, and a remap is noted.
 *
 * @throws RepriseError UNSUPPORTED for what cannot be kept, naming pid, fd and path; SYSCALL
 */
export function nameForImages(file: OpenFile, id: number, dump: FilesDump): string {
  const found = locate(file, dump);
  const { name } = found;
  refuseCovered(file, found, dump);
  if (found.kind === "there") return name;
  if (name.startsWith("/dev/pts/") && statfsSync(file.procPath).type === DEVPTS_SUPER_MAGIC)
    return name;
  const state = stateOf(dump);
  assert(!state.written, `${name} was looked at after the deferred steps of the dump`);
  state.entries.push({ orig_id: id, ...standIn(file, name, dump) });
  return name;
}

/** What stands for a file that is not found by its name. */
function standIn(
  file: OpenFile,
  name: string,
  dump: FilesDump,
): Omit<RemapFilePathEntry, "orig_id"> {
  const dead = deadProcess(file, name);
  if (dead !== undefined) return { remap_id: dead, remap_type: RemapType.PROCFS };
  if (file.stat.nlink === 0 || isLostBelow(file, name, dump))
    return { remap_id: ghostOf(file, name, dump), remap_type: RemapType.GHOST };
  return { remap_id: linkOf(file, name, dump), remap_type: RemapType.LINKED };
}

/**
 * A deleted file of a lower layer of an overlay keeps the number of links that it has there; that no link to it can be made tells that
 * it is gone.
 */
function isLostBelow(file: OpenFile, name: string, dump: FilesDump): boolean {
  if ((file.stat.mode & S_IFMT) !== S_IFREG) return false;
  if (statfsSync(file.procPath).type !== OVERLAYFS_SUPER_MAGIC) return false;
  const directory = `${mountRoot(file, dump)}${dirname(name)}`;
  if (lstatSync(pathBytes(directory), { throwIfNoEntry: false }) === undefined) return false;
  const path = `${directory}/.reprise-link.${process.pid}`;
  const result = linkTo(file, path, dump);
  if (result === 0) rmSync(pathBytes(path), { force: true });
  return result === -ENOENT;
}

/** A file that something is mounted over cannot be opened by a path. */
function refuseCovered(file: OpenFile, { kind, name }: Whereabouts, dump: FilesDump): void {
  const { mnt_id } = mountIdField(file, dump);
  if (mnt_id === undefined) return;
  // A file that is gone should at least have its directory on the mount; a mounted file has not.
  const mountPoint = dump.mounts?.all.find(({ byId }) => byId.has(mnt_id))?.byId.get(mnt_id);
  const path = kind === "there" || mountPoint?.mountpoint === name ? name : dirname(name);
  const follow = (file.stat.mode & S_IFMT) !== S_IFLNK;
  const seen = mountIdOf(pathBytes(mountRoot(file, dump) + path), { follow });
  if (seen === undefined || seen === mnt_id) return;
  throw refused(file, `something is mounted over it (at ${path})`, "Take that mount away first.");
}

/** The process whose directory in /proc a file is of, when it has ended. */
function deadProcess(file: OpenFile, name: string): number | undefined {
  const pid = /^\/proc\/(\d+)(?:\/|$)/.exec(name)?.[1];
  if (pid === undefined || statfsSync(file.procPath).type !== PROC_SUPER_MAGIC) return undefined;
  return Number(pid);
}

function stateOf(dump: FilesDump): Remaps {
  let state = states.get(dump);
  if (state === undefined) {
    const fresh: Remaps = { entries: [], written: false };
    states.set(dump, (state = fresh));
    dump.later(() => {
      fresh.written = true;
      dump.images.write("remap-fpath", 0, fresh.entries);
    });
  }
  return state;
}
