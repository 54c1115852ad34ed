// Deleted files, at restore: a ghost is made again in its directory, filled from the image, opened, and its name removed when all
// files are open (temporary-names.ts).

import { basename, dirname } from "node:path";
import { assert } from "../../errors.ts";
import { loadGhost } from "../../images/check-set.ts";
import type { ImageEntry, PayloadPart } from "../../images/image-file.ts";
import { imageName } from "../../images/names.ts";
import type { GhostFileEntry, RegFileEntry } from "../../images/schema/messages.generated.ts";
import {
  AT_FDCWD,
  AT_SYMLINK_NOFOLLOW,
  O_CREAT,
  O_EXCL,
  O_NOFOLLOW,
  O_RDONLY,
  O_WRONLY,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  SEEK_SET,
} from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { restoreXattrs } from "./extended-attributes.ts";
import type { FilesRestore } from "./file-kind.ts";
import { joinPath } from "../mounts/external.ts";
import type { Place } from "../mounts/places.ts";
import { pathArgument } from "./path.ts";
import { addName, engineSide, isTemporary, makeParents, type MadeName } from "./temporary-names.ts";

/** What this room keeps while one opening program is built: where a ghost is made, and by which name it is opened, by its id. */
const states = new WeakMap<FilesRestore, Map<number, MadeName>>();

interface Wanted {
  readonly entry: RegFileEntry;
  /** Ghost id. */
  readonly id: number;
}

/** The path by which a ghost can be opened, which the program makes before. */
export function makeGhost(program: Program, wanted: Wanted, restore: FilesRestore): string {
  const { entry, id } = wanted;
  let ghosts = states.get(restore);
  if (ghosts === undefined) states.set(restore, (ghosts = new Map()));
  const known = ghosts.get(id);
  if (known !== undefined) return openGhostAgain(program, wanted, known, restore);
  const ghost = loadGhost(restore.set.reader, id);
  const isDirectory = (ghost.value.mode & S_IFMT) === S_IFDIR;
  makeParents(program, entry, restore);
  // Made already, as the directory of another deleted file.
  const own = restore.temporaryPlace(entry.mnt_id, entry.name);
  const isMade = isDirectory && isTemporary(restore, own);
  const suffix = `.cr.${id.toString(16)}.ghost`;
  const made = isMade
    ? { place: own, path: entry.name, lastPath: entry.name, lastPlace: own }
    : addName(restore, entry, { suffix, isDirectory, madeBy: program.length });
  ghosts.set(id, made);
  const { place, path, lastPath } = made;
  if (!isMade) createGhost(program, ghost, { place, name: lastPath, id, restore });
  setAttributes(program, ghost.value, { place, restore });
  return path;
}

/** The same file by another name, or by another mount: a hard link, which takes no harm from being removed. */
function openGhostAgain(
  program: Program,
  { entry, id }: Wanted,
  known: MadeName,
  restore: FilesRestore,
): string {
  const own = restore.temporaryPlace(entry.mnt_id, entry.name);
  const lastSuffix = known.lastPath.slice(entry.name.length);
  const same = restore.temporaryPlace(entry.mnt_id, entry.name + lastSuffix);
  if (engineSide(same) === engineSide(known.lastPlace))
    return joinPath(dirname(entry.name), basename(known.path));
  if (own.directory === AT_FDCWD) return known.path;
  makeParents(program, entry, restore);
  const suffix = `.cr.${id.toString(16)}.ghost`;
  const { place, path, lastPath } = addName(restore, entry, {
    suffix,
    isDirectory: false,
    madeBy: program.length,
  });
  program.call(
    "linkat",
    [
      known.place.directory,
      pathArgument(program, known.place.path),
      place.directory,
      pathArgument(program, place.path),
      0,
    ],
    { label: `give the deleted file ${known.lastPath} its other name ${lastPath}` },
  );
  return path;
}

interface Creation {
  readonly place: Place;
  /** For messages. */
  readonly name: string;
  readonly id: number;
  readonly restore: FilesRestore;
}

