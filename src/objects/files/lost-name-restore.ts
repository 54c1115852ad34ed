// A file that had lost the name by which it was open, but had another one, at restore: it is found by the hard link that the dump made
// (link_remap.N), or by its handle, and linked back to the lost name for as long as it takes to open it. One that has no name
// any more is made again.

import { closeSync, fstatSync, lstatSync } from "node:fs";
import { dirname } from "node:path";
import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { RegFileEntry, RepriseLinkedFile } from "../../images/schema/messages.generated.ts";
import {
  fileSystemId,
  isSameHandle,
  openFileHandle,
  readFileHandle,
  type FileHandle,
} from "../../proc/file-handle.ts";
import { AT_FDCWD, AT_SYMLINK_FOLLOW, S_IFLNK, S_IFMT } from "../../sys/abi/fcntl.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Program } from "../../tracee/program.ts";
import type { Place } from "../mounts/places.ts";
import type { FilesRestore } from "./file-kind.ts";
import { makeGhost } from "./ghost-restore.ts";
import { pathArgument, pathBytes } from "./path.ts";
import { addName, addOwnName, engineSide, makeParents } from "./temporary-names.ts";
import { checkUnchanged } from "./unchanged.ts";

/** While one opening program is built: path by id of the entry of the other name, then of the name it is wanted for. */
const states = new WeakMap<FilesRestore, Map<string, string>>();

/** Another name is at `place`; what the file held at the dump is in a ghost. */
type Found = { readonly place: Place } | { readonly ghost: number };

/**
 * The path by which a file can be opened that had another name, of which the entry `id` tells.
 *
 * @throws RepriseError FILE_CHANGED when it cannot be found
 */
export function linkBack(
  program: Program,
  { entry, id }: { readonly entry: RegFileEntry; readonly id: number },
  restore: FilesRestore,
): string {
  let links = states.get(restore);
  if (links === undefined) states.set(restore, (links = new Map()));
  const key = `${id}:${entry.mnt_id ?? 0}:${entry.name}`;
  const known = links.get(key);
  if (known !== undefined) return known;
  const link = restore.set.regularFiles.get(id);
  assert(link !== undefined, `file ${entry.id} is remapped to file ${id}, which is not there`);
  const found = find(entry, link, restore);
  if ("ghost" in found) return makeGhost(program, { entry, id: found.ghost }, restore);
  makeParents(program, entry, restore);
  const made = addName(restore, entry, {
    suffix: ".cr_link",
    isDirectory: false,
    madeBy: program.length,
  });
  const { place: from } = found;
  const { place: to, path, lastPath } = made;
  links.set(key, path);
  const [source, target] = [pathArgument(program, from.path), pathArgument(program, to.path)];
  program.call("linkat", [from.directory, source, to.directory, target, 0], {
    label: `link ${from.path} back to the lost name ${lastPath}`,
  });
  return path;
}

function find(entry: RegFileEntry, link: RegFileEntry, restore: FilesRestore): Found {
  const { linked } = link;
  const named = restore.temporaryPlace(link.mnt_id, link.name);
  const directory = nearestPlace(named);
  const handle = linked === undefined ? undefined : handleWithin(linked, directory);
  if (linked?.unnamed !== true && isAt(named, handle)) {
    check(entry, engineSide(named), restore);
    return { place: named };
  }
  const byHandle =
    handle === undefined ? undefined : nameByHandle(entry, handle, { directory, restore });
  if (byHandle !== undefined) return { place: byHandle };
  if (linked?.ghost !== undefined) {
    log.warn(
      `${entry.name} had other names at the dump, and cannot be found by them any more: it is made again with what it held then`,
    );
    return { ghost: linked.ghost };
  }
  throw new RepriseError(
    "FILE_CHANGED",
    `cannot restore file ${entry.name}: it had lost this name at the dump, and cannot be found by another one`,
    {
      hint:
        linked?.unnamed === true
          ? "All its names are gone, or it is in another file system, and it was too large to be saved (--ghost-limit)."
          : `The dump made the hard link ${link.name} for the restore: put it back.`,
    },
  );
}

/** The deepest directory above a place that is there. */
function nearestPlace(place: Place): Place {
  let path = dirname(place.path);
  const isThere = (): boolean => {
    const found = lstatSync(pathBytes(engineSide({ ...place, path })), { throwIfNoEntry: false });
    return found !== undefined;
  };
  while (path !== "/" && path !== "." && !isThere()) path = dirname(path);
  return { ...place, path };
}

/** The handle of a file, if `directory` is still the one of the dump: a copy of the tree has a file of its own. */
function handleWithin(linked: RepriseLinkedFile, directory: Place): FileHandle | undefined {
  const { handle: bytes, handle_type: type, file_system } = linked;
  if (bytes === undefined || type === undefined) return undefined;
  const path = pathBytes(engineSide(directory));
  const above = readFileHandle(path, { follow: true });
  const isSame =
    fileSystemId(path) === file_system &&
    above !== undefined &&
    Buffer.compare(above.bytes, linked.directory ?? new Uint8Array()) === 0;
  return isSame ? { type, bytes } : undefined;
}

/** Whether there is a file at a place, and with this handle; a dump before or after may have left a link of the same name. */
function isAt(place: Place, wanted: FileHandle | undefined): boolean {
  const path = pathBytes(engineSide(place));
  if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return false;
  if (wanted === undefined) return true;
  const handle = readFileHandle(path, { follow: false });
  return handle !== undefined && isSameHandle(handle, wanted);
}

/** A name that the engine gives to the file just before the program runs; undefined when the file is gone. */
function nameByHandle(
  entry: RegFileEntry,
  handle: FileHandle,
  { directory, restore }: { readonly directory: Place; readonly restore: FilesRestore },
): Place | undefined {
  const above = engineSide(directory);
  const isThere = withOpened(above, handle, (path, nlink) => {
    // Without a name no link can be made; somebody may have it open.
    if (nlink === 0n) return false;
    check(entry, path, restore);
    return true;
  });
  if (isThere !== true) return undefined;
  const place = addOwnName(restore, directory);
  const target = Buffer.concat([pathBytes(engineSide(place)), Buffer.of(0)]);
  restore.first(() => {
    const result = withOpened(above, handle, (path) =>
      trySyscall("linkat", AT_FDCWD, Buffer.from(`${path}\0`), AT_FDCWD, target, AT_SYMLINK_FOLLOW),
    );
    if (result === 0) return;
    const why = result === undefined ? "it is gone" : `linkat: ${errnoName(-result)}`;
    throw new RepriseError("SYSCALL", `cannot link ${entry.name} back to its lost name: ${why}`, {
      hint: "Its directory must be writable for a moment.",
    });
  });
  return place;
}

/** Gives `use` a path of the file with a handle and its number of names; undefined when it is gone. */
function withOpened<T>(
  directory: string,
  handle: FileHandle,
  use: (path: string, nlink: bigint) => T,
): T | undefined {
  const fd = openFileHandle(pathBytes(directory), handle);
  if (fd === undefined) return undefined;
  try {
    return use(`/proc/self/fd/${fd}`, fstatSync(fd, { bigint: true }).nlink);
  } finally {
    closeSync(fd);
  }
}

/** Whether it is what it was at the dump. */
function check(entry: RegFileEntry, path: string, { options }: FilesRestore): void {
  const { skipRwxCheck, fileValidation } = options;
  if (((entry.mode ?? 0) & S_IFMT) === S_IFLNK) return;
  checkUnchanged(entry, { skipRwxCheck, fileValidation, path });
}
