// What lies unread in a pipe or FIFO: looked at without taking it out (tee(2) into a pipe of our own), and put back at
// restore. See pipe(7); format.md section 4, pipes-data and fifo-data.

import { closeSync, readSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { ImageEntry } from "../../images/image-file.ts";
import type { PipeDataEntry } from "../../images/schema/messages.generated.ts";
import { F_GETPIPE_SZ, F_SETPIPE_SZ, FIONREAD, O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { EAGAIN, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FilesDump, FilesRestore } from "./file-kind.ts";

export type PipeDataKind = "pipes-data" | "fifo-data";

export interface PipeContent {
  /** Capacity in bytes. */
  readonly size: number;
  readonly bytes: Uint8Array;
}

/**
 * Reads what is in a pipe and leaves it there. `fd` is any end; only one that can read shows content.
 * @throws RepriseError SYSCALL
 */
function peekPipe(
  { fd, canRead }: { readonly fd: number; readonly canRead: boolean },
  dump: FilesDump,
): PipeContent {
  const size = syscall("fcntl", fd, F_GETPIPE_SZ, 0);
  const count = Buffer.alloc(4);
  if (canRead) syscall("ioctl", fd, FIONREAD, count);
  const waiting = count.readUInt32LE(0);
  if (waiting === 0) return { size, bytes: new Uint8Array(0) };
  return { size, bytes: copyOut(fd, { size, waiting, own: ownPipe(dump) }) };
}

/** Collects the content of pipes during a dump, and writes it when all are seen: one entry a pipe. */
export function notePipe(
  kind: PipeDataKind,
  pipe: { readonly id: number; readonly fd: number; readonly canRead: boolean },
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
  const content = program.data(Uint8Array.from(image.bytes(part.offset, part.length)));
  program.call("write", [pipe.fd, content, part.length], {
    label: `put ${part.length} bytes back into pipe ${pipe.id}`,
    expect: part.length,
  });
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
  for (const [pipe_id, { size, bytes }] of contents) {
    image.add({ pipe_id, bytes: bytes.length, size });
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
): Uint8Array {
  const { from, to } = own;
  // As many slots as the pipe itself has: tee gives slots, however little is in each.
  if (own.size !== size) {
    syscall("fcntl", to, F_SETPIPE_SZ, size);
    own.size = size;
  }
  const copied = trySyscall("tee", fd, to, size, SPLICE_F_NONBLOCK);
  if (copied < 0 && copied !== -EAGAIN) throw peekError(`tee: ${errnoName(-copied)}`);
  if (copied !== waiting) throw peekError(`tee gave ${Math.max(copied, 0)} of ${waiting} bytes`);
  const bytes = new Uint8Array(waiting);
  for (let at = 0; at < waiting;) {
    const count = readSync(from, bytes, at, waiting - at, null);
    if (count === 0) throw peekError(`read gave ${at} of ${waiting} bytes`);
    at += count;
  }
  return bytes;
}

function peekError(what: string): RepriseError {
  return new RepriseError("SYSCALL", `cannot look into a pipe: ${what}`, {
    syscall: "tee",
    hint: "Somebody outside of the tree may be reading from this pipe or writing to it right now.",
  });
}
