// The build id of an ELF file: the GNU note that linkers put into a PT_NOTE segment, a hash of the content,
// by which a restore sees that a mapped file is another build; see elf(5). The file may be anybody's, so all
// offsets and sizes are checked, reads are bounded, and what is not a regular 64-bit little-endian ELF file
// has no build id.
import { closeSync, constants, fstatSync, openSync, readSync, statSync } from "node:fs";
import { errnoOf } from "./procfs.ts";
import { RepriseError } from "../errors.ts";

/** Linkers write about a dozen program headers; more than this are not read. */
const MAX_PROGRAM_HEADERS = 512;
/** Notes are tens to hundreds of bytes; of a longer segment only the beginning is searched. */
const MAX_NOTE_BYTES = 64 * 1024;
const MAX_NOTE_SEGMENTS = 16;
/** SHA-1 gives 20 bytes, --build-id=0x… any number. */
const MAX_BUILD_ID_BYTES = 64;

const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const PT_NOTE = 4;
const NT_GNU_BUILD_ID = 3;

/** Gives up to `length` bytes of a file from `offset`; fewer at its end. */
export type ReadAt = (offset: number, length: number) => Uint8Array;

/**
 * Build id of a file; undefined when it has none or is not such an ELF file. A path into
 * /proc/PID/map_files does as well, and one that is no UTF-8 as its bytes. Throws SYSCALL when the file cannot be opened or read.
 */
export function readBuildId(path: string | Buffer): Uint8Array | undefined {
  let fd: number | undefined;
  try {
    // To open a device may already do something, so ask first; O_NONBLOCK in case it changed since.
    if (!statSync(path).isFile()) return undefined;
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    if (!fstatSync(fd).isFile()) return undefined;
    const from = fd;
    return findBuildId((offset, length) => {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, readSync(from, bytes, 0, length, offset));
    });
  } catch (cause) {
    const errno = errnoOf(cause);
    if (errno === undefined) throw cause;
    throw new RepriseError(
      "SYSCALL",
      `cannot read the build id of ${String(path)}: read: ${errno}`,
      {
        syscall: "read",
        errno,
        cause,
        hint: "Check that the file is there and that its file system answers.",
      },
    );
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** Finds the build id in the bytes that `readAt` gives. */
export function findBuildId(readAt: ReadAt): Uint8Array | undefined {
  const table = programHeaders(readAt);
  if (table === undefined) return undefined;
  let segments = 0;
  for (let at = 0; at + PROGRAM_HEADER_BYTES <= table.view.byteLength; at += table.entryBytes) {
    if (table.view.getUint32(at, true) !== PT_NOTE) continue;
    if (++segments > MAX_NOTE_SEGMENTS) return undefined;
    const offset = table.view.getBigUint64(at + 8, true);
    const size = table.view.getBigUint64(at + 32, true);
    const align = table.view.getBigUint64(at + 48, true);
    if (offset > BigInt(Number.MAX_SAFE_INTEGER)) continue;
    const length = size > BigInt(MAX_NOTE_BYTES) ? MAX_NOTE_BYTES : Number(size);
    const found = buildIdInNotes(readAt(Number(offset), length), align === 8n ? 8 : 4);
    if (found !== undefined) return found;
  }
  return undefined;
}

interface ProgramHeaders {
  readonly view: DataView;
  readonly entryBytes: number;
}

function programHeaders(readAt: ReadAt): ProgramHeaders | undefined {
  const header = readAt(0, ELF_HEADER_BYTES);
  // Magic number, ELFCLASS64, ELFDATA2LSB.
  const magic = [0x7f, 0x45, 0x4c, 0x46, 2, 1];
  if (header.length < ELF_HEADER_BYTES || magic.some((byte, at) => header[at] !== byte)) {
    return undefined;
  }
  const view = viewOf(header);
  const offset = view.getBigUint64(32, true);
  const entryBytes = view.getUint16(54, true);
  const count = Math.min(view.getUint16(56, true), MAX_PROGRAM_HEADERS);
  if (entryBytes < PROGRAM_HEADER_BYTES || entryBytes > 2 * PROGRAM_HEADER_BYTES) return undefined;
  if (offset > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  return { view: viewOf(readAt(Number(offset), count * entryBytes)), entryBytes };
}

/** Walks notes: sizes of name and content, type, then both, each padded to the alignment. */
function buildIdInNotes(notes: Uint8Array, align: 4 | 8): Uint8Array | undefined {
  const view = viewOf(notes);
  const padded = (size: number): number => Math.ceil(size / align) * align;
  let at = 0;
  while (at + 12 <= notes.length) {
    const nameBytes = view.getUint32(at, true);
    const contentBytes = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    const name = at + 12;
    const content = at + padded(12 + nameBytes);
    const end = content + contentBytes;
    if (end > notes.length) return undefined;
    if (type === NT_GNU_BUILD_ID && nameBytes === 4 && isGnu(notes, name)) {
      const usable = contentBytes > 0 && contentBytes <= MAX_BUILD_ID_BYTES;
      return usable ? notes.slice(content, end) : undefined;
    }
    at += padded(content - at + contentBytes);
  }
  return undefined;
}

function isGnu(bytes: Uint8Array, at: number): boolean {
  return (
    bytes[at] === 0x47 && bytes[at + 1] === 0x4e && bytes[at + 2] === 0x55 && bytes[at + 3] === 0
  );
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
