// The content of a tmpfs, at restore: the archive of the dump (ours or one of GNU tar's) is unpacked into the new file system
// by the engine, through a descriptor of the root task.

import {
  chmodSync,
  closeSync,
  constants,
  lchownSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  symlinkSync,
  ftruncateSync,
  writeSync,
  fstatSync,
} from "node:fs";
import { dirname } from "node:path";
import { RepriseError } from "../../errors.ts";
import { tarMembers, type StoredMember, type TarSource } from "../../images/tar.ts";
import { textToBytes } from "../../images/text.ts";
import { AT_FDCWD, AT_SYMLINK_NOFOLLOW, S_IFBLK, S_IFCHR, S_IFIFO } from "../../sys/abi/fcntl.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall, type SyscallArgument } from "../../sys/ffi.ts";
import type { SyscallName } from "../../sys/syscalls.x86_64.ts";

export interface UnpackOptions {
  /** Path of the archive. */
  readonly archive: string;
  /** Path of the root of the file system. */
  readonly root: string;
  /** Ids of the tree's user namespace as outside has them. */
  readonly outerId: (kind: "uid" | "gid", inner: number) => number;
}

/**
 * Unpacks an archive.
 *
 * @throws RepriseError BAD_IMAGE, SYSCALL; the system's errors
 */
export function unpackTmpfs({ archive, root, outerId }: UnpackOptions): void {
  const source = openArchive(archive);
  const times: { path: Buffer; mtime: bigint }[] = [];
  try {
    for (const member of tarMembers(source)) {
      const path = placeOf(root, member.name);
      make(member, { path, root, source });
      if (member.type === "link") continue;
      finish(member, path, outerId);
      times.push({ path, mtime: member.mtime });
    }
    // What is made in a directory changes its time.
    for (const { path, mtime } of times.toReversed()) setTime(path, mtime);
  } finally {
    source.close();
  }
}

/** Members are below `.`, and none climbs out of it. */
function placeOf(root: string, name: string): Buffer {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes(".."))
    throw new RepriseError("BAD_IMAGE", `cannot unpack a tmpfs: ${name} leads out of it`);
  return Buffer.concat([Buffer.from(root), ...parts.map((part) => textToBytes(`/${part}`))]);
}

interface Place {
  readonly path: Buffer;
  readonly root: string;
  readonly source: TarSource;
}

const FILE_FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

function make(member: StoredMember, { path, root, source }: Place): void {
  const { type, devMajor, devMinor } = member;
  switch (type) {
    case "directory":
      if (path.length > root.length) mkdirSync(path, 0o700);
      return;
    case "file":
      writeFile(path, member, source);
      return;
    case "symlink":
      symlinkSync(Buffer.from(textToBytes(member.target)), path);
      return;
    case "link":
      linkSync(placeOf(root, member.target), path);
      return;
    case "fifo":
      call("mknodat", AT_FDCWD, terminated(path), S_IFIFO | 0o600, 0);
      return;
    case "character":
    case "block": {
      const kind = type === "block" ? S_IFBLK : S_IFCHR;
      call("mknodat", AT_FDCWD, terminated(path), kind | 0o600, encodeDevice(devMajor, devMinor));
    }
  }
}

/** new_encode_dev of include/linux/kdev_t.h. */
function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0;
}

const CHUNK = 1024 * 1024;

function writeFile(path: Buffer, { parts, size }: StoredMember, source: TarSource): void {
  const fd = openSync(path, FILE_FLAGS, 0o600);
  try {
    for (const { at, offset, length } of parts) {
      for (let done = 0; done < length;) {
        const bytes = source.read(at + done, Math.min(CHUNK, length - done));
        done += writeSync(fd, bytes, 0, bytes.length, offset + done);
      }
    }
    if (fstatSync(fd).size !== size) ftruncateSync(fd, size);
  } finally {
    closeSync(fd);
  }
}

function finish(member: StoredMember, path: Buffer, outerId: UnpackOptions["outerId"]): void {
  // The order matters: chown takes set-user-ID bits and capabilities away.
  lchownSync(path, outerId("uid", member.uid), outerId("gid", member.gid));
  if (member.type !== "symlink") chmodSync(path, member.mode);
  for (const [key, value] of member.xattrs) {
    call("lsetxattr", terminated(path), Buffer.from(`${key}\0`), value, value.length, 0);
  }
}

const NANO = 1_000_000_000n;
const UTIME_OMIT = (1n << 30n) - 2n;

function setTime(path: Buffer, mtime: bigint): void {
  const times = Buffer.alloc(32);
  times.writeBigInt64LE(UTIME_OMIT, 8);
  const seconds = mtime / NANO - (mtime % NANO < 0n ? 1n : 0n);
  times.writeBigInt64LE(seconds, 16);
  times.writeBigInt64LE(mtime - seconds * NANO, 24);
  call("utimensat", AT_FDCWD, terminated(path), times, AT_SYMLINK_NOFOLLOW);
}

function terminated(path: Buffer): Buffer {
  return Buffer.concat([path, Buffer.of(0)]);
}

function call(name: SyscallName, ...args: readonly SyscallArgument[]): void {
  const result = trySyscall(name, ...args);
  if (result >= 0) return;
  throw new RepriseError("SYSCALL", `cannot unpack a tmpfs: ${name}: ${errnoName(-result)}`, {
    syscall: name,
    errno: errnoName(-result),
  });
}

/** Archives up to this size are unpacked in memory. */
const SMALL_ARCHIVE = 32 * 1024 * 1024;
const SMALL_CONTENT = 512 * 1024 * 1024;

interface OpenArchive extends TarSource {
  close(): void;
}

function openArchive(path: string): OpenArchive {
  if (statSync(path).size <= SMALL_ARCHIVE) {
    try {
      // Loaded here: with the streams that it brings along it takes milliseconds, and few trees have such a mount.
      const { gunzipSync } = process.getBuiltinModule("node:zlib");
      const bytes = gunzipSync(readFileSync(path), { maxOutputLength: SMALL_CONTENT });
      const read = (at: number, length: number): Buffer => bytes.subarray(at, at + length);
      return { size: bytes.length, read, close: () => undefined };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ERR_BUFFER_TOO_LARGE")
        throw badArchive(path, error);
    }
  }
  return openLarge(path);
}

/** gzip writes the content to a file without a name, beside the images. */
function openLarge(path: string): OpenArchive {
  const fd = openSync(dirname(path), constants.O_RDWR | O_TMPFILE, 0o600);
  const archive = openSync(path, constants.O_RDONLY);
  try {
    const { spawnSync } = process.getBuiltinModule("node:child_process");
    const { status, error } = spawnSync("gzip", ["-dc"], { stdio: [archive, fd, "ignore"] });
    if (status !== 0) throw badArchive(path, error);
  } catch (error) {
    closeSync(fd);
    throw error;
  } finally {
    closeSync(archive);
  }
  const read = (at: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    return bytes.subarray(0, readSync(fd, bytes, 0, length, at));
  };
  return { size: fstatSync(fd).size, read, close: () => closeSync(fd) };
}

const O_TMPFILE = 0o20200000;

function badArchive(path: string, cause: unknown): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot unpack ${path}: it is no whole gzip file`, {
    cause,
  });
}
