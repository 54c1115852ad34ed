// Pipes: two or more open file descriptions of one object, which the inode number names. Each end may be open several times
// (through /proc/PID/fd). See pipe(7), fs/pipe.c; format.md section 11, PIPE.

import { assert } from "../../errors.ts";
import { FdTypes, type FileEntry, type PipeEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import {
  AT_FDCWD,
  F_DUPFD,
  F_SETFL,
  O_ACCMODE,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECT,
  O_EXCL,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  S_IFIFO,
  S_IFMT,
} from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { idsInside } from "../namespaces/user.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { O_ASYNC, readOwner, restoreOwner } from "./owner.ts";
import { fillPipe, notePipe } from "./pipe-data.ts";
import { POLLERR, POLLHUP } from "../../sys/abi/poll.ts";
import { pollNow } from "../../sys/poll.ts";

export const pipeKind: FileKind = {
  name: "pipe",
  type: FdTypes.PIPE,
  recognise: ({ stat, target, info }) =>
    (stat.mode & S_IFMT) === S_IFIFO && target.startsWith("pipe:[") && (info.flags & O_PATH) === 0,
  write: writePipe,
  open: openPipe,
  inheritKeys: ({ pipe }) => [`pipe:[${pipe?.pipe_id}]`],
  openInherited: openInheritedPipe,
};

/** The number of a pipe or FIFO in the images. */
export function pipeId({ stat }: OpenFile): number {
  return Number(stat.inode & 0xffff_ffffn);
}

function writePipe(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const flags = file.info.flags & ~O_CLOEXEC;
  const pipe_id = pipeId(file);
  const access = flags & O_ACCMODE;
  notePipe(
    "pipes-data",
    { id: pipe_id, fd: dump.borrow(file), canRead: access !== O_WRONLY, file },
    dump,
  );
  noteEnds(file, access, dump);
  return {
    type: FdTypes.PIPE,
    id,
    pipe: { id, pipe_id, flags, fown: readOwner(file, dump), ...permissions(file, dump) },
  };
}

/** Who may open a pipe once more, by its link in /proc: its maker, if nobody has changed that. Nothing when that is root. */
function permissions({ stat }: OpenFile, dump: FilesDump): Pick<PipeEntry, "uid" | "gid" | "mode"> {
  const { uid, gid } = idsInside(dump.namespaces, stat);
  const mode = stat.mode & ~S_IFMT;
  return uid === 0 && gid === 0 && mode === PIPE_MODE ? {} : { uid, gid, mode };
}

const PIPE_MODE = 0o600;

/** Ends of each pipe that the tree holds: to warn when one is missing. */
interface Ends {
  readonly file: OpenFile;
  reads: boolean;
  writes: boolean;
}

const seen = new WeakMap<FilesDump, Map<number, Ends>>();

function noteEnds(file: OpenFile, access: number, dump: FilesDump): void {
  let pipes = seen.get(dump);
  if (pipes === undefined) {
    const fresh = new Map<number, Ends>();
    seen.set(dump, (pipes = fresh));
    dump.later(() => warnOfHalves(fresh, dump));
  }
  // The kernel writes the requests to automounters.
  const writes = dump.mounts?.kernelPipes.has(pipeId(file)) ?? false;
  const ends = pipes.get(pipeId(file)) ?? { file, reads: false, writes };
  pipes.set(pipeId(file), ends);
  ends.reads ||= access !== O_WRONLY;
  ends.writes ||= access !== O_RDONLY;
}

/** The kernel tells by poll(2) of an end whose others are all closed. */
function hasNoOtherEnd(file: OpenFile, dump: FilesDump): boolean {
  return (pollNow(dump.borrow(file)) & (POLLERR | POLLHUP)) !== 0;
}

function warnOfHalves(pipes: ReadonlyMap<number, Ends>, dump: FilesDump): void {
  for (const { file, reads, writes } of pipes.values()) {
    if ((reads && writes) || hasNoOtherEnd(file, dump)) continue;
    const end = reads ? "reading" : "writing";
    const where = `fd ${file.fd} of pid ${file.task.pid} (${file.target})`;
    log.loss(`${where}: the tree has only the ${end} end; whoever has the other is not restored`);
  }
}

/** Descriptor numbers of both ends while the opening program runs, and whether their descriptions are given away. */
interface Pair {
  readonly reader: number;
  readonly writer: number;
  readonly given: Set<number>;
}

const pairs = new WeakMap<FilesRestore, Map<number, Pair>>();

function openPipe(program: Program, { id, pipe }: FileEntry, restore: FilesRestore): Argument {
  assert(pipe !== undefined, `file ${id} is no pipe`);
  const { pipe_id, flags } = pipe;
  let known = pairs.get(restore);
  if (known === undefined) pairs.set(restore, (known = new Map()));
  const pair = known.get(pipe_id) ?? makePipe(program, pipe, restore);
  known.set(pipe_id, pair);
  const fd = openEnd(program, { pair, flags, label: `open pipe ${pipe_id} (file ${id})` });
  restoreOwner(program, pipe.fown, fd);
  return fd;
}

/** Descriptor in all tasks of the restore's own writing end of a pipe; undefined for one that the caller brought. */
export function pipeWriter(restore: FilesRestore, id: number): number | undefined {
  return pairs.get(restore)?.get(id)?.writer;
}

/** The caller's pipe, opened once more: its flags stay the caller's own, and its end may be the other one. */
function openInheritedPipe(
  program: Program,
  { id, pipe }: FileEntry,
  fd: number,
  { isForeigner }: FilesRestore,
): Argument {
  assert(pipe !== undefined, `file ${id} is no pipe`);
  const label = `open the pipe that stands for pipe ${pipe.pipe_id} (file ${id})`;
  if (isForeigner === true) return program.call("fcntl", [fd, F_DUPFD, 0], { label });
  const own = reopen(program, fd, { flags: pipe.flags, label });
  restoreOwner(program, pipe.fown, own);
  return own;
}

interface EndOptions {
  readonly pair: Pair;
  readonly flags: number;
  readonly label: string;
}

function openEnd(program: Program, { pair, flags, label }: EndOptions): Argument {
  const access = flags & O_ACCMODE;
  const end = access === O_RDONLY ? pair.reader : pair.writer;
  if (access === O_RDWR || pair.given.has(end)) return reopen(program, end, { flags, label });
  pair.given.add(end);
  program.call("fcntl", [end, F_SETFL, flags & (O_NONBLOCK | O_DIRECT)], { label });
  return end;
}

/** Adds the call that makes a further description of the file behind a descriptor. */
export function reopen(
  program: Program,
  fd: number,
  { flags, label }: { readonly flags: number; readonly label: string },
): Argument {
  // O_NOFOLLOW would stop at the link in /proc; the kernel sets O_LARGEFILE itself.
  const path = program.string(`/proc/self/fd/${fd}`);
  const taken = flags & ~(O_NOFOLLOW | O_ASYNC | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT);
  const opened = program.call("openat", [AT_FDCWD, path, taken, 0], { label });
  // Packet mode can be set, but not opened (fs/open.c: do_dentry_open).
  if ((flags & O_DIRECT) !== 0) program.call("fcntl", [opened, F_SETFL, flags], { label });
  return opened;
}

function makePipe(program: Program, entry: PipeEntry, restore: FilesRestore): Pair {
  const { pipe_id: id, uid, gid, mode } = entry;
  const label = `make pipe ${id}`;
  const pair = { reader: restore.reserve(), writer: restore.reserve(), given: new Set<number>() };
  const ends = program.output(8);
  // Without blocking, so that more content than it takes is an error and no endless wait.
  program.call("pipe2", [ends, O_NONBLOCK | O_CLOEXEC], { label });
  [pair.reader, pair.writer].forEach((number, index) => {
    const from = { ...ends, offset: ends.offset + index * 4 };
    program.call("dup3", [{ kind: "load", from, width: 4 }, number, O_CLOEXEC], { label });
    program.call("close", [{ kind: "load", from, width: 4 }], { label });
  });
  if (uid !== undefined && gid !== undefined && mode !== undefined) {
    program.call("fchown", [pair.writer, uid, gid], { label: `give pipe ${id} to user ${uid}` });
    program.call("fchmod", [pair.writer, mode], { label: `set the mode of pipe ${id}` });
  }
  fillPipe(program, { fd: pair.writer, kind: "pipes-data", id }, restore);
  return pair;
}
