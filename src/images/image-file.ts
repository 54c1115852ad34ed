// One image file: head, then entries (u32 length, message), some followed by payload whose length the
// entry tells. Format 1.1 has the common magic before the kind's own, 1.0 has only that one; the
// inventory and the service files differ once more. There is no trailer and no count, so a file
// that is cut off between two entries can only be seen by the manifest.
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import {
  decodePart,
  encodeEntry,
  MAX_MESSAGE_BYTES,
  type MessageInput,
  type MessageName,
} from "./codec.ts";
import { COMMON_MAGIC, MAGIC, magicName, SERVICE_MAGIC } from "./magic.ts";
import { WireReader } from "./wire-reader.ts";
import { kindSpec, type EntryKind, type KindSpec, type MessageOf } from "./names.ts";
import type {
  BpfmapDataEntry,
  GhostFileEntry,
  IpcMsg,
  IpcMsgEntry,
  IpcSemEntry,
  IpcShmEntry,
  Messages,
  PipeDataEntry,
  SkPacketEntry,
  TcpStreamEntry,
} from "./schema/messages.generated.ts";

/** A stretch of the image file that follows an entry. */
export interface PayloadPart {
  /** Where it starts in the image file, and its bytes. */
  readonly offset: number;
  readonly length: number;
  /** Chunks of a ghost file: where the bytes belong in the file. */
  readonly at?: number;
  /** Messages of a System V queue. */
  readonly message?: IpcMsg;
}

export interface ImageEntry<T> {
  readonly value: T;
  /** Where the entry's length word stands in the file. */
  readonly offset: number;
  /**
   * pipe, packet, semaphores, segment: one part (semaphores are u16). tcp-queues: received, then
   * sent. map: keys, then values. ghost: the content, or its chunks. messages: one a message.
   */
  readonly payload: readonly PayloadPart[];
}

/** Format of a set: 1 (no common magic), 2, or not known. */
export type FormatVersion = 1 | 2 | undefined;

/** An image open for reading, with a window on its content. */
export class ImageFile implements Disposable {
  readonly name: string;
  /** Of a file whose content is held, none (-1). */
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  #window: Uint8Array = new Uint8Array(0);
  #windowAt = 0;
  /** On the window. */
  #reader: { readonly bytes: Uint8Array; readonly wire: WireReader } | undefined;

  /**
   * From its path, or from all its content.
   * @throws RepriseError BAD_IMAGE when it is no regular file; system errors of open(2) as they are.
   */
  constructor(path: string | Uint8Array, name: string) {
    this.name = name;
    if (typeof path !== "string") {
      this.fd = -1;
      this.size = path.length;
      this.#window = path;
      return;
    }
    // A FIFO in place of an image must not block the open.
    this.fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = fstatSync(this.fd);
    this.size = stat.size;
    if (!stat.isFile()) {
      closeSync(this.fd);
      throw badImage(name, "not a regular file");
    }
  }

  /**
   * `length` bytes at `offset`; a view that stays valid.
   * @throws RepriseError BAD_IMAGE beyond the end of the file, and for more than can be meant to be held in memory.
   */
  bytes(offset: number, length: number): Uint8Array {
    const window = this.#around(offset, length);
    const start = offset - this.#windowAt;
    return window.subarray(start, start + length);
  }

  /** The window, when it has these bytes in it. */
  #around(offset: number, length: number): Uint8Array {
    if (length > MOST_BYTES) throw badImage(this.name, `${length} bytes in one piece`);
    if (offset + length > this.size) {
      throw badImage(
        this.name,
        `cut off: ${length} bytes at offset ${offset}, the file has ${this.size}`,
      );
    }
    const start = offset - this.#windowAt;
    if (start < 0 || start + length > this.#window.length) this.#fill(offset, length);
    return this.#window;
  }

  /** A little-endian u32. */
  word(offset: number): number {
    const bytes = this.#around(offset, 4);
    const at = offset - this.#windowAt;
    const byte = (index: number): number => bytes[at + index] ?? 0;
    return (byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24)) >>> 0;
  }

  /** A message that lies in the file. @throws RepriseError BAD_IMAGE */
  message<N extends MessageName>(name: N, offset: number, length: number): Messages[N] {
    const bytes = this.#around(offset, length);
    if (this.#reader?.bytes !== bytes) this.#reader = { bytes, wire: new WireReader(bytes) };
    const start = offset - this.#windowAt;
    return decodePart(name, this.#reader.wire, { start, end: start + length });
  }

  [Symbol.dispose](): void {
    if (this.fd >= 0) closeSync(this.fd);
  }

  #fill(offset: number, length: number): void {
    const wanted = Math.min(Math.max(length, WINDOW_BYTES), this.size - offset);
    const window = new Uint8Array(wanted);
    let filled = 0;
    while (filled < wanted) {
      const count = readSync(this.fd, window, filled, wanted - filled, offset + filled);
      if (count === 0) break;
      filled += count;
    }
    if (filled < length) throw badImage(this.name, `shrank while it was read`);
    this.#window = window.subarray(0, filled);
    this.#windowAt = offset;
  }
}

