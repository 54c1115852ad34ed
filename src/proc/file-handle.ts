// File handles: how a file is named within its file system without a path, for as long as it is there; see name_to_handle_at(2).
// Some file systems have none, and others (overlayfs without nfs_export) have ones that cannot be opened.

import { closeSync, statSync } from "node:fs";
import { FILE_HANDLE_HEAD, MAX_HANDLE_SZ } from "../sys/abi/event-files.ts";
import { AT_FDCWD, AT_SYMLINK_FOLLOW, O_CLOEXEC, O_DIRECTORY, O_PATH } from "../sys/abi/fcntl.ts";
import { STATFS_FSID_AT, STATFS_SIZE } from "../sys/abi/mount.ts";
import { trySyscall } from "../sys/ffi.ts";

/** A file handle as open_by_handle_at(2) takes it. */
export interface FileHandle {
  readonly type: number;
  readonly bytes: Uint8Array;
}

/** The handle of the file that a path leads to; undefined where its file system has none. `follow`: a link, as those of /proc/PID. */
export function readFileHandle(
  path: string | Uint8Array,
  { follow }: { readonly follow: boolean },
): FileHandle | undefined {
  const handle = Buffer.alloc(FILE_HANDLE_HEAD + MAX_HANDLE_SZ);
  handle.writeUInt32LE(MAX_HANDLE_SZ, 0);
  const mountId = Buffer.alloc(4);
  const result = trySyscall(
    "name_to_handle_at",
    AT_FDCWD,
    zeroEnded(path),
    handle,
    mountId,
    follow ? AT_SYMLINK_FOLLOW : 0,
  );
  if (result < 0) return undefined;
  const bytes = handle.subarray(FILE_HANDLE_HEAD, FILE_HANDLE_HEAD + handle.readUInt32LE(0));
  return { type: handle.readInt32LE(4), bytes };
}

/** Whether two handles of one file system are the same. */
export function isSameHandle(a: FileHandle, b: FileHandle): boolean {
  return a.type === b.type && Buffer.compare(a.bytes, b.bytes) === 0;
}

/**
 * Opens a file (O_PATH) of the file system that `directory` is in, on the mount by which that path leads there.
 *
 * @returns a descriptor; undefined when the file is gone, or the file system opens no handles
 */
export function openFileHandle(
  directory: string | Uint8Array,
  { type, bytes }: FileHandle,
): number | undefined {
  const flags = O_DIRECTORY | O_CLOEXEC;
  const mount = trySyscall("openat", AT_FDCWD, zeroEnded(directory), flags, 0);
  if (mount < 0) return undefined;
  const handle = Buffer.alloc(FILE_HANDLE_HEAD + bytes.length);
  handle.writeUInt32LE(bytes.length, 0);
  handle.writeInt32LE(type, 4);
  handle.set(bytes, FILE_HANDLE_HEAD);
  const fd = trySyscall("open_by_handle_at", mount, handle, O_PATH | O_CLOEXEC);
  closeSync(mount);
  return fd < 0 ? undefined : fd;
}

/** What tells a file system for as long as its handles last: f_fsid of statfs(2), or its device where that says nothing. */
export function fileSystemId(path: string | Buffer): bigint {
  const answer = Buffer.alloc(STATFS_SIZE);
  if (trySyscall("statfs", zeroEnded(path), answer) < 0) return 0n;
  const id = answer.readBigUInt64LE(STATFS_FSID_AT);
  return id === 0n ? statSync(path, { bigint: true }).dev : id;
}

function zeroEnded(path: string | Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(path), Buffer.of(0)]);
}
