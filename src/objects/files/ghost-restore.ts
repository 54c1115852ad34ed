// Deleted files, at restore: a ghost is made again under its old name (or beside it, when that is taken), filled from the
// image, opened, and its name removed when all files are open. A file that a dump gave a hard link is linked back to its
// old name for as long as it takes to open it. The opening program runs as root, before there are other tasks.

import { lstatSync, rmdirSync, unlinkSync } from "node:fs";
import { dirname } from "node:path";
import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { remapOf } from "../../images/check-files.ts";
import { loadGhost, type LoadedSet } from "../../images/check-set.ts";
import type { ImageEntry, PayloadPart } from "../../images/image-file.ts";
import { imageName } from "../../images/names.ts";
import {
  RemapType,
  type GhostFileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import {
  AT_FDCWD,
  AT_REMOVEDIR,
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
import { pathArgument, pathBytes } from "./path.ts";

/** A name that exists only while files are opened. */
export interface TemporaryName extends Place {
  readonly isDirectory: boolean;
  /** Index in the program of the call that makes it. */
  readonly madeBy: number;
}

/** What this room keeps while one opening program is built. */
interface Made {
  /** Where it is made, and by which name it is opened, by ghost id. */
  readonly ghosts: Map<number, { readonly place: Place; readonly path: string }>;
  /** Path by id of the hard link's entry, then of the name it is wanted for. */
  readonly links: Map<string, string>;
  /** By their paths seen from the engine. */
  readonly names: Map<string, TemporaryName>;
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
  for (const [id, remap] of remapsOf(set)) {
    if (remap.type !== RemapType.GHOST) continue;
    const { value } = loadGhost(set.reader, remap.id);
    if (value.dev === inode.dev && value.ino === inode.ino && set.files.has(id)) return id;
  }
  return undefined;
}

/** Names that the program makes and removes at its end. */
export function temporaryNames(restore: FilesRestore): readonly TemporaryName[] {
  const names = [...(states.get(restore)?.names.values() ?? [])];
  // What stands in a directory goes before it.
  return names.toSorted((a, b) => b.path.length - a.path.length);
}

/**
 * Removes the names that a program had made when it failed at entry `failedAt`. Never one that it came too late to make:
 * that may be somebody else's.
 */
export function removeTemporaryNames(restore: FilesRestore, failedAt: number): void {
  for (const name of temporaryNames(restore)) {
    if (name.madeBy >= failedAt) continue;
    const path = engineSide(name);
    try {
      if (name.isDirectory) rmdirSync(pathBytes(path));
      else unlinkSync(pathBytes(path));
    } catch (error) {
      if (errnoOf(error) !== "ENOENT")
        log.warn(
          `cannot remove ${path}, made for a moment to restore a deleted file: ${String(error)}`,
        );
    }
  }
}

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
    state = { ghosts: new Map(), links: new Map(), names: new Map() };
    states.set(restore, state);
    restore.later((program) => removeNames(program, restore));
  }
  return state;
}

function removeNames(program: Program, restore: FilesRestore): void {
  for (const { directory, path, isDirectory } of temporaryNames(restore)) {
    const args = [directory, pathArgument(program, path), isDirectory ? AT_REMOVEDIR : 0];
    program.call("unlinkat", args, { label: `remove the temporary name ${path}` });
  }
}

interface Wanted {
  readonly entry: RegFileEntry;
  /** Ghost id, or file id of the hard link. */
  readonly id: number;
}

function makeGhost(program: Program, wanted: Wanted, restore: FilesRestore): string {
  const { entry, id } = wanted;
  const { ghosts, names } = stateOf(restore);
  const known = ghosts.get(id);
  if (known !== undefined) return openGhostAgain(program, wanted, known, restore);
  const ghost = loadGhost(restore.set.reader, id);
  const isDirectory = (ghost.value.mode & S_IFMT) === S_IFDIR;
  makeParents(program, wanted, restore);
  // Made already, as the directory of another deleted file.
  const own = restore.temporaryPlace(entry.mnt_id, entry.name);
  const isMade = isDirectory && names.has(engineSide(own));
  const free = isMade ? entry.name : freeName(entry, `.cr.${id.toString(16)}.ghost`, restore);
  const place = restore.temporaryPlace(entry.mnt_id, free);
  ghosts.set(id, { place, path: free });
  if (!isMade) {
    addName(names, { ...place, isDirectory, madeBy: program.length });
    createGhost(program, ghost, { place, name: free, id, restore });
  }
  setAttributes(program, ghost.value, { place, restore });
  return free;
}