const WINDOW_BYTES = 64 * 1024;
/** Pages and files are never read as one piece; what is (rules of a firewall, the data of a pipe) is far smaller. */
const MOST_BYTES = 2 ** 30;

/**
 * All entries of an image, with the places of their payload.
 * @throws RepriseError BAD_IMAGE naming file, entry and offset.
 */
export function readEntries<K extends EntryKind>(
  file: ImageFile,
  kind: K,
  version?: FormatVersion,
): ImageEntry<Messages[MessageOf<K>]>[] {
  const spec = kindSpec(kind);
  const entries: ImageEntry<Messages[MessageOf<K>]>[] = [];
  let offset = checkHead(file, spec, version);
  while (offset < file.size) {
    const where = `entry ${entries.length} at offset ${offset}`;
    const message = entries.length === 0 ? (spec.head ?? spec.message) : spec.message;
    const { value, end } = readMessageAt(file, { name: message as MessageName, offset, where });
    const payload = readPayload(file, { spec, value, offset: end, where });
    entries.push({ value: value as Messages[MessageOf<K>], offset, payload: payload.parts });
    offset = payload.end;
  }
  return entries;
}

/** Checks the magic; returns where the first entry starts. */
export function checkHead(file: ImageFile, spec: KindSpec, version: FormatVersion): number {
  const own = spec.magic === undefined ? undefined : MAGIC[spec.magic];
  if (own === undefined) return 0;
  const first = file.word(0);
  const head = spec.framing === "service" ? SERVICE_MAGIC : COMMON_MAGIC;
  const bare = spec.framing === "inventory" || version === 1;
  if (!bare && first === head) {
    expectMagic(file, 4, own);
    return 8;
  }
  if (version === 2 && !bare) {
    throw badImage(file.name, `wrong magic ${magicName(first)}, not the head of an image`);
  }
  expectMagic(file, 0, own);
  return 4;
}

function expectMagic(file: ImageFile, offset: number, own: number): void {
  const found = file.word(offset);
  if (found !== own) {
    throw badImage(file.name, `wrong magic ${magicName(found)}, not ${magicName(own)}`);
  }
}

interface MessagePlace {
  readonly name: MessageName;
  readonly offset: number;
  /** For errors. */
  readonly where: string;
}

/** The message whose length word stands at `offset`, and where it ends. */
export function readMessageAt(
  file: ImageFile,
  place: MessagePlace,
): { value: unknown; end: number } {
  const { name, offset, where } = place;
  if (offset + 4 > file.size) throw badImage(file.name, `${where}: cut off in its length`);
  const length = file.word(offset);
  const end = offset + 4 + length;
  if (length > MAX_MESSAGE_BYTES)
    throw badImage(file.name, `${where}: impossible length ${length}`);
  if (end > file.size) {
    throw badImage(file.name, `${where}: ${length} bytes run beyond the end (${file.size})`);
  }
  try {
    return { value: file.message(name, offset + 4, length), end };
  } catch (error) {
    if (error instanceof RepriseError)
      throw badImage(file.name, `${where}: ${error.message}`, error);
    throw error;
  }
}

interface PayloadPlace {
  readonly spec: KindSpec;
  readonly value: unknown;
  readonly offset: number;
  readonly where: string;
}

interface Payload {
  readonly parts: readonly PayloadPart[];
  readonly end: number;
}

const NO_PARTS: readonly PayloadPart[] = [];

