// Locks on files: POSIX (of a process, fcntl(2) F_SETLK), OFD and flock(2) (of an open file description) and leases. The
// kernel tells them in fdinfo, each under the descriptors through which its owner holds it (fs/locks.c: __show_fd_locks).
//
// A POSIX lock goes when its process closes any descriptor of the file, so at restore locks come when the descriptors of the
// restore itself are closed. A lease that somebody is breaking is broken again, with nobody told: the first signal for it is
// in the images, if it has not been taken.

import { RepriseError } from "../../errors.ts";
import type { FileEntry, FileLockEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import type { LockLine } from "../../proc/locks.ts";
import {
  AT_FDCWD,
  F_OFD_SETLK,
  F_OWNER_PID,
  F_RDLCK,
  F_SETLEASE,
  F_SETLK,
  F_SETOWN_EX,
  F_UNLCK,
  F_WRLCK,
  LOCK_EX,
  LOCK_NB,
  LOCK_SH,
  O_ACCMODE,
  O_NONBLOCK,
  O_RDONLY,
  O_WRONLY,
  SEEK_SET,
} from "../../sys/abi/fcntl.ts";
import { EAGAIN } from "../../sys/errno.ts";
import { processNumber } from "../task/task.ts";
import type { Program } from "../../tracee/program.ts";
import type { OpenFile } from "./file-kind.ts";
import { needsOwner, settleOwner } from "./owner.ts";

/** file_lock_entry.flag: what kind of lock it is. */
const KIND_FLAGS: Readonly<Record<string, number>> = { POSIX: 1, FLOCK: 2, OFDLCK: 4, LEASE: 8 };
const POSIX = 1;
const FLOCK = 2;
const OFD = 4;
const LEASE = 8;

/** Added to the type of a lease that is being broken: the type is then what it is broken to. */
const LEASE_BREAKING = 4;

/** The locks of a tree, gathered descriptor by descriptor. */
export class LockTable {
  readonly #isAllowed: boolean;
  readonly #locks = new Map<string, FileLockEntry>();

  /** Without `isAllowed` (--file-locks) the first lock is an error. */
  constructor({ isAllowed }: { readonly isAllowed: boolean }) {
    this.#isAllowed = isAllowed;
  }

  /**
   * Takes the locks that `file`, whose id in files.img is `id`, shows.
   *
   * @throws RepriseError UNSUPPORTED without permission for locks, or for a kind of lock that cannot be saved.
   */
  add(file: OpenFile, id: number): void {
    for (const lock of file.info.locks) {
      if (!this.#isAllowed) throw refused(file, lock);
      const key = lockKey(file, lock, id);
      // Several tasks may have a lock's open file: the one that locked it is its holder, where it still is there.
      if (this.#locks.has(key) && lock.pid !== processNumber(file.task)) continue;
      this.#locks.set(key, lockEntry(file, lock));
    }
  }

  entries(): FileLockEntry[] {
    return [...this.#locks.values()];
  }
}

function refused({ task, fd, target }: OpenFile, { kind, access }: LockLine): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${fd} of pid ${task.pid} (${target}): it holds a file lock (${kind} ${access})`,
    {
      pid: task.pid,
      fd,
      hint: "Locks must be taken again at restore, when others may have them: allow it with --file-locks, or release the lock.",
    },
  );
}

/** POSIX locks are a process's, whichever of its descriptors shows them; the others are the description's. */
function lockKey({ task }: OpenFile, { kind, start, end }: LockLine, id: number): string {
  const owner = kind === "POSIX" ? task.pid : "";
  return `${kind}:${owner}:${id}:${start}:${end}`;
}

function lockEntry(file: OpenFile, lock: LockLine): FileLockEntry {
  const { task, fd, target } = file;
  const flag = KIND_FLAGS[lock.kind];
  if (flag === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump fd ${fd} of pid ${task.pid} (${target}): it holds a lock of kind ${lock.kind}`,
      { pid: task.pid, fd, hint: "Let the process release it before the dump." },
    );
  }
  const isBreaking = flag === LEASE && lock.mode === "BREAKING";
  return {
    flag,
    type: typeOf(lock.access) + (isBreaking ? LEASE_BREAKING : 0),
    pid: task.innerPid,
    fd,
    start: lock.start,
    len: lock.end === "EOF" ? 0n : lock.end - lock.start + 1n,
  };
}

function typeOf(access: string): number {
  if (access === "READ") return F_RDLCK;
  return access === "WRITE" ? F_WRLCK : F_UNLCK;
}

/** What restoring the locks of a task needs. */
export interface LockSurroundings {
  /** Whether locks are wanted at all (--file-locks). */
  readonly isAllowed: boolean;
  /** The entry of files.img behind a descriptor of the task. */
  file(fd: number): FileEntry | undefined;
}

/**
 * Adds the calls that take the locks of one table of descriptors again, in a task that has it, as root. Other descriptors
 * of the same files must not be closed in that task afterwards.
 */
export function restoreLocks(
  program: Program,
  locks: readonly FileLockEntry[],
  around: LockSurroundings,
): void {
  if (locks.length === 0) return;
  if (!around.isAllowed) {
    log.warn(`${locks.length} file locks are not restored: --file-locks was not given`);
    return;
  }
  for (const lock of locks) {
    if (lock.flag === LEASE) restoreLease(program, lock, around.file(lock.fd));
    else restoreLock(program, lock);
  }
}

function restoreLock(program: Program, lock: FileLockEntry): void {
  const { flag, type, pid, fd } = lock;
  const how = {
    label: `lock fd ${fd} of pid ${pid} again`,
    hint: "Another process may have locked the file since the dump.",
  };
  switch (flag) {
    case FLOCK:
      program.call("flock", [fd, (type === F_RDLCK ? LOCK_SH : LOCK_EX) | LOCK_NB], how);
      break;
    case POSIX:
    case OFD: {
      const command = flag === OFD ? F_OFD_SETLK : F_SETLK;
      program.call("fcntl", [fd, command, program.data(flockBytes(lock))], how);
      break;
    }
    default:
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore a lock on fd ${fd} of pid ${pid}: it is of kind ${flag}`,
        { pid, fd },
      );
  }
}

/** struct flock. */
function flockBytes({ type, start, len }: FileLockEntry): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeInt16LE(type, 0);
  bytes.writeInt16LE(SEEK_SET, 2);
  bytes.writeBigInt64LE(BigInt.asIntN(64, start), 8);
  bytes.writeBigInt64LE(BigInt.asIntN(64, len), 16);
  return bytes;
}

function restoreLease(program: Program, lock: FileLockEntry, file: FileEntry | undefined): void {
  const { pid, fd } = lock;
  const how = {
    label: `take the lease on fd ${fd} of pid ${pid} again`,
    hint: "Another process may have opened the file since the dump.",
  };
  const target = lock.type & ~LEASE_BREAKING;
  if ((lock.type & LEASE_BREAKING) === 0) {
    program.call("fcntl", [fd, F_SETLEASE, target], how);
    if (file !== undefined && !needsOwner(file)) leaveToNobody(program, fd, how);
    return;
  }
  const isReader = ((file?.reg?.flags ?? 0) & O_ACCMODE) === O_RDONLY;
  const before = target === F_UNLCK && isReader ? F_RDLCK : F_WRLCK;
  program.call("fcntl", [fd, F_SETLEASE, before], how);
  leaveToNobody(program, fd, how);
  program.call(
    "openat",
    [
      AT_FDCWD,
      program.string(`/proc/self/fd/${fd}`),
      (target === F_UNLCK ? O_WRONLY : O_RDONLY) | O_NONBLOCK,
      0,
    ],
    { label: `break the lease on fd ${fd} of pid ${pid} again`, expect: -EAGAIN, mayFail: true },
  );
  if (file !== undefined) settleOwner(program, file, fd);
}

/** A lease makes the task the file's signal owner, if it has none: without an owner nobody is told. */
function leaveToNobody(
  program: Program,
  fd: number,
  how: { readonly label: string; readonly hint: string },
): void {
  const nobody = Buffer.alloc(8);
  nobody.writeInt32LE(F_OWNER_PID, 0);
  program.call("fcntl", [fd, F_SETOWN_EX, program.data(nobody)], how);
}