function createGhost(
  program: Program,
  ghost: ImageEntry<GhostFileEntry>,
  creation: Creation,
): void {
  const { mode, rdev, symlnk_target } = ghost.value;
  const { place, name, id } = creation;
  const { directory } = place;
  const path = pathArgument(program, place.path);
  const options = {
    label: `make the deleted file ${name} again`,
    hint: "Its directory must be writable for a moment.",
  };
  switch (mode & S_IFMT) {
    case S_IFREG:
      fillGhost(program, ghost, { ...creation, options });
      return;
    case S_IFDIR:
      program.call("mkdirat", [directory, path, 0o700], options);
      return;
    case S_IFLNK: {
      assert(symlnk_target !== undefined, `ghost ${id} is a link without a target`);
      program.call("symlinkat", [pathArgument(program, symlnk_target), directory, path], options);
      return;
    }
    default:
      program.call("mknodat", [directory, path, mode & ~0o777, rdev ?? 0], options);
  }
}

interface Filling extends Creation {
  readonly options: { readonly label: string; readonly hint: string };
}

function fillGhost(
  program: Program,
  { value, payload }: ImageEntry<GhostFileEntry>,
  { place, id, restore, options }: Filling,
): void {
  const flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
  const path = pathArgument(program, place.path);
  const to = program.call("openat", [place.directory, path, flags, 0o600], options);
  if (payload.some(({ length }) => length > 0)) {
    const from = restore.openImage(program, imageName("ghost-file", id));
    for (const part of payload) copyPart(program, { from, to, part }, options);
    program.call("close", [from]);
  }
  if (value.size !== undefined) program.call("ftruncate", [to, value.size], options);
  program.call("close", [to]);
}

interface PartCopy {
  readonly from: Argument;
  readonly to: Argument;
  readonly part: PayloadPart;
}

/** sendfile moves at most MAX_RW_COUNT (2 GiB less a page) in one call. */
const MAX_COPY = 1 << 30;

function copyPart(
  program: Program,
  { from, to, part }: PartCopy,
  options: { readonly label: string },
): void {
  program.call("lseek", [from, part.offset, SEEK_SET], options);
  program.call("lseek", [to, part.at ?? 0, SEEK_SET], options);
  for (let rest = part.length; rest > 0; rest -= MAX_COPY) {
    const length = Math.min(rest, MAX_COPY);
    program.call("sendfile", [to, from, 0, length], { ...options, expect: length });
  }
}

function setAttributes(
  program: Program,
  ghost: GhostFileEntry,
  { place, restore }: { readonly place: Place; readonly restore: FilesRestore },
): void {
  const { directory, path: name } = place;
  const path = pathArgument(program, name);
  const { uid, gid, mode, atim, mtim } = ghost;
  const label = `set owner, mode and times of deleted file ${name}`;
  // The order matters: chown takes set-user-ID bits away.
  program.call("fchownat", [directory, path, uid, gid, AT_SYMLINK_NOFOLLOW], { label });
  if ((mode & S_IFMT) !== S_IFLNK) {
    program.call("fchmodat", [directory, path, mode & 0o7777], { label });
  }
  if (ghost.xattrs.length > 0) {
    const opened = program.call("openat", [directory, path, O_RDONLY | O_NOFOLLOW, 0], { label });
    restoreXattrs(program, opened, {
      xattrs: ghost.xattrs,
      what: `deleted file ${name}`,
      isForeigner: restore.isForeigner === true,
    });
    program.call("close", [opened]);
  }
  if (atim === undefined || mtim === undefined) return;
  const times = Buffer.alloc(32);
  [atim, mtim].forEach(({ tv_sec, tv_usec }, index) => {
    times.writeBigInt64LE(BigInt.asIntN(64, tv_sec), index * 16);
    times.writeBigInt64LE(BigInt.asIntN(64, tv_usec * 1000n), index * 16 + 8);
  });
  const pointer = program.data(times);
  program.call("utimensat", [directory, path, pointer, AT_SYMLINK_NOFOLLOW], { label });
}
