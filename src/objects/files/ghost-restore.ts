// Deleted files, at restore: a ghost is made again in its directory, filled from the image, opened, and its name removed when all
// files are open (temporary-names.ts). A file that a dump gave a hard link is linked back for as long as it takes to open it. The
// opening program runs as root, before there are other tasks.

import { basename, dirname } from "node:path";
import { assert, RepriseError } from "../../errors.ts";
import { remapOf } from "../../images/check-files.ts";
import { loadGhost, type LoadedSet } from "../../images/check-set.ts";
import type { ImageEntry, PayloadPart } from "../../images/image-file.ts";
import { imageName } from "../../images/names.ts";
import {
  RemapType,
  type GhostFileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
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
import { processForProc } from "./dead-process.ts";
import { restoreXattrs } from "./extended-attributes.ts";
import type { FilesRestore } from "./file-kind.ts";
import { joinPath } from "../mounts/external.ts";
import type { Place } from "../mounts/places.ts";
import { pathArgument } from "./path.ts";
import { addName, engineSide, isTemporary, makeParents, type MadeName } from "./temporary-names.ts";

/** What this room keeps while one opening program is built. */
interface Made {
  /** Where it is made, and by which name it is opened, by ghost id. */
  readonly ghosts: Map<number, MadeName>;
  /** Path by id of the hard link's entry, then of the name it is wanted for. */
  readonly links: Map<string, string>;
}

const states = new WeakMap<FilesRestore, Made>();

/**
 * The path by which the file of an entry can be opened: its own, or one that the program makes before and removes at its
 * end.
 *
 * @throws RepriseError UNSUPPORTED, BAD_IMAGE
 */
export function pathForOpening(
  program: Program,
  entry: RegFileEntry,
  restore: FilesRestore,
): string {
  if (entry.ext === true) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore file ${entry.name}: it was external at the dump`,
      { hint: "Give it with --inherit-fd." },
    );
  }
  restore.inMountsOf(program, entry.mnt_id);
  const remap = remapsOf(restore.set).get(entry.id);
  if (remap === undefined) return entry.name;
  switch (remap.type) {
    case RemapType.GHOST:
      return makeGhost(program, { entry, id: remap.id }, restore);
    case RemapType.LINKED:
      return linkBack(program, { entry, id: remap.id }, restore);
    case RemapType.PROCFS:
      processForProc(program, remap.id, restore);
      return entry.name;
    default:
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore file ${entry.name}: remap type ${remap.type}`,
      );
  }
}

/** The id of an open file that is a ghost with this device (the kernel's number) and inode; undefined when there is none. */
export function ghostWithInode(
  set: LoadedSet,
  inode: { readonly dev: number; readonly ino: bigint },
): number | undefined {
  let index = inodeIndexes.get(set);
  if (index === undefined) {
    const fresh = new Map<string, number>();
    for (const [id, remap] of remapsOf(set)) {
      if (remap.type !== RemapType.GHOST || !set.files.has(id)) continue;
      const { dev, ino } = loadGhost(set.reader, remap.id).value;
      const key = `${dev}:${ino}`;
      if (!fresh.has(key)) fresh.set(key, id);
    }
    inodeIndexes.set(set, (index = fresh));
  }
  return index.get(`${inode.dev}:${inode.ino}`);
}

/** By device and inode. */
const inodeIndexes = new WeakMap<LoadedSet, ReadonlyMap<string, number>>();

/** Hard links that the dump left (link_remap.N): no longer needed once the set is not to be restored again. */
export function linkRemapPaths(
  set: LoadedSet,
  prefixOf: (mntId: number | undefined) => string,
): readonly string[] {
  const links = [...remapsOf(set).values()].filter(({ type }) => type === RemapType.LINKED);
  return links.flatMap(({ id }) => {
    const link = set.regularFiles.get(id);
    return link === undefined ? [] : prefixOf(link.mnt_id) + link.name;
  });
}

type Remap = ReturnType<typeof remapOf>;
const remapIndexes = new WeakMap<LoadedSet, ReadonlyMap<number, Remap>>();

function remapsOf(set: LoadedSet): ReadonlyMap<number, Remap> {
  let index = remapIndexes.get(set);
  if (index === undefined) {
    index = new Map(set.remaps.map((remap) => [remap.orig_id, remapOf(remap)]));
    remapIndexes.set(set, index);
  }
  return index;
}

function stateOf(restore: FilesRestore): Made {
  let state = states.get(restore);
  if (state === undefined) {
    state = { ghosts: new Map(), links: new Map() };
    states.set(restore, state);
  }
  return state;
}

interface Wanted {
  readonly entry: RegFileEntry;
  /** Ghost id, or file id of the hard link. */
  readonly id: number;
}

function makeGhost(program: Program, wanted: Wanted, restore: FilesRestore): string {
  const { entry, id } = wanted;
  const { ghosts } = stateOf(restore);
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

function linkBack(program: Program, wanted: Wanted, restore: FilesRestore): string {
  const { entry, id } = wanted;
  const { links } = stateOf(restore);
  const key = `${id}:${entry.mnt_id ?? 0}:${entry.name}`;
  const known = links.get(key);
  if (known !== undefined) return known;
  const link = restore.set.regularFiles.get(id);
  assert(link !== undefined, `file ${entry.id} is remapped to file ${id}, which is not there`);
  makeParents(program, entry, restore);
  const from = restore.temporaryPlace(link.mnt_id, link.name);
  const made = addName(restore, entry, {
    suffix: ".cr_link",
    isDirectory: false,
    madeBy: program.length,
  });
  const { place: to, path, lastPath } = made;
  links.set(key, path);
  const [source, target] = [pathArgument(program, from.path), pathArgument(program, to.path)];
  program.call("linkat", [from.directory, source, to.directory, target, 0], {
    label: `link ${link.name} back to the lost name ${lastPath}`,
    hint: "The dump made this hard link for the restore. Without it the file cannot be found.",
  });
  return path;
}
