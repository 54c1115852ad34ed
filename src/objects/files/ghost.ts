// Files without any name that are still open, at dump: they go into the images whole (a "ghost"). The other half is ghost-restore.ts.

import {
  closeSync,
  constants,
  openSync,
  readSync,
  statfsSync,
  statSync,
  type BigIntStats,
} from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { RepriseXattr } from "../../images/schema/messages.generated.ts";
import { bytesToText } from "../../images/text.ts";
import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
} from "../../sys/abi/fcntl.ts";
import type { FileStat } from "../../proc/links.ts";
import { syscall } from "../../sys/ffi.ts";
import { readXattrs } from "./extended-attributes.ts";
import { dataRanges, type DataRange } from "./data-ranges.ts";
import type { FilesDump, OpenFile } from "./file-kind.ts";
import { refused } from "./refusals.ts";

/** Kinds of file that a ghost can be. */
const GHOST_KINDS: ReadonlySet<number> = new Set([
  S_IFREG,
  S_IFDIR,
  S_IFIFO,
  S_IFCHR,
  S_IFBLK,
  S_IFLNK,
]);
/** Files of at least three pages are stored by their ranges of data, as criu does. */
const CHUNKS_FROM = 3 * 4096;
/** st_blocks counts units of this size. */
const BLOCK_UNIT = 512n;
const COPY_BYTES = 256 * 1024;
const PATH_MAX = 4096;
const U32 = 0xffff_ffffn;

/** Ghost ids of one dump, by device and inode. */
const states = new WeakMap<FilesDump, Map<string, number>>();

/**
 * Puts the content of a deleted file away. Gives the id of the ghost.
 *
 * @throws RepriseError UNSUPPORTED for what is too large or cannot be made again; SYSCALL
 */
export function ghostOf(file: OpenFile, name: string, dump: FilesDump): number {
  const known = ghosts(dump).get(keyOf(file));
  if (known !== undefined) return known;
  if (!GHOST_KINDS.has(file.stat.mode & S_IFMT)) {
    throw refused(file, `${name} is deleted and no file that can be made again`);
  }
  const stat = statSync(file.procPath, { bigint: true });
  if ((file.stat.mode & S_IFMT) === S_IFREG)
    checkLimit(file, name, { stat, limit: dump.options.ghostLimit });
  return newGhost(file, stat, dump);
}

/** The same for a file that may have a name when it is wanted again; undefined when it is too large, or cannot be made again. */
export function ghostIfSmall(file: OpenFile, dump: FilesDump): number | undefined {
  const known = ghosts(dump).get(keyOf(file));
  const kind = file.stat.mode & S_IFMT;
  if (known !== undefined || !GHOST_KINDS.has(kind) || kind === S_IFDIR) return known;
  const stat = statSync(file.procPath, { bigint: true });
  if (kind === S_IFREG && sizeOnDisk(stat) > BigInt(dump.options.ghostLimit)) return undefined;
  return newGhost(file, stat, dump);
}

function ghosts(dump: FilesDump): Map<string, number> {
  let known = states.get(dump);
  if (known === undefined) states.set(dump, (known = new Map()));
  return known;
}

function keyOf({ stat }: OpenFile): string {
  return `${stat.devMajor}:${stat.devMinor}:${stat.inode}`;
}

function newGhost(file: OpenFile, stat: BigIntStats, dump: FilesDump): number {
  const known = ghosts(dump);
  const id = known.size + 1;
  known.set(keyOf(file), id);
  writeGhost(file, stat, { id, dump });
  return id;
}

function sizeOnDisk({ blocks }: BigIntStats): bigint {
  return blocks * BLOCK_UNIT;
}

function checkLimit(
  file: OpenFile,
  name: string,
  { stat, limit }: { stat: BigIntStats; limit: number },
): void {
  const { type } = statfsSync(file.procPath);
  if (type === HUGETLBFS_MAGIC) throw refused(file, "memory of huge pages cannot be saved yet");
  if (type === SECRETMEM_MAGIC) throw refused(file, "secret memory cannot be read by others");
  const bytes = sizeOnDisk(stat);
  if (bytes <= BigInt(limit)) return;
  throw refused(
    file,
    `${name} is deleted and has ${bytes} bytes, more than the ghost limit of ${limit}`,
    `Allow it with --ghost-limit ${bytes}.`,
  );
}

