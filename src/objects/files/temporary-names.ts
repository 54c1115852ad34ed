// Names that a restore gives to files for as long as it takes to open them. What is open has the name that a file had when it was
// deleted, so it gets its old one (or one beside it, when that is taken) right before that; until then it has one that nobody else
// would use, and that may be removed by whoever finds it.

import { lstatSync, rmdirSync, statfsSync, unlinkSync } from "node:fs";
import { dirname } from "node:path";
import { log } from "../../log.ts";
import type { RegFileEntry } from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { AT_FDCWD, AT_REMOVEDIR } from "../../sys/abi/fcntl.ts";
import type { Program } from "../../tracee/program.ts";
import type { FilesRestore } from "./file-kind.ts";
import { joinPath } from "../mounts/external.ts";
import type { Place } from "../mounts/places.ts";
import { pathArgument, pathBytes } from "./path.ts";

/** A name that exists only while files are opened. */
export interface TemporaryName extends Place {
  readonly isDirectory: boolean;
  /** Index in the program of the call that makes it. */
  readonly madeBy: number;
  /** The name that it gets at last, in the same directory, and the index of the call that gives it. */
  readonly last?: { readonly path: string; givenBy?: number };
  /** Nobody else would use it, though it gets no other. */
  readonly isOwn?: boolean;
}

/** A file that was made: where, by which path it is opened, and the path that it gets at last. */
export interface MadeName {
  readonly place: Place;
  readonly path: string;
  readonly lastPath: string;
  readonly lastPlace: Place;
}

/** What is kept while one opening program is built. */
interface Names {
  /** By their paths seen from the engine. */
  readonly names: Map<string, TemporaryName>;
  /** Names that files get at last, in the same form. */
  readonly last: Set<string>;
}

const states = new WeakMap<FilesRestore, Names>();

/** Whether a name is one of those that were made. */
export function isTemporary(restore: FilesRestore, place: Place): boolean {
  return stateOf(restore).names.has(engineSide(place));
}

