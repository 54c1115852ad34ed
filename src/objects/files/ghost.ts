// Deleted files that are still open, at dump. A file without any name goes into the images whole (a "ghost"); one that
// only lost the name by which it was opened gets a hard link next to that name, with --link-remap. remap-fpath.img says
// which file is which; format.md 10.3. The other half is ghost-restore.ts.

import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readSync,
  rmSync,
  statfsSync,
  statSync,
  type BigIntStats,
} from "node:fs";
import { dirname } from "node:path";
import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  RemapType,
  type RemapFilePathEntry,
  type RepriseXattr,
} from "../../images/schema/messages.generated.ts";
import { bytesToText } from "../../images/text.ts";
import {
  AT_FDCWD,
  AT_SYMLINK_FOLLOW,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
} from "../../sys/abi/fcntl.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import type { FileStat } from "../../proc/links.ts";
import { EEXIST, ENOENT, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { readXattrs } from "./extended-attributes.ts";
import { dataRanges, type DataRange } from "./data-ranges.ts";
import type { FilesDump, OpenFile } from "./file-kind.ts";
import { asOwner } from "../mounts/as-owner.ts";
import { NO_OWNER } from "./owner.ts";
import { locate, mountIdField, mountRoot, pathBytes, type Whereabouts } from "./path.ts";
import {
  DEVPTS_SUPER_MAGIC,
  OVERLAYFS_SUPER_MAGIC,
  PROC_SUPER_MAGIC,
} from "../../sys/abi/mount.ts";

/** What this room keeps during one dump. */
interface Ghosts {
  readonly remaps: RemapFilePathEntry[];
  /** Ghost id by device and inode. */
  readonly ghosts: Map<string, number>;
  /** File id of the hard link by device, inode and name. */
  readonly links: Map<string, number>;
  written: boolean;
}

const states = new WeakMap<FilesDump, Ghosts>();

/**
 * The path to store for a file, which gets the entry `id`. When the file is not found by it, the file's content or a hard
 * link to it is put away, and a remap is noted.
 *
 * @throws RepriseError UNSUPPORTED for what cannot be kept, naming pid, fd and path; SYSCALL
 */
export function nameForImages(file: OpenFile, id: number, dump: FilesDump): string {
  const found = locate(file, dump);
  const { name } = found;
  refuseCovered(file, found, dump);
  if (found.kind === "there") return name;
  if (name.startsWith("/dev/pts/") && statfsSync(file.procPath).type === DEVPTS_SUPER_MAGIC)
    return name;
  const state = stateOf(dump);
  assert(!state.written, `${name} was looked at after the deferred steps of the dump`);
  const dead = deadProcess(file, name);
  if (dead !== undefined) {
    state.remaps.push({ orig_id: id, remap_id: dead, remap_type: RemapType.PROCFS });
  } else if (file.stat.nlink === 0 || isLostBelow(file, name, dump)) {
    const remap_id = ghostOf(file, name, dump);
    state.remaps.push({ orig_id: id, remap_id, remap_type: RemapType.GHOST });
  } else {
    const remap_id = linkOf(file, name, dump);
    state.remaps.push({ orig_id: id, remap_id, remap_type: RemapType.LINKED });
  }
  return name;
}

/**
 * A deleted file of a lower layer of an overlay keeps the number of links that it has there; that no link to it can be made tells that
 * it is gone.
 */
function isLostBelow(file: OpenFile, name: string, dump: FilesDump): boolean {
  if ((file.stat.mode & S_IFMT) !== S_IFREG) return false;
  if (statfsSync(file.procPath).type !== OVERLAYFS_SUPER_MAGIC) return false;
  const directory = `${mountRoot(file, dump)}${dirname(name)}`;
  if (lstatSync(pathBytes(directory), { throwIfNoEntry: false }) === undefined) return false;
  const path = `${directory}/.reprise-link.${process.pid}`;
  const result = linkTo(file, path, dump);
  if (result === 0) rmSync(pathBytes(path), { force: true });
  return result === -ENOENT;
}

/** A file that something is mounted over cannot be opened by a path. */
function refuseCovered(file: OpenFile, { kind, name }: Whereabouts, dump: FilesDump): void {
  const { mnt_id } = mountIdField(file, dump);
  if (mnt_id === undefined) return;
  // A file that is gone should at least have its directory on the mount; a mounted file has not.
  const mountPoint = dump.mounts?.all.find(({ byId }) => byId.has(mnt_id))?.byId.get(mnt_id);
  const path = kind === "there" || mountPoint?.mountpoint === name ? name : dirname(name);
  const follow = (file.stat.mode & S_IFMT) !== S_IFLNK;
  const seen = mountIdOf(pathBytes(mountRoot(file, dump) + path), { follow });
  if (seen === undefined || seen === mnt_id) return;
  throw refused(file, `something is mounted over it (at ${path})`, "Take that mount away first.");
}

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
/** link_remap.N names that are tried. */
const MAX_LINK_NAMES = 100;
const PATH_MAX = 4096;
const U32 = 0xffff_ffffn;

function stateOf(dump: FilesDump): Ghosts {
  let state = states.get(dump);
  if (state === undefined) {
    const fresh: Ghosts = { remaps: [], ghosts: new Map(), links: new Map(), written: false };
    states.set(dump, (state = fresh));
    dump.later(() => {
      fresh.written = true;
      dump.images.write("remap-fpath", 0, fresh.remaps);
    });
  }
  return state;
}

function ghostOf(file: OpenFile, name: string, dump: FilesDump): number {
  const { ghosts } = stateOf(dump);
  const key = `${file.stat.devMajor}:${file.stat.devMinor}:${file.stat.inode}`;
  const known = ghosts.get(key);
  if (known !== undefined) return known;
  if (!GHOST_KINDS.has(file.stat.mode & S_IFMT)) {
    throw refused(file, `${name} is deleted and no file that can be made again`);
  }
  const stat = statSync(file.procPath, { bigint: true });
  if ((file.stat.mode & S_IFMT) === S_IFREG)
    checkLimit(file, name, { stat, limit: dump.options.ghostLimit });
  const id = ghosts.size + 1;
  ghosts.set(key, id);
  writeGhost(file, stat, { id, dump });
  return id;
}

function checkLimit(
  file: OpenFile,
  name: string,
  { stat, limit }: { stat: BigIntStats; limit: number },
): void {
  const { type } = statfsSync(file.procPath);
  if (type === HUGETLBFS_MAGIC) throw refused(file, "memory of huge pages cannot be saved yet");
  if (type === SECRETMEM_MAGIC) throw refused(file, "secret memory cannot be read by others");
  const bytes = stat.blocks * BLOCK_UNIT;
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

/** The process whose directory in /proc a file is of, when it has ended. */
function deadProcess(file: OpenFile, name: string): number | undefined {
  const pid = /^\/proc\/(\d+)(?:\/|$)/.exec(name)?.[1];
  if (pid === undefined || statfsSync(file.procPath).type !== PROC_SUPER_MAGIC) return undefined;
  return Number(pid);
}

/** Makes a hard link next to the lost name; gives the id of its entry. */
function linkOf(file: OpenFile, name: string, dump: FilesDump): number {
  refuseUnlinkable(file, name, dump);
  const { links } = stateOf(dump);
  const key = `${file.stat.devMajor}:${file.stat.devMinor}:${file.stat.inode}:${name}`;
  const known = links.get(key);
  if (known !== undefined) return known;
  const id = dump.addEntry((linkId) => ({
    type: FdTypes.REG,
    id: linkId,
    reg: {
      id: linkId,
      flags: 0,
      pos: 0n,
      fown: NO_OWNER,
      name: makeLink(file, { name, linkId, dump }),
      build_id: [],
      ...mountIdField(file, dump),
    },
  }));
  links.set(key, id);
  return id;
}

function refuseUnlinkable(file: OpenFile, name: string, dump: FilesDump): void {
  if ((file.stat.mode & S_IFMT) === S_IFDIR) {
    throw refused(
      file,
      `the directory is not found by its name ${name} (is something mounted over it, or its mount in no place?)`,
    );
  }
  if (dump.options.linkRemap) return;
  throw refused(
    file,
    `${name} is deleted but the file has another name`,
    "Dump with --link-remap: it puts a hard link next to the lost name, which a restore needs.",
  );
}

interface LinkOptions {
  readonly name: string;
  readonly linkId: number;
  readonly dump: FilesDump;
}

function makeLink(file: OpenFile, { name, linkId, dump }: LinkOptions): string {
  const root = mountRoot(file, dump);
  for (let directory = dirname(name), attempt = 0; ;) {
    const suffix = attempt === 0 ? "" : `.${attempt}`;
    const link = `${directory === "/" ? "" : directory}/link_remap.${linkId}${suffix}`;
    const result = linkTo(file, root + link, dump);
    if (result === 0) {
      dump.onAbort(() => rmSync(pathBytes(root + link), { force: true }));
      return link;
    }
    // A link that an earlier dump left; then a directory that is gone too, where the one above must do.
    if (result === -EEXIST && attempt < MAX_LINK_NAMES) attempt++;
    else if (result === -ENOENT && directory !== "/") directory = dirname(directory);
    else throw refused(file, `no hard link can be made for ${name}: linkat: ${errnoName(-result)}`);
  }
}

/** Makes a hard link to an open file. @returns what the kernel says */
function linkTo(file: OpenFile, path: string, dump: FilesDump): number {
  const target = Buffer.concat([pathBytes(path), Buffer.of(0)]);
  const source = Buffer.from(`${file.procPath}\0`);
  return asOwner(dump.mounts?.maps, () =>
    trySyscall("linkat", AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW),
  );
}

function refused(file: OpenFile, why: string, hint?: string): RepriseError {
  const where = file.fd < 0 ? file.target : `fd ${file.fd} (${file.target})`;
  return new RepriseError("UNSUPPORTED", `cannot dump ${where} of pid ${file.task.pid}: ${why}`, {
    pid: file.task.pid,
    ...(file.fd < 0 ? {} : { fd: file.fd }),
    hint: hint ?? "Let the process close the file before the dump.",
  });
}