function readPayload(file: ImageFile, place: PayloadPlace): Payload {
  const { value, offset } = place;
  switch (place.spec.payload ?? "none") {
    case "none":
      return { parts: NO_PARTS, end: offset };
    case "pipe":
      return fixedParts(file, place, { lengths: [(value as PipeDataEntry).bytes] });
    case "packet":
      return fixedParts(file, place, { lengths: [(value as SkPacketEntry).length] });
    case "tcp-queues": {
      const { inq_len, outq_len } = value as TcpStreamEntry;
      return fixedParts(file, place, { lengths: [inq_len, outq_len] });
    }
    case "map": {
      const { keys_bytes, values_bytes } = value as BpfmapDataEntry;
      return fixedParts(file, place, { lengths: [keys_bytes, values_bytes] });
    }
    case "semaphores":
      return fixedParts(file, place, { lengths: [(value as IpcSemEntry).nsems * 2], padding: 8 });
    case "segment": {
      const { in_pagemaps, size } = value as IpcShmEntry;
      if (in_pagemaps === true) return { parts: NO_PARTS, end: offset };
      return fixedParts(file, place, { lengths: [size], padding: 4 });
    }
    case "messages":
      return queueParts(file, place);
    case "ghost":
      break;
  }
  return ghostParts(file, place);
}

function fixedParts(
  file: ImageFile,
  place: PayloadPlace,
  { lengths, padding = 1 }: { lengths: readonly number[]; padding?: number },
): Payload {
  let offset = place.offset;
  const parts = lengths.map((length) => {
    const part = { offset, length };
    offset += length;
    return part;
  });
  const end = place.offset + Math.ceil((offset - place.offset) / padding) * padding;
  if (end > file.size) {
    const length = end - place.offset;
    throw badImage(
      file.name,
      `${place.where}: its data (${length} bytes) is cut off at ${file.size}`,
    );
  }
  return { parts, end };
}

function queueParts(file: ImageFile, place: PayloadPlace): Payload {
  const { qnum } = place.value as IpcMsgEntry;
  const parts: PayloadPart[] = [];
  let offset = place.offset;
  for (let index = 0; index < qnum; index++) {
    const where = `${place.where}, message ${index}`;
    const { value, end } = readMessageAt(file, { name: "ipc_msg", offset, where });
    const message = value as IpcMsg;
    const data = fixedParts(
      file,
      { ...place, offset: end, where },
      { lengths: [message.msize], padding: 8 },
    );
    parts.push({ offset: end, length: message.msize, message });
    offset = data.end;
  }
  return { parts, end: offset };
}

function ghostParts(file: ImageFile, place: PayloadPlace): Payload {
  const ghost = place.value as GhostFileEntry;
  const end = file.size;
  if (ghost.chunks !== true) {
    const length = end - place.offset;
    return { parts: length === 0 ? NO_PARTS : [{ offset: place.offset, length, at: 0 }], end };
  }
  const parts: PayloadPart[] = [];
  for (let offset = place.offset; offset < end;) {
    const where = `${place.where}, chunk ${parts.length}`;
    const chunk = readMessageAt(file, { name: "ghost_chunk_entry", offset, where });
    const { len, off } = chunk.value as Messages["ghost_chunk_entry"];
    if (chunk.end + len > end)
      throw badImage(file.name, `${where}: ${len} bytes are cut off at ${end}`);
    if (off + len > (ghost.size ?? Number.MAX_SAFE_INTEGER)) {
      throw badImage(file.name, `${where}: lies beyond the size of the file`);
    }
    parts.push({ offset: chunk.end, length: len, at: off });
    offset = chunk.end + len;
  }
  return { parts, end };
}

/** Head of an image of format 1.1. */
export function headBytes(kind: EntryKind): Uint8Array {
  const known = heads.get(kind);
  if (known !== undefined) return known;
  const head = makeHead(kind);
  heads.set(kind, head);
  return head;
}

const heads = new Map<EntryKind, Uint8Array>();

function makeHead(kind: EntryKind): Uint8Array {
  const spec = kindSpec(kind);
  const own = spec.magic === undefined ? 0 : MAGIC[spec.magic];
  if (spec.framing === "inventory") return wordBytes(own);
  const head = spec.framing === "service" ? SERVICE_MAGIC : COMMON_MAGIC;
  return Buffer.concat([wordBytes(head), wordBytes(own)]);
}

/** Length word and message of an entry. */
export function entryBytes<N extends MessageName>(
  name: N,
  value: MessageInput<Messages[N]>,
): Uint8Array {
  return encodeEntry(name, value).slice();
}

/** Zero bytes that fill `length` up to a multiple of `multiple`. */
export function paddingFor(length: number, multiple: number): Uint8Array {
  return new Uint8Array((multiple - (length % multiple)) % multiple);
}

function wordBytes(value: number): Uint8Array {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** An error about the content of an image file. */
export function badImage(name: string, what: string, cause?: unknown): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot read image ${name}: ${what}`, {
    hint: "The image set is damaged or not CRIU's. Copy it again from where it was made.",
    cause,
  });
}
