// Reading small files, links and stats by plain system calls. node:fs does the same with several layers of checks, which V8 has to
// compile while the tree stands still; and thousands of descriptors are looked at that way.

import { AT_FDCWD, O_CLOEXEC, O_RDONLY } from "./abi/fcntl.ts";
import { EINTR, ENAMETOOLONG } from "./errno.ts";
import { addressOf, trySyscall } from "./ffi.ts";

/** PATH_MAX, with room for the zero behind it. */
const PATH_ROOM = 4096;
const FIRST_ROOM = 64 * 1024;
/** Files of /proc/sys refuse to be read into more than what kmalloc gives (fs/proc/proc_sysctl.c): 4 MiB. */
const MOST_AT_ONCE = 1024 * 1024;
/** Half a page. */
const SHORT = 2048;
/** struct statx, and the mask for what stat tells. */
export const STATX = { size: 256, basic: 0x7ff } as const;

/** Buffers that are used again and again, with their addresses. */
const path = Buffer.alloc(PATH_ROOM);
const pathAt = addressOf(path);
const link = Buffer.alloc(PATH_ROOM);
const linkAt = addressOf(link);
const statx = Buffer.alloc(STATX.size);
const statxAt = addressOf(statx);
const statxView = new DataView(statx.buffer, statx.byteOffset, STATX.size);
let content = Buffer.alloc(FIRST_ROOM);
let contentAt = addressOf(content);

/** What stat tells about a file. */
export interface PlainStat {
  readonly devMajor: number;
  readonly devMinor: number;
  readonly inode: bigint;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly size: bigint;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
}

/** The text of a file, taken as UTF-8, or the negative error number. */
export function readText(name: string, directory = AT_FDCWD): string | number {
  const length = readContent(name, directory);
  return length < 0 ? length : content.toString("utf8", 0, length);
}

/**
 * Like readText for files of /proc that are one record, or records of less than SHORT bytes: the kernel's seq_file gives as many as fit
 * into a page, so what comes with one read and is shorter than half a page is all of it. Nobody has to look for the end.
 */
export function readShortText(name: string, directory = AT_FDCWD): string | number {
  const fd = openToRead(name, directory);
  if (fd < 0) return fd;
  let length: number;
  do length = trySyscall("read", fd, contentAt, FIRST_ROOM);
  while (length === -EINTR);
  trySyscall("close", fd);
  if (length > SHORT) return readText(name, directory);
  return length < 0 ? length : content.toString("utf8", 0, length);
}

/** The bytes of a file, or the negative error number. */
export function readBytes(name: string): Uint8Array | number {
  const length = readContent(name);
  return length < 0 ? length : new Uint8Array(content.subarray(0, length));
}

/** The target of a symbolic link, or the negative error number. */
export function readLink(name: string, directory = AT_FDCWD): string | number {
  if (!putPath(name)) return -ENAMETOOLONG;
  const length = trySyscall("readlinkat", directory, pathAt, linkAt, PATH_ROOM);
  return length < 0 ? length : link.toString("utf8", 0, length);
}

/** The stat of the file that a path leads to, or the negative error number. */
export function readStat(name: string, directory = AT_FDCWD): PlainStat | number {
  if (!putPath(name)) return -ENAMETOOLONG;
  const result = trySyscall("statx", directory, pathAt, 0, STATX.basic, statxAt);
  return result < 0 ? result : parseStatx(statxView);
}

/** What a struct statx tells. */
export function parseStatx(view: DataView): PlainStat {
  return {
    devMajor: view.getUint32(136, true),
    devMinor: view.getUint32(140, true),
    inode: view.getBigUint64(32, true),
    mode: view.getUint16(28, true),
    nlink: view.getUint32(16, true),
    uid: view.getUint32(20, true),
    gid: view.getUint32(24, true),
    rdevMajor: view.getUint32(128, true),
    rdevMinor: view.getUint32(132, true),
    size: view.getBigInt64(40, true),
    mtimeNs: timeAt(view, 112),
    ctimeNs: timeAt(view, 96),
  };
}

/** A struct statx_timestamp, in nanoseconds. */
function timeAt(view: DataView, offset: number): bigint {
  const seconds = view.getBigInt64(offset, true);
  return seconds * 1_000_000_000n + BigInt(view.getUint32(offset + 8, true));
}

/** Puts a path where the kernel reads it. */
function putPath(name: string): boolean {
  const length = path.write(name);
  path[Math.min(length, PATH_ROOM - 1)] = 0;
  return length < PATH_ROOM;
}

/** Reads a whole file into `content`; returns its length. */
function readContent(name: string, directory = AT_FDCWD): number {
  const fd = openToRead(name, directory);
  if (fd < 0) return fd;
  let length = 0;
  for (;;) {
    if (length === content.length) grow();
    const room = Math.min(content.length - length, MOST_AT_ONCE);
    const count = trySyscall("read", fd, contentAt + length, room);
    if (count === -EINTR) continue;
    if (count <= 0) {
      trySyscall("close", fd);
      return count < 0 ? count : length;
    }
    length += count;
  }
}

function openToRead(name: string, directory: number): number {
  return putPath(name)
    ? trySyscall("openat", directory, pathAt, O_RDONLY | O_CLOEXEC, 0)
    : -ENAMETOOLONG;
}

function grow(): void {
  const larger = Buffer.alloc(content.length * 2);
  larger.set(content);
  content = larger;
  contentAt = addressOf(larger);
}
