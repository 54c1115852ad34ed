// Regular files, directories, memory devices, and everything opened by O_PATH: what a path and an lseek bring back. See
// open(2), drivers/char/mem.c; format.md 10.2. Deleted files are saved-name.ts's part.

import { log } from "../../log.ts";
import { readBuildId } from "../../proc/build-id.ts";
import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
import {
  AT_FDCWD,
  F_DUPFD,
  O_ACCMODE,
  O_APPEND,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_NOCTTY,
  O_NOFOLLOW,
  O_PATH,
  O_TRUNC,
  O_WRONLY,
  S_IFCHR,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  SEEK_SET,
} from "../../sys/abi/fcntl.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { isOfLaterTask, openStandIn, settleProcFile } from "./proc-of-task.ts";
import { pathForOpening } from "./path-for-opening.ts";
import { nameForImages } from "./saved-name.ts";
import { O_ASYNC, readOwner, restoreOwner } from "./owner.ts";
import { KMSG_MINOR, MEM_MAJOR } from "./memory-device.ts";
import { openMessageQueue } from "./mqueue.ts";
import { mountIdField, pathArgument } from "./path.ts";
import { wordsOf } from "./unchanged.ts";

export const regularKind: FileKind = {
  name: "file",
  type: FdTypes.REG,
  recognise: isRegular,
  write: (file, id, dump) => ({ type: FdTypes.REG, id, reg: regularEntry(file, id, dump) }),
  open: (program, entry, restore) => {
    assert(entry.reg !== undefined, `file ${entry.id} is no regular file`);
    if (entry.reprise_mqueue !== undefined) return openMessageQueue(program, entry, restore);
    return openRegular(program, entry.reg, restore);
  },
  settle: settleRegular,
  settleEach: true,
  inheritKeys: ({ reg }) => (reg === undefined ? [] : pathKeys(reg)),
  openInherited: (program, { id, reg }, fd, { isForeigner }) =>
    openInheritedPath(program, reg, { id, fd, isForeigner }),
};

