// What lies unread in a pipe or FIFO: looked at without taking it out (tee(2) into a pipe of our own), and put back at
// restore. See pipe(7); format.md section 4, pipes-data and fifo-data.
//
// What was written in packet mode (O_DIRECT) is read in the same pieces, whatever the ends are set to now, and what a reader has no room
// for is lost. The copy is read like the pipe itself, so its pieces are the packets.

import { closeSync, readSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { badSet } from "../../images/bad-set.ts";
import type { ImageEntry } from "../../images/image-file.ts";
import type { PipeDataEntry } from "../../images/schema/messages.generated.ts";
import {
  F_GETPIPE_SZ,
  F_SETFL,
  F_SETPIPE_SZ,
  FIONREAD,
  O_CLOEXEC,
  O_DIRECT,
  O_NONBLOCK,
  PIPE_BUF,
} from "../../sys/abi/fcntl.ts";
import { EAGAIN, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";

export type PipeDataKind = "pipes-data" | "fifo-data";

export interface PipeContent {
  /** Capacity in bytes. */
  readonly size: number;
  readonly bytes: Uint8Array;
  /** Lengths of the packets; none for a stream. */
  readonly packets: readonly number[];
}

/** An end that a task has open. */
interface PipeEnd {
  /** The engine's copy. */
  readonly fd: number;
  readonly canRead: boolean;
  readonly file: OpenFile;
}

/**
 * Reads what is in a pipe and leaves it there. `fd` is any end; only one that can read shows content.
 * @throws RepriseError SYSCALL
 */
function peekPipe({ fd, canRead, file }: PipeEnd, dump: FilesDump): PipeContent {
  const size = syscall("fcntl", fd, F_GETPIPE_SZ, 0);
  const count = Buffer.alloc(4);
  if (canRead) syscall("ioctl", fd, FIONREAD, count);
  const waiting = count.readUInt32LE(0);
  if (waiting === 0) return { size, bytes: new Uint8Array(0), packets: [] };
  const content = copyOut(fd, { size, waiting, own: ownPipe(dump) });
  if (content.packets.every((length) => length <= PIPE_BUF)) return { size, ...content };
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${file.fd} of pid ${file.task.pid} (${file.target}): a pipe with a stream before packets (O_DIRECT)`,
    {
      pid: file.task.pid,
      fd: file.fd,
      hint: "It was written to before it was set to packet mode: try again when that has been read.",
    },
  );
}

/** Collects the content of pipes during a dump, and writes it when all are seen: one entry a pipe. */
export function notePipe(
  kind: PipeDataKind,
  pipe: PipeEnd & { readonly id: number },
  dump: FilesDump,
): void {
  const contents = contentsOf(kind, dump);
  const known = contents.get(pipe.id);
  // An end that can only write shows the capacity; content is read once.
  if (known !== undefined && (known.wasRead || !pipe.canRead)) return;
  contents.set(pipe.id, { ...peekPipe(pipe, dump), wasRead: pipe.canRead });
}

/** The saved content of a pipe, if there is any. */
function findPipeData(
  entries: readonly ImageEntry<PipeDataEntry>[],
  pipeId: number,
): ImageEntry<PipeDataEntry> | undefined {
  let known = byPipe.get(entries);
  if (known === undefined) {
    known = new Map();
    for (const entry of entries) {
      // The first one counts.
      if (!known.has(entry.value.pipe_id)) known.set(entry.value.pipe_id, entry);
    }
    byPipe.set(entries, known);
  }
  return known.get(pipeId);
}

const byPipe = new WeakMap<object, Map<number, ImageEntry<PipeDataEntry>>>();

/** Adds the calls that give a pipe its capacity and content; `fd` is an end that can write and does not block. */
export function fillPipe(
  program: Program,
  pipe: { readonly fd: Argument; readonly kind: PipeDataKind; readonly id: number },
  restore: FilesRestore,
): void {
  const { set } = restore;
  const data = findPipeData(pipe.kind === "pipes-data" ? set.pipesData : set.fifoData, pipe.id);
  if (data === undefined) return;
  const { size, bytes } = data.value;
  if (size !== undefined) {
    program.call("fcntl", [pipe.fd, F_SETPIPE_SZ, size], {
      label: `set the size of pipe ${pipe.id} to ${size}`,
    });
  }
  const [part] = data.payload;
  if (bytes === 0 || part === undefined) return;
  using image = set.reader.openRaw(pipe.kind);
  const { packets } = data.value;
  const content = Uint8Array.from(image.bytes(part.offset, part.length));
  const setMode = (flags: number): void => {
    const label = `set the mode of pipe ${pipe.id}`;
    program.call("fcntl", [pipe.fd, F_SETFL, flags], { label });
  };
  if (packets.length > 0) setMode(O_NONBLOCK | O_DIRECT);
  for (const piece of piecesOf(content, packets, pipe.id)) {
    program.call("write", [pipe.fd, program.data(piece), piece.length], {
      label: `put ${piece.length} bytes back into pipe ${pipe.id}`,
      expect: piece.length,
    });
  }
  if (packets.length > 0) setMode(O_NONBLOCK);
}

function piecesOf(content: Uint8Array, packets: readonly number[], id: number): Uint8Array[] {
  if (packets.length === 0) return [content];
  const isWhole = packets.reduce((sum, length) => sum + length, 0) === content.length;
  if (!isWhole || packets.some((length) => length === 0 || length > PIPE_BUF))
    throw badSet(`pipe ${id} has ${content.length} bytes, which are not its packets`);
  let at = 0;
  return packets.map((length) => content.subarray(at, (at += length)));
}

interface Noted extends PipeContent {
  readonly wasRead: boolean;
}

const notes = new WeakMap<FilesDump, Map<PipeDataKind, Map<number, Noted>>>();

function contentsOf(kind: PipeDataKind, dump: FilesDump): Map<number, Noted> {
  let kinds = notes.get(dump);
  if (kinds === undefined) notes.set(dump, (kinds = new Map()));
  let contents = kinds.get(kind);
  if (contents === undefined) {
    const fresh = new Map<number, Noted>();
    kinds.set(kind, (contents = fresh));
    dump.later(() => writeContents(kind, fresh, dump));
  }
  return contents;
}

function writeContents(
  kind: PipeDataKind,
  contents: ReadonlyMap<number, Noted>,
  dump: FilesDump,
): void {
  const image = dump.images.open(kind);
  for (const [pipe_id, { size, bytes, packets }] of contents) {
    image.add({ pipe_id, bytes: bytes.length, size, packets });
    image.payload(bytes);
  }
  image.close();
}

const SPLICE_F_NONBLOCK = 2;

/** A pipe of our own, which is empty between two looks. */
interface Copy {
  readonly from: number;
  readonly to: number;
  size: number;
}

const copies = new WeakMap<FilesDump, Copy>();

/** One for all pipes of a dump. */
function ownPipe(dump: FilesDump): Copy {
  const known = copies.get(dump);
  if (known !== undefined) return known;
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, O_CLOEXEC);
  const copy = { from: ends.readInt32LE(0), to: ends.readInt32LE(4), size: 0 };
  copies.set(dump, copy);
  dump.atEnd(() => {
    copies.delete(dump);
    closeSync(copy.from);
    closeSync(copy.to);
  });
  return copy;
}

function copyOut(
  fd: number,
  { size, waiting, own }: { size: number; waiting: number; own: Copy },
): Pick<PipeContent, "bytes" | "packets"> {
  const { from } = own;
  fillCopy(fd, { size, waiting, own });
  const bytes = new Uint8Array(waiting);
  const pieces: number[] = [];
  for (let at = 0; at < waiting;) {
    const count = readSync(from, bytes, at, waiting - at, null);
    if (count === 0) throw peekError(`read gave ${at} of ${waiting} bytes`);
    pieces.push(count);
    at += count;
  }
  if (pieces.length === 1) {
    if (waiting < 2 || waiting > PIPE_BUF) return { bytes, packets: [] };
    // One packet or a stream: who reads a part of a packet gets no more of it.
    fillCopy(fd, { size, waiting, own });
    readSync(from, new Uint8Array(1), 0, 1, null);
    const count = Buffer.alloc(4);
    syscall("ioctl", from, FIONREAD, count);
    const rest = count.readUInt32LE(0);
    if (rest > 0) readSync(from, new Uint8Array(rest), 0, rest, null);
    return { bytes, packets: rest > 0 ? [] : pieces };
  }
  return { bytes, packets: pieces };
}

function fillCopy(
  fd: number,
  { size, waiting, own }: { size: number; waiting: number; own: Copy },
): void {
  const { to } = own;
  // As many slots as the pipe itself has: tee gives slots, however little is in each.
  if (own.size !== size) {
    syscall("fcntl", to, F_SETPIPE_SZ, size);
    own.size = size;
  }
  const copied = trySyscall("tee", fd, to, size, SPLICE_F_NONBLOCK);
  if (copied < 0 && copied !== -EAGAIN) throw peekError(`tee: ${errnoName(-copied)}`);
  if (copied !== waiting) throw peekError(`tee gave ${Math.max(copied, 0)} of ${waiting} bytes`);
}

function peekError(what: string): RepriseError {
  return new RepriseError("SYSCALL", `cannot look into a pipe: ${what}`, {
    syscall: "tee",
    hint: "Somebody outside of the tree may be reading from this pipe or writing to it right now.",
  });
}