const HUGETLBFS_MAGIC = 0x958458f6;
const SECRETMEM_MAGIC = 0x5345434d;

function writeGhost(
  file: OpenFile,
  stat: BigIntStats,
  { id, dump }: { id: number; dump: FilesDump },
): void {
  const kind = Number(stat.mode) & S_IFMT;
  const chunks = kind === S_IFREG && stat.size >= CHUNKS_FROM;
  const image = openGhost(dump, id);
  image.add({
    uid: innerId(dump, "uid", stat.uid),
    gid: innerId(dump, "gid", stat.gid),
    mode: Number(stat.mode),
    dev: kernelDevice(file.stat),
    ino: stat.ino,
    ...(kind === S_IFCHR || kind === S_IFBLK ? { rdev: Number(stat.rdev & U32) } : {}),
    atim: timeval(stat.atimeNs),
    mtim: timeval(stat.mtimeNs),
    ...(chunks ? { chunks, size: Number(stat.size) } : {}),
    ...(kind === S_IFLNK ? { symlnk_target: linkTarget(file, dump) } : {}),
    xattrs: attributesOf(file, kind),
  });
  if (kind === S_IFREG) copyContent(file, { image, size: Number(stat.size), chunks });
  image.close();
}

/** Others than files and directories are not opened when they are made again. */
function attributesOf(file: OpenFile, kind: number): RepriseXattr[] {
  const found = readXattrs(file.procPath);
  if (found.length === 0 || kind === S_IFREG || kind === S_IFDIR) return found;
  log.loss(
    `fd ${file.fd} of pid ${file.task.pid} (${file.target}): its extended attributes are not saved`,
  );
  return [];
}

/** Ids in images are those of the tree's user namespace. */
function innerId({ mounts }: FilesDump, kind: "uid" | "gid", outer: bigint): number {
  return mounts?.innerId(kind, Number(outer)) ?? Number(outer);
}

/** A device number as the kernel itself writes it: the major number above 20 bits of minor. */
function kernelDevice({ devMajor, devMinor }: FileStat): number {
  return ((devMajor << 20) | devMinor) >>> 0;
}

function timeval(nanoseconds: bigint): { tv_sec: bigint; tv_usec: bigint } {
  const tv_sec = nanoseconds / 1_000_000_000n;
  return { tv_sec, tv_usec: (nanoseconds - tv_sec * 1_000_000_000n) / 1000n };
}

/** What a deleted symbolic link says; only a descriptor (of O_PATH) can hold one. */
function linkTarget(file: OpenFile, dump: FilesDump): string {
  const text = Buffer.alloc(PATH_MAX);
  const length = syscall("readlinkat", dump.borrow(file), Buffer.of(0), text, text.length);
  return bytesToText(text.subarray(0, length));
}

interface GhostContent {
  readonly image: ReturnType<typeof openGhost>;
  readonly size: number;
  readonly chunks: boolean;
}

function openGhost(dump: FilesDump, id: number) {
  return dump.images.open("ghost-file", id);
}

function copyContent(file: OpenFile, { image, size, chunks }: GhostContent): void {
  // Not the task's own description: that may be for writing only, and its position must stay.
  const fd = openSync(file.procPath, constants.O_RDONLY | constants.O_NOATIME);
  try {
    for (const { start, end } of chunks ? dataRanges(fd, size) : [{ start: 0, end: size }]) {
      if (chunks) image.ghostChunk({ len: end - start, off: start });
      copyRange(fd, { start, end }, image);
    }
  } finally {
    closeSync(fd);
  }
}

function copyRange(fd: number, range: DataRange, image: GhostContent["image"]): void {
  for (let at = range.start; at < range.end;) {
    // A fresh buffer each time: the image keeps it until it is written.
    const bytes = Buffer.allocUnsafe(Math.min(COPY_BYTES, range.end - at));
    const count = readSync(fd, bytes, 0, bytes.length, at);
    if (count === 0) {
      throw new RepriseError("SYSCALL", "cannot read a deleted file: it became shorter meanwhile");
    }
    image.payload(bytes.subarray(0, count));
    at += count;
  }
}