/** A path as --inherit-fd has it, without its slash; of an external file, its name. */
export function pathKeys({ name, ext }: RegFileEntry): string[] {
  return ext === true ? [name] : [name.replace(/^\//, ""), name];
}

/** The caller's own description of a file that has a path; an external one is opened once more. */
export function openInheritedPath(
  program: Program,
  reg: RegFileEntry | undefined,
  how: { readonly id: number; readonly fd: number; readonly isForeigner: boolean | undefined },
): Argument {
  const { id, fd, isForeigner } = how;
  const label = `take over ${reg?.name} (file ${id})`;
  if (reg?.ext !== true || isForeigner === true)
    return program.call("fcntl", [fd, F_DUPFD, 0], { label });
  const path = program.string(`/proc/self/fd/${fd}`);
  return program.call("openat", [AT_FDCWD, path, openFlags(reg) & ~O_NOFOLLOW, 0], { label });
}

/** pos of a file that cannot seek. */
export const NO_POSITION = 0xffff_ffff_ffff_ffffn;

/** __O_TMPFILE together with O_DIRECTORY, which open(2) demands of it. */
const O_TMPFILE = 0o20200000;
const TMPFILE_BIT = 0o20000000;
/** Flags that act at open(2) alone; the kernel does not keep them, but an image may say anything. */
const ONLY_AT_OPEN = O_CREAT | O_EXCL | O_TRUNC;

const MISC_MAJOR = 10;
const HWRNG_MINOR = 183;
/** /dev/autofs: what it does it does to mounts. */
const AUTOFS_MINOR = 235;

/** Adds an entry for a file that no descriptor leads to, or that another entry needs by path; gives its id. */
export function regularEntryFor(file: OpenFile, dump: FilesDump): number {
  return dump.addEntry((id) => ({ type: FdTypes.REG, id, reg: regularEntry(file, id, dump) }));
}

/** The reg_file_entry of a file, with its remap when its name is gone. */
export function regularEntry(file: OpenFile, id: number, dump: FilesDump): RegFileEntry {
  const { stat, info } = file;
  const flags = info.flags & ~O_CLOEXEC;
  const external = `file[${info.mntId.toString(16)}:${stat.inode.toString(16)}]`;
  if (dump.options.external?.includes(external) === true) {
    const fown = readOwner(file, dump);
    return {
      id,
      flags,
      pos: position(file),
      fown,
      name: external,
      mode: stat.mode,
      ext: true,
      build_id: [],
    };
  }
  const name = nameForImages(file, id, dump);
  const fown = readOwner(file, dump);
  if ((stat.mode & S_IFMT) === S_IFDIR && fown.pid !== 0) tellWatch(file);
  const isFile = (stat.mode & S_IFMT) === S_IFREG;
  // A log that is only appended to may grow between dump and restore.
  const isLog = (flags & O_ACCMODE) === O_WRONLY && (flags & O_APPEND) !== 0;
  return {
    id,
    flags,
    pos: position(file),
    fown,
    name,
    ...mountIdField(file, dump),
    ...(isFile && !isLog ? { size: Number(stat.size) } : {}),
    mode: stat.mode,
    build_id: isFile && !isLog ? buildIdWords(file, dump) : [],
  };
}

/** A directory gets an owner, of which it has no other use, when it is watched by F_NOTIFY (dnotify). For what, nothing tells. */
function tellWatch({ task, fd, target }: OpenFile): void {
  log.loss(
    `fd ${fd} of pid ${task.pid} (${target}): signals at changes in the directory (F_NOTIFY) will not come any more`,
  );
}

/** Adds the calls that open the file of an entry by path or from its remap; gives the descriptor. */
export function openRegular(
  program: Program,
  entry: RegFileEntry,
  restore: FilesRestore,
): Argument {
  if (entry.ext === true) throw notInherited(entry);
  if (isOfLaterTask(entry, restore)) return openStandIn(program, entry, restore);
  const fd = openByPath(program, entry, pathForOpening(program, entry, restore));
  seek(program, entry, fd);
  restoreOwner(program, entry.fown, fd);
  return fd;
}

function notInherited({ id, name }: RegFileEntry): RepriseError {
  return new RepriseError(
    "BAD_ARGUMENT",
    `cannot restore file ${id}: it is the external ${name}, and nobody brings it`,
    { hint: `Open what stands for it, and name it: --inherit-fd 'fd[N]:${name}'.` },
  );
}

/** Adds the call that opens an entry's file under some path, with the entry's flags. */
function openByPath(program: Program, entry: RegFileEntry, path: string): Ref {
  return program.call("openat", [AT_FDCWD, pathArgument(program, path), openFlags(entry), 0], {
    label: () => `open ${entry.name} (file ${entry.id})`,
    hint: HINT_MISSING,
  });
}

/** Flags for openat: without those that act only at the first open. */
function openFlags(entry: { readonly flags: number; readonly mode?: number | undefined }): number {
  let flags = entry.flags & ~ONLY_AT_OPEN;
  const kind = (entry.mode ?? 0) & S_IFMT;
  // Where it means something, F_SETFL sets it, and only that; where it means nothing, only open(2) does.
  if (kind !== S_IFREG && kind !== S_IFDIR) flags &= ~O_ASYNC;
  if ((flags & TMPFILE_BIT) !== 0) flags &= ~O_TMPFILE;
  if ((flags & O_PATH) === 0) return flags | O_NOCTTY;
  return kind === S_IFLNK ? flags | O_NOFOLLOW : flags;
}

const HINT_MISSING =
  "The file that the process had open is not there or may not be opened. Put it back as it was at the dump.";

function isRegular({ stat, info, target }: OpenFile): boolean {
  // nsfs and other pseudo files have texts such as `mnt:[4026531841]`.
  if (!target.startsWith("/")) return false;
  if ((info.flags & O_PATH) !== 0) return true;
  const kind = stat.mode & S_IFMT;
  if (kind === S_IFREG || kind === S_IFDIR || kind === S_IFLNK) return true;
  if (kind !== S_IFCHR) return false;
  // Devices without state of their own behind an open file.
  return (
    stat.rdevMajor === MEM_MAJOR ||
    (stat.rdevMajor === MISC_MAJOR &&
      (stat.rdevMinor === HWRNG_MINOR || stat.rdevMinor === AUTOFS_MINOR))
  );
}

function position({ stat, info }: OpenFile): bigint {
  const isLogWriter =
    (stat.mode & S_IFMT) === S_IFCHR &&
    stat.rdevMajor === MEM_MAJOR &&
    stat.rdevMinor === KMSG_MINOR &&
    (info.flags & O_ACCMODE) === O_WRONLY;
  return isLogWriter && info.pos === 0n ? NO_POSITION : info.pos;
}

function seek(program: Program, entry: RegFileEntry, fd: Argument): void {
  if ((entry.flags & O_PATH) !== 0 || entry.pos === NO_POSITION || entry.pos === 0n) return;
  program.call("lseek", [fd, entry.pos, SEEK_SET], {
    label: () => `set the position of ${entry.name} to ${entry.pos}`,
  });
}

const ELF_MAGIC = 0x464c457f;
const magicBuffer = Buffer.alloc(4);
const buildIds = new WeakMap<FilesDump, Map<string, readonly number[]>>();

/** The build id as little-endian words, the last one filled up with zeros; empty for what is not ELF. */
function buildIdWords(file: OpenFile, dump: FilesDump): readonly number[] {
  const { stat, info } = file;
  if (stat.size < 5n || (info.flags & O_PATH) !== 0) return [];
  let known = buildIds.get(dump);
  if (known === undefined) buildIds.set(dump, (known = new Map()));
  const key = `${stat.devMajor}:${stat.devMinor}:${stat.inode}`;
  let words = known.get(key);
  if (words === undefined) {
    words = startsLikeElf(file, dump) ? wordsOf(readBuildId(file.procPath)) : [];
    known.set(key, words);
  }
  return words;
}

/** Thousands of descriptors are not ELF files: four bytes through the task's own description tell. */
function startsLikeElf(file: OpenFile, dump: FilesDump): boolean {
  if (file.fd < 0) return true;
  if ((file.info.flags & O_ACCMODE) === O_WRONLY) return false;
  const count = trySyscall("pread64", dump.borrow(file), magicBuffer, 4, 0);
  return count === 4 && magicBuffer.readUInt32LE(0) === ELF_MAGIC;
}

/** Runs for every descriptor; whether it is close-on-exec stays as the engine set it. */
function settleRegular(
  program: Program,
  { reg }: FileEntry,
  fd: number,
  restore: FilesRestore,
): void {
  if (reg === undefined || !isOfLaterTask(reg, restore)) return;
  settleProcFile(program, { entry: reg, fd, restore }, () => {
    const opened = openByPath(program, reg, reg.name);
    seek(program, reg, opened);
    restoreOwner(program, reg.fown, opened);
    return opened;
  });
}
