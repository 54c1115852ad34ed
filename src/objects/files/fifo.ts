// FIFOs: pipes that have a path. The path is kept as a regular file's entry, which only says where it is and with which
// flags it was opened; a deleted FIFO is a ghost like any file. See fifo(7); format.md section 11, FIFO.

import { assert } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
import {
  AT_FDCWD,
  F_SETFL,
  O_ACCMODE,
  O_CLOEXEC,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  S_IFIFO,
  S_IFMT,
} from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { pathForOpening } from "./path-for-opening.ts";
import { POLLHUP } from "../../sys/abi/poll.ts";
import { pollNow } from "../../sys/poll.ts";
import { needsOwner, O_ASYNC, restoreOwner, settleOwner } from "./owner.ts";
import { pathArgument } from "./path.ts";
import { fillPipe, notePipe } from "./pipe-data.ts";
import { pipeId, reopen } from "./pipe.ts";
import { openInheritedPath, pathKeys, regularEntryFor } from "./regular.ts";

export const fifoKind: FileKind = {
  name: "FIFO",
  type: FdTypes.FIFO,
  recognise: ({ stat, target, info }) =>
    (stat.mode & S_IFMT) === S_IFIFO && target.startsWith("/") && (info.flags & O_PATH) === 0,
  write: writeFifo,
  open: openFifo,
  settle: settleFifo,
  inheritKeys: ({ id, fifo }, set) => {
    const reg = set.regularFiles.get(fifo?.regf_id ?? id);
    return reg === undefined ? [] : pathKeys(reg);
  },
  openInherited: (program, { id, fifo }, fd, { set, isForeigner }) =>
    openInheritedPath(program, set.regularFiles.get(fifo?.regf_id ?? id), { id, fd, isForeigner }),
};

function writeFifo(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const pipe_id = pipeId(file);
  const canRead = (file.info.flags & O_ACCMODE) !== O_WRONLY;
  notePipe("fifo-data", { id: pipe_id, fd: dump.borrow(file), canRead, file }, dump);
  const regf_id = regularEntryFor(file, dump);
  // To a reader that has seen no writer yet, a FIFO without one is not at its end (pipe_poll: f_version).
  const isReader = (file.info.flags & O_ACCMODE) === O_RDONLY;
  const waits = isReader && (pollNow(dump.borrow(file)) & POLLHUP) === 0;
  const never = waits ? { never_written: true } : {};
  return { type: FdTypes.FIFO, id, fifo: { id, pipe_id, regf_id, ...never } };
}

/** A descriptor of each FIFO that can read and write: with it open, no other open waits for a partner. */
const holders = new WeakMap<FilesRestore, Map<number, number>>();

function openFifo(program: Program, { id, fifo }: FileEntry, restore: FilesRestore): Argument {
  const reg = restore.set.regularFiles.get(fifo?.regf_id ?? id);
  assert(fifo !== undefined && reg !== undefined, `file ${id} is no FIFO with a path`);
  let known = holders.get(restore);
  if (known === undefined) holders.set(restore, (known = new Map()));
  const holder = known.get(fifo.pipe_id) ?? holdFifo(program, { reg, id: fifo.pipe_id }, restore);
  known.set(fifo.pipe_id, holder);
  const label = `open FIFO ${reg.name} (file ${id})`;
  const fd = hasNoWriters(fifo.pipe_id, restore)
    ? openBeforeWriters(program, holder, { flags: reg.flags, label })
    : reopen(program, holder, { flags: reg.flags, label });
  restoreOwner(program, reg.fown, fd);
  return fd;
}

/** All who have it open wait for a first writer. */
function hasNoWriters(id: number, { set }: FilesRestore): boolean {
  const ends = [...set.files.values()].flatMap(({ fifo }) => (fifo?.pipe_id === id ? [fifo] : []));
  return ends.every(({ never_written }) => never_written === true);
}

/** The kernel takes the number of writers so far into a reader that is opened without waiting, when there is none. */
function openBeforeWriters(
  program: Program,
  holder: number,
  { flags, label }: { readonly flags: number; readonly label: string },
): Argument {
  const reader = reopen(program, holder, { flags: O_RDONLY | O_NONBLOCK | O_CLOEXEC, label });
  program.call("dup3", [reader, holder, O_CLOEXEC], { label });
  program.call("close", [reader], { label });
  const fd = reopen(program, holder, { flags: flags | O_NONBLOCK, label });
  program.call("fcntl", [fd, F_SETFL, flags & ~O_ASYNC], { label });
  return fd;
}

/** The owner stands in the entry of the path. */
function settleFifo(
  program: Program,
  { id, fifo }: FileEntry,
  fd: number,
  restore: FilesRestore,
): void {
  const reg = restore.set.regularFiles.get(fifo?.regf_id ?? id);
  const entry = { type: FdTypes.REG, id, reg };
  if (needsOwner(entry)) settleOwner(program, entry, fd);
}

function holdFifo(
  program: Program,
  { reg, id }: { readonly reg: RegFileEntry; readonly id: number },
  restore: FilesRestore,
): number {
  const path = pathArgument(program, pathForOpening(program, reg, restore));
  const label = `open FIFO ${reg.name}`;
  const flags = O_RDWR | O_NONBLOCK | O_CLOEXEC;
  const opened = program.call("openat", [AT_FDCWD, path, flags, 0], { label });
  const holder = restore.reserve();
  program.call("dup3", [opened, holder, O_CLOEXEC], { label });
  program.call("close", [opened], { label });
  fillPipe(program, { fd: holder, kind: "fifo-data", id }, restore);
  return holder;
}
