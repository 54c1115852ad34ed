// A file that has lost the name by which it is open, but has another one, at dump: it must come back as this very file. As with CRIU's
// --link-remap it gets a hard link next to the lost name, at the last moment, so that a dump that is killed leaves none. Where the
// tasks go on there shall be no trace of the dump: the restore finds the file by its handle (name_to_handle_at(2)), and should it
// have lost all its names by then, makes it again. The other half is lost-name-restore.ts.

import { closeSync, fstatSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { FdTypes, type RepriseLinkedFile } from "../../images/schema/messages.generated.ts";
import { fileSystemId, openFileHandle, readFileHandle } from "../../proc/file-handle.ts";
import { AT_FDCWD, AT_SYMLINK_FOLLOW, S_IFDIR, S_IFMT } from "../../sys/abi/fcntl.ts";
import { EEXIST, ENOENT, errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { asOwner } from "../mounts/as-owner.ts";
import { isContentSaved } from "../mounts/contents.ts";
import type { FilesDump, OpenFile } from "./file-kind.ts";
import { ghostIfSmall } from "./ghost.ts";
import { NO_OWNER } from "./owner.ts";
import { leadsTo, mountIdField, mountRoot, nearestDirectory, pathBytes } from "./path.ts";
import { refused } from "./refusals.ts";

/** link_remap.N names that are tried. */
const MAX_LINK_NAMES = 100;

/** Of one dump: file id of the hard link by device, inode and name. */
const states = new WeakMap<FilesDump, Map<string, number>>();

/**
 * Sees to it that a file can be found without its lost name. Gives the id of an entry that is about another name.
 *
 * @throws RepriseError UNSUPPORTED for what cannot be found again, naming pid, fd and path
 */
export function linkOf(file: OpenFile, name: string, dump: FilesDump): number {
  let links = states.get(dump);
  if (links === undefined) states.set(dump, (links = new Map()));
  const key = `${file.stat.devMajor}:${file.stat.devMinor}:${file.stat.inode}:${name}`;
  const known = links.get(key);
  if (known !== undefined) return known;
  const id = dump.addEntry((linkId) => ({
    type: FdTypes.REG,
    id: linkId,
    reg: {
      id: linkId,
      flags: 0,
      pos: 0n,
      fown: NO_OWNER,
      ...wayBack({ file, name, linkId, dump }),
      build_id: [],
      ...mountIdField(file, dump),
    },
  }));
  links.set(key, id);
  return id;
}

interface Lost {
  readonly file: OpenFile;
  /** The name that is lost. */
  readonly name: string;
  readonly linkId: number;
  readonly dump: FilesDump;
}

/** Another name of a file, and how to find it without. */
interface WayBack {
  readonly name: string;
  readonly linked?: RepriseLinkedFile;
}

function wayBack(lost: Lost): WayBack {
  const { file, name, dump } = lost;
  const { noLink = false, linkRemap } = dump.options;
  if ((file.stat.mode & S_IFMT) === S_IFDIR) {
    throw refused(
      file,
      `the directory is not found by its name ${name} (is something mounted over it, or its mount in no place?)`,
    );
  }
  const isWhole = isContentSaved(mountIdField(file, dump).mnt_id, dump.mounts);
  const handle = isWhole ? undefined : handleOf(lost);
  if (noLink && handle !== undefined) {
    const ghost = ghostIfSmall(file, dump);
    const linked = { ...handle, unnamed: true, ...(ghost === undefined ? {} : { ghost }) };
    return { name: linkName(lost, dirname(name), 0), linked };
  }
  if (!linkRemap) {
    throw refused(
      file,
      `${name} is deleted but the file has another name`,
      "Dump with --link-remap: it puts a hard link next to the lost name, which a restore needs.",
    );
  }
  if (isWhole) return linkInside(lost);
  if (noLink) return { ...linkAtCommit(lost, { reuse: true }), linked: { kept: true } };
  return { ...linkAtCommit(lost), ...(handle === undefined ? {} : { linked: handle }) };
}

/** The handle of a file, if that can be opened, and of the directory of the lost name, of which a copy has another one. */
function handleOf({ file, name, dump }: Lost): RepriseLinkedFile | undefined {
  const directory = pathBytes(nearestDirectory(mountRoot(file, dump) + name));
  const file_system = fileSystemId(directory);
  // The directories may be gone in which the mount of the file was.
  if (fileSystemId(file.procPath) !== file_system) return undefined;
  const handle = readFileHandle(file.procPath, { follow: true });
  const above = readFileHandle(directory, { follow: true });
  const fd = handle === undefined ? undefined : openFileHandle(directory, handle);
  if (handle === undefined || above === undefined || fd === undefined) return undefined;
  try {
    if (fstatSync(fd, { bigint: true }).ino !== file.stat.inode) return undefined;
  } finally {
    closeSync(fd);
  }
  return {
    file_system,
    directory: above.bytes,
    handle_type: handle.type,
    handle: handle.bytes,
  };
}

/** A link that is saved with all that is in its file system. */
function linkInside(lost: Lost): WayBack {
  const { file, dump } = lost;
  const link = makeLink(lost);
  const path = mountRoot(file, dump) + link.name;
  dump.atEnd((tasks) => {
    if (tasks === "alive") removeName(path);
  });
  return { name: link.name };
}

/** Tries whether a link can be made, and makes it when the rest of the set is whole. */
function linkAtCommit(lost: Lost, options: { readonly reuse?: boolean } = {}): WayBack {
  const { file, name, dump } = lost;
  const link = makeLink(lost, options);
  if (link.isOld) return { name: link.name };
  const path = mountRoot(file, dump) + link.name;
  removeName(path);
  dump.beforeCommit(() => {
    const result = linkTo(file, path, dump);
    if (result !== 0) throw unlinkable(file, name, result);
    dump.onAbort(() => removeName(path));
  });
  return { name: link.name };
}

/** A hard link to a file; `isOld` when it was there, which `reuse` allows. */
interface Link {
  readonly name: string;
  readonly isOld: boolean;
}

/** Makes a hard link next to the lost name. */
function makeLink(lost: Lost, { reuse = false }: { readonly reuse?: boolean } = {}): Link {
  const { file, name, dump } = lost;
  const root = mountRoot(file, dump);
  for (let directory = dirname(name), attempt = 0; ;) {
    const link = linkName(lost, directory, attempt);
    const result = linkTo(file, root + link, dump);
    if (result === 0) return { name: link, isOld: false };
    if (result === -EEXIST && reuse && leadsTo(root + link, file.stat) === "it")
      return { name: link, isOld: true };
    // A link that an earlier dump left; then a directory that is gone too, where the one above must do.
    if (result === -EEXIST && attempt < MAX_LINK_NAMES) attempt++;
    else if (result === -ENOENT && directory !== "/") directory = dirname(directory);
    else throw unlinkable(file, name, result);
  }
}

function linkName({ linkId }: Lost, directory: string, attempt: number): string {
  const suffix = attempt === 0 ? "" : `.${attempt}`;
  return `${directory === "/" ? "" : directory}/link_remap.${linkId}${suffix}`;
}

/** Makes a hard link to an open file. @returns what the kernel says */
export function linkTo(file: OpenFile, path: string, dump: FilesDump): number {
  const target = Buffer.concat([pathBytes(path), Buffer.of(0)]);
  const source = Buffer.from(`${file.procPath}\0`);
  return asOwner(dump.mounts?.maps, () =>
    trySyscall("linkat", AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW),
  );
}

function removeName(path: string): void {
  rmSync(pathBytes(path), { force: true });
}

function unlinkable(file: OpenFile, name: string, result: number): Error {
  return refused(file, `no hard link can be made for ${name}: linkat: ${errnoName(-result)}`);
}
