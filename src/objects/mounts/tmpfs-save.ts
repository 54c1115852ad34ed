// The content of a tmpfs, at dump: a compressed tar archive as GNU tar would make it (tmpfs-dev-N.tar.gz.img), with holes,
// hard links, devices, extended attributes, and ids as the tree's user namespace has them. Sockets stay out, as with GNU tar: who
// is bound to one makes it again. See tmpfs(5), format.md section 13.

import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  writeSync,
  type BigIntStats,
} from "node:fs";
import { RepriseError } from "../../errors.ts";
import {
  TAR_END,
  tarHeader,
  tarPadding,
  type TarMember,
  type TarRange,
  type TarType,
} from "../../images/tar.ts";
import { bytesToText } from "../../images/text.ts";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
} from "../../sys/abi/fcntl.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { dataRanges } from "../files/data-ranges.ts";

export interface SaveOptions {
  /** Descriptor of the directory that is its root, without the mounts below. */
  readonly root: number;
  /** The mount whose own files are saved, when others are mounted on it; of their mount points nothing but the kind is known. */
  readonly mountId?: number;
  /** Descriptor that the archive is written to. */
  readonly to: number;
  /** Ids of outside as the tree's user namespace has them. */
  readonly innerId: (kind: "uid" | "gid", outer: number) => number;
  /** Told of each socket. */
  readonly leftOut?: (name: string, stat: BigIntStats) => void;
  /** Told of everything that is saved, sockets and mount points too, before it is looked into. */
  readonly saving?: (name: Buffer, stat: BigIntStats) => void;
  /** Told of the bytes that are saved of the content of what `saving` told last. */
  readonly copying?: (bytes: Buffer) => void;
}

/**
 * Writes the archive of a file system.
 *
 * @throws the system's errors
 */
export function saveTmpfs(options: SaveOptions): void {
  const { root, to, innerId, leftOut, saving, mountId } = options;
  const copying = options.copying ?? ((): void => undefined);
  const output = new Compressor(to);
  const links = new Map<bigint, string>();
  const base = Buffer.from(`/proc/self/fd/${root}`);
  // Directories in the order of a walk, each before what is in it.
  const walk = (name: Buffer): void => {
    const path = Buffer.concat([base, Buffer.from("/"), name]);
    const stat = lstatSync(path, { bigint: true });
    saving?.(name, stat);
    if (
      mountId !== undefined &&
      mountIdOf(path, { follow: false }) !== mountId &&
      name.length > 1
    ) {
      output.add(mountPoint(name, stat));
      return;
    }
    const type = typeOf(stat);
    if (type === undefined) {
      leftOut?.(bytesToText(name), stat);
      return;
    }
    const known = type === "directory" ? undefined : links.get(stat.ino);
    const shown = `${bytesToText(name)}${type === "directory" ? "/" : ""}`;
    if (known !== undefined) {
      output.add(tarHeader(memberOf(shown, stat, { type: "link", target: known, innerId })));
      return;
    }
    if (type !== "directory" && stat.nlink > 1n) links.set(stat.ino, shown);
    const member = memberOf(shown, stat, {
      type,
      target: type === "symlink" ? bytesToText(readlinkSync(path, { encoding: "buffer" })) : "",
      xattrs: readXattrs(path),
      innerId,
    });
    if (type === "file" && stat.size > 0n) addFile(output, path, { member, copying });
    else output.add(tarHeader(member));
    if (type !== "directory") return;
    for (const entry of readdirSync(path, { encoding: "buffer" }).sort((a, b) => a.compare(b)))
      walk(Buffer.concat([name, Buffer.from("/"), entry]));
  };
  walk(Buffer.from("."));
  output.add(TAR_END);
  output.flush();
}

/** Writes the archive of a file system that nobody can look into. */
export function saveNothing(to: number): void {
  const output = new Compressor(to);
  output.add(TAR_END);
  output.flush();
}

/** What a mount covers: a directory or a file, as nothing else can be mounted on. */
function mountPoint(name: Buffer, { mode, mtimeNs }: BigIntStats): Buffer {
  const isDir = (Number(mode) & S_IFMT) === S_IFDIR;
  return tarHeader({
    name: `${bytesToText(name)}${isDir ? "/" : ""}`,
    type: isDir ? "directory" : "file",
    target: "",
    mode: isDir ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtime: mtimeNs,
    size: 0,
    devMajor: 0,
    devMinor: 0,
    xattrs: new Map(),
    data: undefined,
  });
}

const KINDS: ReadonlyMap<number, TarType> = new Map([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFLNK, "symlink"],
  [S_IFCHR, "character"],
  [S_IFBLK, "block"],
  [S_IFIFO, "fifo"],
]);