/** The same file by another name, or by another mount: a hard link, which takes no harm from being removed. */
function openGhostAgain(
  program: Program,
  { entry, id }: Wanted,
  known: { readonly place: Place; readonly path: string },
  restore: FilesRestore,
): string {
  const { names } = stateOf(restore);
  const own = restore.temporaryPlace(entry.mnt_id, entry.name);
  const suffix = known.path.slice(entry.name.length);
  const same = restore.temporaryPlace(entry.mnt_id, entry.name + suffix);
  if (engineSide(same) === engineSide(known.place)) return entry.name + suffix;
  if (own.directory === AT_FDCWD) return known.path;
  makeParents(program, { entry, id }, restore);
  const free = freeName(entry, `.cr.${id.toString(16)}.ghost`, restore);
  const place = restore.temporaryPlace(entry.mnt_id, free);
  addName(names, { ...place, isDirectory: false, madeBy: program.length });
  program.call(
    "linkat",
    [
      known.place.directory,
      pathArgument(program, known.place.path),
      place.directory,
      pathArgument(program, place.path),
      0,
    ],
    { label: `give the deleted file ${known.path} its other name ${free}` },
  );
  return free;
}

/** Path of a place, seen from the engine. */
function engineSide({ prefix, path }: Place): string {
  return prefix === "" ? path : joinPath(prefix, path);
}

/** Directories that are gone, too: they live as long as the name. */
function makeParents(program: Program, { entry }: Wanted, restore: FilesRestore): void {
  const { names } = stateOf(restore);
  const { name, mnt_id } = entry;
  const placeOf = (path: string): Place => restore.temporaryPlace(mnt_id, path);
  const missing: Place[] = [];
  for (let at = dirname(name); at !== "/"; at = dirname(at)) {
    const place = placeOf(at);
    if (isThere(engineSide(place), names)) break;
    missing.unshift(place);
  }
  for (const place of missing) {
    addName(names, { ...place, isDirectory: true, madeBy: program.length });
    program.call("mkdirat", [place.directory, pathArgument(program, place.path), 0o700], {
      label: `make the directory of deleted file ${name} for a moment`,
    });
  }
}

/** The name of an entry, or one beside it when that is taken. */
function freeName({ name, mnt_id }: RegFileEntry, suffix: string, restore: FilesRestore): string {
  const { names } = stateOf(restore);
  const taken = (path: string): boolean =>
    isThere(engineSide(restore.temporaryPlace(mnt_id, path)), names);
  let candidate = name;
  for (let attempt = 0; taken(candidate); attempt++) {
    candidate = `${name}${suffix}${attempt === 0 ? "" : `.${attempt}`}`;
  }
  return candidate;
}

function addName(names: Map<string, TemporaryName>, name: TemporaryName): void {
  names.set(engineSide(name), name);
}

function isThere(path: string, names: ReadonlyMap<string, TemporaryName>): boolean {
  return names.has(path) || exists(path);
}

function exists(path: string): boolean {
  try {
    return lstatSync(pathBytes(path), { throwIfNoEntry: false }) !== undefined;
  } catch {
    return false;
  }
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
  const { links, names } = stateOf(restore);
  const key = `${id}:${entry.mnt_id ?? 0}:${entry.name}`;
  const known = links.get(key);
  if (known !== undefined) return known;
  const link = restore.set.regularFiles.get(id);
  assert(link !== undefined, `file ${entry.id} is remapped to file ${id}, which is not there`);
  makeParents(program, wanted, restore);
  const path = freeName(entry, ".cr_link", restore);
  links.set(key, path);
  const from = restore.temporaryPlace(link.mnt_id, link.name);
  const to = restore.temporaryPlace(entry.mnt_id, path);
  addName(names, { ...to, isDirectory: false, madeBy: program.length });
  const [source, target] = [pathArgument(program, from.path), pathArgument(program, to.path)];
  program.call("linkat", [from.directory, source, to.directory, target, 0], {
    label: `link ${link.name} back to the lost name ${path}`,
    hint: "The dump made this hard link for the restore. Without it the file cannot be found.",
  });
  return path;
}