/** Names that the program makes and removes at its end. */
function temporaryNames(restore: FilesRestore): readonly TemporaryName[] {
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
    const { last } = name;
    const isRenamed = (last?.givenBy ?? Infinity) < failedAt;
    const path = engineSide(last !== undefined && isRenamed ? { ...name, ...last } : name);
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

/**
 * Paths of names that nobody else would use, for who cleans up when the engine dies; those that the root task sees as paths, and no
 * directories.
 */
export function ownNames(restore: FilesRestore): string[] {
  return temporaryNames(restore)
    .filter(({ last, isOwn }) => last !== undefined || isOwn === true)
    .filter(({ directory }) => directory === AT_FDCWD)
    .map(({ path }) => path);
}

/** Path of a place, seen from the engine. */
export function engineSide({ prefix, path }: Place): string {
  return prefix === "" ? path : joinPath(prefix, path);
}

/** Directories that are gone, too: they live as long as the name. */
export function makeParents(
  program: Program,
  { name, mnt_id }: RegFileEntry,
  restore: FilesRestore,
): void {
  const { names } = stateOf(restore);
  const placeOf = (path: string): Place => restore.temporaryPlace(mnt_id, path);
  const missing: Place[] = [];
  for (let at = dirname(name); at !== "/"; at = dirname(at)) {
    const place = placeOf(at);
    if (isThere(engineSide(place), names)) break;
    missing.unshift(place);
  }
  for (const place of missing) {
    names.set(engineSide(place), { ...place, isDirectory: true, madeBy: program.length });
    program.call("mkdirat", [place.directory, pathArgument(program, place.path), 0o700], {
      label: `make the directory of deleted file ${name} for a moment`,
    });
  }
}

/** The name of an entry, or one beside it when that is taken. */
function freeName({ name, mnt_id }: RegFileEntry, suffix: string, restore: FilesRestore): string {
  const { names, last } = stateOf(restore);
  const taken = (path: string): boolean => {
    const place = engineSide(restore.temporaryPlace(mnt_id, path));
    return last.has(place) || isThere(place, names);
  };
  let candidate = name;
  for (let attempt = 0; taken(candidate); attempt++) {
    candidate = `${name}${suffix}${attempt === 0 ? "" : `.${attempt}`}`;
  }
  return candidate;
}

/** Settles where the file of an entry is made, and by which name, for the call that comes next. */
export function addName(
  restore: FilesRestore,
  entry: RegFileEntry,
  {
    suffix,
    isDirectory,
    madeBy,
  }: { readonly suffix: string; readonly isDirectory: boolean; readonly madeBy: number },
): MadeName {
  const { names, last } = stateOf(restore);
  const lastPath = freeName(entry, suffix, restore);
  const lastPlace = restore.temporaryPlace(entry.mnt_id, lastPath);
  // Files are made in directories, by the names that these have.
  if (isDirectory || !canRename(engineSide(lastPlace))) {
    names.set(engineSide(lastPlace), { ...lastPlace, isDirectory, madeBy });
    return { place: lastPlace, path: lastPath, lastPath, lastPlace };
  }
  const path = joinPath(dirname(lastPath), ownName(names.size));
  const place = restore.temporaryPlace(entry.mnt_id, path);
  last.add(engineSide(lastPlace));
  names.set(engineSide(place), { ...place, isDirectory, madeBy, last: { path: lastPlace.path } });
  return { place, path, lastPath, lastPlace };
}

const OWN_NAME = ".reprise.";

/** A name that nobody else would use, in a directory that is there: the engine makes it before the program runs. */
export function addOwnName(restore: FilesRestore, directory: Place): Place {
  const { names } = stateOf(restore);
  const place = { ...directory, path: joinPath(directory.path, ownName(names.size)) };
  names.set(engineSide(place), { ...place, isDirectory: false, madeBy: BEFORE, isOwn: true });
  return place;
}

/** Index of a call for what is done before the program runs. */
const BEFORE = -1;

function ownName(index: number): string {
  return `${OWN_NAME}${process.pid}.${Date.now().toString(36)}.${index}`;
}

/** Whether the file system can give a file another name without taking it from another one (RENAME_NOREPLACE, renameat2(2)). */
function canRename(path: string): boolean {
  let directory = dirname(path);
  while (directory !== "/" && !exists(directory)) directory = dirname(directory);
  try {
    return RENAMING.has(statfsSync(pathBytes(directory)).type);
  } catch {
    return false;
  }
}

/** ext2 to 4, tmpfs, XFS, Btrfs, overlayfs, F2FS (include/uapi/linux/magic.h). */
const RENAMING: ReadonlySet<number> = new Set([
  0xef53, 0x01021994, 0x58465342, 0x9123683e, 0x794c7630, 0xf2f52010,
]);

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

function stateOf(restore: FilesRestore): Names {
  let state = states.get(restore);
  if (state === undefined) {
    state = { names: new Map(), last: new Set() };
    states.set(restore, state);
    restore.later((program) => removeNames(program, restore));
  }
  return state;
}

function removeNames(program: Program, restore: FilesRestore): void {
  for (const { directory, path, isDirectory, last } of temporaryNames(restore)) {
    if (last !== undefined) {
      last.givenBy = program.length;
      const [from, to] = [pathArgument(program, path), pathArgument(program, last.path)];
      program.call("renameat2", [directory, from, directory, to, RENAME_NOREPLACE], {
        label: `give the deleted file ${last.path} its name`,
      });
    }
    const args = [
      directory,
      pathArgument(program, last?.path ?? path),
      isDirectory ? AT_REMOVEDIR : 0,
    ];
    program.call("unlinkat", args, { label: `remove the temporary name ${last?.path ?? path}` });
  }
}

const RENAME_NOREPLACE = 1;