function typeOf(stat: BigIntStats): TarType | undefined {
  return KINDS.get(Number(stat.mode) & S_IFMT);
}

interface MemberDetails {
  readonly type: TarType;
  readonly target: string;
  readonly xattrs?: ReadonlyMap<string, Uint8Array>;
  readonly innerId: SaveOptions["innerId"];
}

function memberOf(name: string, stat: BigIntStats, details: MemberDetails): TarMember {
  const { type, target, xattrs, innerId } = details;
  const isDevice = type === "character" || type === "block";
  return {
    name,
    type,
    target,
    mode: Number(stat.mode) & 0o7777,
    uid: innerId("uid", Number(stat.uid)),
    gid: innerId("gid", Number(stat.gid)),
    mtime: stat.mtimeNs,
    size: type === "file" ? Number(stat.size) : 0,
    devMajor: isDevice ? deviceMajor(stat.rdev) : 0,
    devMinor: isDevice ? deviceMinor(stat.rdev) : 0,
    xattrs: xattrs ?? new Map(),
    data: undefined,
  };
}

/** Blocks as stat(2) counts them. */
const BLOCK_UNIT = 512n;
const CHUNK = 1024 * 1024;

function addFile(
  output: Compressor,
  path: Buffer,
  { member, copying }: { readonly member: TarMember; readonly copying: (bytes: Buffer) => void },
): void {
  const add = (bytes: Buffer): void => {
    copying(bytes);
    output.add(bytes);
  };
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOATIME);
  try {
    const { blocks } = lstatSync(path, { bigint: true });
    const hasHoles = blocks * BLOCK_UNIT < BigInt(member.size);
    const ranges: readonly TarRange[] = hasHoles
      ? dataRanges(fd, member.size).map(({ start, end }) => ({
          offset: start,
          length: end - start,
        }))
      : [{ offset: 0, length: member.size }];
    output.add(tarHeader(hasHoles ? { ...member, data: ranges } : member));
    let total = 0;
    for (const range of ranges) {
      copyRange(fd, range, add);
      total += range.length;
    }
    output.add(tarPadding(total));
  } finally {
    closeSync(fd);
  }
}

function copyRange(fd: number, { offset, length }: TarRange, add: (bytes: Buffer) => void): void {
  for (let at = 0; at < length;) {
    const bytes = Buffer.allocUnsafe(Math.min(CHUNK, length - at));
    const count = readSync(fd, bytes, 0, bytes.length, offset + at);
    if (count === 0)
      throw new RepriseError(
        "SYSCALL",
        "cannot read a file of a tmpfs: it became shorter meanwhile",
      );
    add(bytes.subarray(0, count));
    at += count;
  }
}

const XATTR_LIST = Buffer.alloc(65536);

function readXattrs(path: Buffer): Map<string, Uint8Array> {
  const name = Buffer.concat([path, Buffer.of(0)]);
  const length = trySyscall("llistxattr", name, XATTR_LIST, XATTR_LIST.length);
  const xattrs = new Map<string, Uint8Array>();
  // ENOTSUP: a kernel without attributes on tmpfs.
  if (length <= 0) return xattrs;
  for (const key of XATTR_LIST.toString("latin1", 0, length - 1).split("\0")) {
    const value = Buffer.alloc(65536);
    const size = trySyscall("lgetxattr", name, Buffer.from(`${key}\0`), value, value.length);
    if (size >= 0) xattrs.set(key, value.subarray(0, size));
  }
  return xattrs;
}

/** A few names and devices, as in most /dev: making the tables of a compressor would take longer than filling them. */
const SMALL = 32 * 1024;
const FOR_FEW_BYTES = { level: 1, memLevel: 3, windowBits: 10 };

/** gzip in pieces: a file of several members is one stream for every reader. */
class Compressor {
  readonly #fd: number;
  #pending: Buffer[] = [];
  #size = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  add(bytes: Buffer): void {
    this.#pending.push(bytes);
    this.#size += bytes.length;
    if (this.#size >= CHUNK) this.flush();
  }

  flush(): void {
    if (this.#size === 0) return;
    const bytes = Buffer.concat(this.#pending);
    // Loaded here, as where it is read: see tmpfs-restore.ts.
    const { gzipSync } = process.getBuiltinModule("node:zlib");
    const compressed = gzipSync(bytes, bytes.length <= SMALL ? FOR_FEW_BYTES : { level: 1 });
    for (let at = 0; at < compressed.length;) at += writeSync(this.#fd, compressed, at);
    this.#pending = [];
    this.#size = 0;
  }
}
