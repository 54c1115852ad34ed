// Reading and writing another process's memory, and buffers at fixed addresses for structures.

import { RepriseError } from "../errors.ts";
import { AT_FDCWD, O_CLOEXEC, O_RDWR } from "./abi/fcntl.ts";
import { EIO } from "./errno.ts";
import { addressOf, syscall, syscallError, trySyscall } from "./ffi.ts";

/** struct iovec: base and length. */
export const IOVEC_SIZE = 16;
/** UIO_MAXIOV: vectors in one call. */
export const IOV_MAX = 1024;

/** A range of memory: address and length in bytes. */
export interface MemoryRange {
  readonly address: number;
  readonly length: number;
}

/** Encodes struct iovec for each range. */
export function iovecs(ranges: readonly MemoryRange[]): Buffer {
  const buffer = Buffer.alloc(ranges.length * IOVEC_SIZE);
  ranges.forEach((range, index) => {
    writeU64(buffer, index * IOVEC_SIZE, range.address);
    writeU64(buffer, index * IOVEC_SIZE + 8, range.length);
  });
  return buffer;
}

// Byte by byte: a view of the memory would be an object more for each word.

/** Writes a number below 2^53 as a little-endian 64-bit word. */
export function writeU64(buffer: Uint8Array, offset: number, value: number): void {
  putHalf(buffer, offset, value % TWO_32);
  putHalf(buffer, offset + 4, Math.floor(value / TWO_32));
}

/** Reads a little-endian 64-bit word as a number. */
export function readU64(buffer: Uint8Array, offset: number): number {
  return (halfAt(buffer, offset) >>> 0) + (halfAt(buffer, offset + 4) >>> 0) * TWO_32;
}

/** Reads a little-endian 64-bit word as a number with its sign. */
export function readI64(buffer: Uint8Array, offset: number): number {
  return (halfAt(buffer, offset) >>> 0) + halfAt(buffer, offset + 4) * TWO_32;
}

const TWO_32 = 0x1_0000_0000;

function putHalf(buffer: Uint8Array, offset: number, half: number): void {
  buffer[offset] = half & 0xff;
  buffer[offset + 1] = (half >>> 8) & 0xff;
  buffer[offset + 2] = (half >>> 16) & 0xff;
  buffer[offset + 3] = (half >>> 24) & 0xff;
}

function halfAt(buffer: Uint8Array, offset: number): number {
  return (
    (buffer[offset] as number) |
    ((buffer[offset + 1] as number) << 8) |
    ((buffer[offset + 2] as number) << 16) |
    ((buffer[offset + 3] as number) << 24)
  );
}

/**
 * Copies memory of a process into `into`, from ranges in order; the lengths add up to its size.
 *
 * @throws RepriseError SYSCALL when a range is not readable.
 */
export function readMemory(pid: number, ranges: readonly MemoryRange[], into: Uint8Array): void {
  transfer("process_vm_readv", pid, ranges, into);
}

/** Copies `from` into the memory of a process; the ranges' lengths add up to its size. */
export function writeMemory(pid: number, ranges: readonly MemoryRange[], from: Uint8Array): void {
  transfer("process_vm_writev", pid, ranges, from);
}

type TransferCall = "process_vm_readv" | "process_vm_writev";

function transfer(
  call: TransferCall,
  pid: number,
  ranges: readonly MemoryRange[],
  local: Uint8Array,
): void {
  // Most are of one range; no vectors are made for it.
  if (ranges.length === 1) {
    putVector(localVector, addressOf(local), local.length);
    putVector(remoteVector, ranges[0]?.address ?? 0, local.length);
    const moved = trySyscall(call, pid, localVectorAt, 1, remoteVectorAt, 1, 0);
    checkMoved(moved, { call, pid, length: local.length });
    return;
  }
  let done = 0;
  for (let first = 0; first < ranges.length; first += IOV_MAX) {
    const part = ranges.slice(first, first + IOV_MAX);
    const length = part.reduce((sum, range) => sum + range.length, 0);
    putVector(localVector, addressOf(local) + done, length);
    const moved = trySyscall(call, pid, localVectorAt, 1, iovecs(part), part.length, 0);
    checkMoved(moved, { call, pid, length });
    done += length;
  }
}

const localVector = Buffer.alloc(IOVEC_SIZE);
const localVectorAt = addressOf(localVector);
const remoteVector = Buffer.alloc(IOVEC_SIZE);
const remoteVectorAt = addressOf(remoteVector);

function putVector(vector: Buffer, address: number, length: number): void {
  vector.writeUInt32LE(address % 0x1_0000_0000, 0);
  vector.writeUInt32LE(Math.floor(address / 0x1_0000_0000), 4);
  vector.writeUInt32LE(length, 8);
}

function checkMoved(
  moved: number,
  {
    call,
    pid,
    length,
  }: { readonly call: TransferCall; readonly pid: number; readonly length: number },
): void {
  if (moved < 0) throw syscallError(call, -moved, `copy memory of pid ${pid}`);
  if (moved !== length) {
    throw new RepriseError("SYSCALL", `cannot copy memory of pid ${pid}: ${call}: short copy`, {
      pid,
      syscall: call,
    });
  }
}

/** Writes the memory of a process past its protection (FOLL_FORCE of /proc/PID/mem), as debuggers do for read-only pages. */
export class MemoryPoker {
  readonly #pid: number;
  #fd: number | undefined;

  constructor(pid: number) {
    this.#pid = pid;
  }

  poke(address: number, bytes: Uint8Array): void {
    const path = `/proc/${this.#pid}/mem\0`;
    this.#fd ??= syscall("openat", AT_FDCWD, Buffer.from(path), O_RDWR | O_CLOEXEC, 0);
    const written = trySyscall("pwrite64", this.#fd, bytes, bytes.length, address);
    if (written === bytes.length) return;
    const errno = written < 0 ? -written : EIO;
    throw syscallError("pwrite64", errno, `write memory of pid ${this.#pid}`);
  }

  /** Lets the file go; it is opened again when it is needed. */
  close(): void {
    if (this.#fd !== undefined) trySyscall("close", this.#fd);
    this.#fd = undefined;
  }
}
