// The messages between a dump and a page server, and between lazy-pages and the side that has the pages: CRIU's protocol
// (format.md section 19). Each is a header of 32 bytes, little-endian and naturally aligned; some are followed by pages,
// some are answered.

import type { PagemapKind } from "./pagemap.ts";

export const PAGE_COMMAND_SIZE = 32;

/** Low half of the first word. */
export const PageCommand = {
  /** Pages follow (before CRIU 3). */
  ADD: 1,
  /** Pages in the parent (before CRIU 3). */
  HOLE: 2,
  /** The pagemap to which what follows belongs; without an answer. */
  OPEN: 3,
  /** As OPEN; answered by one byte: whether the server has a parent for it. */
  OPEN2: 4,
  /** Is there a parent for a pagemap? Answered by an int32. */
  PARENT: 5,
  /** A run with its PE_* flags in the high half; with PE_PRESENT its pages follow. */
  ADD_F: 6,
  /** Asks for pages; answered by ADD_F and pages, perhaps fewer. */
  GET: 7,
  /** The end; answered by an int32. */
  CLOSE: 0x1023,
  /** As CLOSE, on a connection that stays open. */
  FORCE_CLOSE: 0x1024,
} as const;

export interface PageMessage {
  readonly command: number;
  /** PE_* flags of ADD_F. */
  readonly flags?: number;
  readonly pages?: number;
  readonly vaddr?: number;
  /** Which pagemap (see `pagemapCode`); of GET, the pid. */
  readonly target?: bigint;
}

export function encodePageMessage(message: PageMessage): Buffer {
  const bytes = Buffer.alloc(PAGE_COMMAND_SIZE);
  bytes.writeUInt16LE(message.command, 0);
  bytes.writeUInt16LE(message.flags ?? 0, 2);
  bytes.writeBigUInt64LE(BigInt(message.pages ?? 0), 8);
  bytes.writeBigUInt64LE(BigInt(message.vaddr ?? 0), 16);
  bytes.writeBigUInt64LE(message.target ?? 0n, 24);
  return bytes;
}

export function decodePageMessage(bytes: Buffer): Required<PageMessage> {
  return {
    command: bytes.readUInt16LE(0),
    flags: bytes.readUInt16LE(2),
    pages: Number(bytes.readBigUInt64LE(8)),
    vaddr: Number(bytes.readBigUInt64LE(16)),
    target: bytes.readBigUInt64LE(24),
  };
}

const KIND_BITS = 8n;
const KIND_MASK = 0xffn;
const KINDS = { pagemap: 1, "pagemap-shmem": 2 } as const;
/** Numbers that CRIU used before 3.3. */
const OLD_PAGEMAP: readonly number[] = [10, 11, 16, 17];
const OLD_SHMEM: readonly number[] = [27, 28, 29, 32, 33, 34];

/** A pagemap as the protocol names it. */
export function pagemapCode(kind: PagemapKind, id: number): bigint {
  return (BigInt(id) << KIND_BITS) | BigInt(KINDS[kind]);
}

/** The pagemap that a message is about; undefined for an unknown kind. */
export function pagemapOfCode(
  code: bigint,
): { readonly kind: PagemapKind; readonly id: number } | undefined {
  const kind = Number(code & KIND_MASK);
  const id = Number(code >> KIND_BITS);
  if (kind === KINDS.pagemap || OLD_PAGEMAP.includes(kind)) return { kind: "pagemap", id };
  if (kind === KINDS["pagemap-shmem"] || OLD_SHMEM.includes(kind))
    return { kind: "pagemap-shmem", id };
  return undefined;
}
