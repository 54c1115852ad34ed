// Before anything is made at restore: are the files still what they were at the dump? Size, mode and, for ELF files, the
// build id are compared as criu does (format.md 10.2); what an entry does not tell is not compared.

import { lstatSync, statSync, type BigIntStats } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { remapOf } from "../../images/check-files.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import {
  RemapType,
  type FileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
import { readBuildId } from "../../proc/build-id.ts";
import { S_IFLNK, S_IFMT } from "../../sys/abi/fcntl.ts";
import type { FilesRestoreOptions } from "./file-kind.ts";
import { pathBytes } from "./path.ts";

export interface UnchangedOptions extends Pick<
  FilesRestoreOptions,
  "skipRwxCheck" | "fileValidation"
> {
  /**
   * Directory that the path of an entry starts at.
   * @default none
   */
  readonly root?: (entry: RegFileEntry) => string;
  /**
   * Where the file is, seen from the engine.
   * @default by its name
   */
  readonly path?: string;
}

/**
 * Checks every regular file among `files` (and behind the FIFOs among them) that a restore will open by its own name: not
 * deleted ones, external ones, files of /proc/PID and of terminals, which come into being with the restore.
 *
 * @throws RepriseError FILE_CHANGED for the first that differs or is missing.
 */
export function checkRegularFiles(
  files: readonly FileEntry[],
  set: LoadedSet,
  options: UnchangedOptions,
): void {
  const skipped = madeByRestore(set);
  const seen = new Set<string>();
  for (const { reg, fifo, reprise_mqueue } of files) {
    if (reprise_mqueue !== undefined) continue;
    const entry = reg ?? set.regularFiles.get(fifo?.regf_id ?? 0);
    if (entry === undefined || skipped.has(entry.id) || entry.ext === true) continue;
    if (APPEARS_LATER.test(entry.name)) continue;
    const key = `${entry.name}\0${entry.size}:${entry.mode}:${entry.build_id.join()}`;
    if (seen.has(key)) continue;
    seen.add(key);
    checkUnchanged(entry, options);
  }
}

/**
 * Compares one file with its entry.
 * @throws RepriseError FILE_CHANGED naming the path and what differs.
 */
export function checkUnchanged(entry: RegFileEntry, options: UnchangedOptions): void {
  const path = options.path ?? (options.root?.(entry) ?? "") + entry.name;
  const stat = look(entry, path);
  if (entry.size !== undefined && Number(stat.size) !== entry.size) {
    throw changed(entry, `its size was ${entry.size} and is ${stat.size}`);
  }
  checkMode(entry, Number(stat.mode), options);
  if (options.fileValidation !== "buildid" || entry.build_id.length === 0) return;
  // Without a build id now, or with none then, size and mode must do: the same as criu.
  const now = wordsOf(readBuildId(pathBytes(path)));
  if (now.length > 0 && now.join() !== entry.build_id.join()) {
    throw changed(entry, "it is another build (its build id differs)");
  }
}

/** A build id as the images store it: u32 words, little-endian, filled up with zeros. */
export function wordsOf(id: Uint8Array | undefined): readonly number[] {
  if (id === undefined) return [];
  const padded = Buffer.alloc(Math.ceil(id.length / 4) * 4);
  padded.set(id);
  return Array.from({ length: padded.length / 4 }, (_, index) => padded.readUInt32LE(index * 4));
}

const APPEARS_LATER = /^\/(?:proc\/\d+(?:\/|$)|dev\/pts\/\d)/;
const PERMISSIONS = 0o777;

function checkMode(entry: RegFileEntry, now: number, { skipRwxCheck }: UnchangedOptions): void {
  if (entry.mode === undefined) return;
  const ignored = skipRwxCheck ? PERMISSIONS : 0;
  if ((entry.mode & ~ignored) === (now & ~ignored)) return;
  const was = `0${entry.mode.toString(8)}`;
  const text = `its mode was ${was} and is 0${now.toString(8)}`;
  const onlyPermissions = ((entry.mode ^ now) & ~PERMISSIONS) === 0;
  throw changed(
    entry,
    text,
    onlyPermissions
      ? `Set it back by chmod, or ignore permissions with criu restore --skip-file-rwx-check.`
      : undefined,
  );
}

function look(entry: RegFileEntry, path: string): BigIntStats {
  const isLink = ((entry.mode ?? 0) & S_IFMT) === S_IFLNK;
  try {
    return (isLink ? lstatSync : statSync)(pathBytes(path), { bigint: true });
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code ?? "unknown error";
    throw new RepriseError("FILE_CHANGED", `cannot restore file ${entry.name}: stat: ${errno}`, {
      syscall: "stat",
      errno,
      cause,
      hint: "The processes had this file open or mapped, or stood in this directory. Put it back.",
    });
  }
}

function changed(entry: RegFileEntry, what: string, hint?: string): RepriseError {
  return new RepriseError(
    "FILE_CHANGED",
    `cannot restore file ${entry.name}: it changed since the dump: ${what}`,
    {
      hint:
        hint ?? "Put the file back as it was at the dump, or restore on the machine it is from.",
    },
  );
}

/** Ids of entries whose file the restore makes, or that belong to such a file. */
function madeByRestore(set: LoadedSet): Set<number> {
  const ids = new Set<number>();
  for (const remap of set.remaps) {
    ids.add(remap.orig_id);
    const { type, id } = remapOf(remap);
    // The entry of a hard link made by the dump has only a name; it is looked at when it is linked (lost-name-restore.ts).
    if (type === RemapType.LINKED) ids.add(id);
  }
  for (const { tty } of set.files.values()) if (tty?.regf_id !== undefined) ids.add(tty.regf_id);
  return ids;
}
