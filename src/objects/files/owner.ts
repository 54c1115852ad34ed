// Who is told by a signal that a file is ready: F_SETOWN, F_SETSIG, O_ASYNC; see fcntl(2), "Managing signals", and
// fs/fcntl.c. The kernel keeps it for each open file description, with the credentials of who set it. The owner must
// exist when it is set, so at restore it comes after the tree, in `settle`.

import type { FileEntry, FownEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import {
  F_GETOWN_EX,
  F_OWNER_TID,
  F_GETOWNER_UIDS,
  F_GETSIG,
  F_SETFL,
  F_SETOWN_EX,
  F_SETSIG,
  O_PATH,
} from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { assert } from "../../errors.ts";
import { mayBecomeOthers, openPidfd } from "../../sys/process.ts";
import type { Argument, Pointer, Program, Ref } from "../../tracee/program.ts";
import { Survey } from "../../tracee/survey.ts";
import type { FilesDump, OpenFile } from "./file-kind.ts";
import { idsInside } from "../namespaces/user.ts";

/** fown_entry of a file without an owner. */
export const NO_OWNER: FownEntry = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };

/** O_ASYNC, which open(2) takes but does not act on: it must be set by F_SETFL. */
export const O_ASYNC = 0o20000;

/** The id 0xffffffff leaves a user id as it is. */
const KEEP_ID = 0xffff_ffff;

/** Whether an open file has an owner, or a signal of its own. */
export function hasOwner(file: OpenFile, dump: Pick<FilesDump, "borrow">): boolean {
  const fd = dump.borrow(file);
  if (trySyscall("fcntl", fd, F_GETSIG, 0) > 0) return true;
  const owned =
    trySyscall("fcntl", fd, F_GETOWN_EX, ownerBuffer) === 0 && ownerBuffer.readInt32LE(4) !== 0;
  if (!owned) ownerless.add(file);
  return owned;
}

/** The engine's copy of a descriptor, and whether its file has an owner, or a signal of its own. */
export interface OwnerLook {
  readonly copy: number;
  readonly isOwned: boolean;
}

/** Copies descriptors of a process, in one call for all, and looks at their owners; those that cannot be copied are left out. */
export function copyWithOwners(pid: number, fds: readonly number[]): Map<number, OwnerLook> {
  const pidfd = openPidfd(pid);
  let copy: Ref | undefined;
  let signal: Ref | undefined;
  let owner: Pointer | undefined;
  using survey = new Survey(fds, (questions) => {
    copy = questions.call("pidfd_getfd", [pidfd, questions.number, 0]);
    signal = questions.call("fcntl", [copy, F_GETSIG, 0]);
    owner = questions.output(OWNER_SIZE);
    questions.call("fcntl", [copy, F_GETOWN_EX, owner]);
  });
  const looks = new Map<number, OwnerLook>();
  try {
    const told = survey.run();
    assert(copy !== undefined && signal !== undefined && owner !== undefined, "they were copied");
    for (let index = 0; index < fds.length; index += 1) {
      const number = told.value(index, copy);
      if (number < 0) continue;
      const isOwned = told.value(index, signal) > 0 || told.word(index, owner, 4) !== 0;
      looks.set(fds[index] as number, { copy: number, isOwned });
    }
    return looks;
  } finally {
    trySyscall("close", pidfd);
  }
}

/** struct f_owner_ex: kind and pid. */
const OWNER_SIZE = 8;

/** Of a file that was found to have neither owner nor signal. */
export function noteOwnerless(file: OpenFile): void {
  ownerless.add(file);
}

/** Files that have just been looked at, and have neither owner nor signal. */
const ownerless = new WeakSet<OpenFile>();

const ownerBuffer = Buffer.alloc(OWNER_SIZE);

/**
 * Signal owner of an open file; all zero when there is none. Pids are those of the root task's namespace. An owner
 * outside of the tree is dropped with a warning.
 *
 * @throws RepriseError SYSCALL
 */
export function readOwner(file: OpenFile, dump: FilesDump): FownEntry {
  if (file.fd < 0 || (file.info.flags & O_PATH) !== 0 || ownerless.has(file)) return NO_OWNER;
  const fd = dump.borrow(file);
  const owner = ownerBuffer;
  // Files of some kinds (and O_PATH ones) have no owner at all.
  const signum = trySyscall("fcntl", fd, F_GETSIG, 0);
  if (signum < 0) return NO_OWNER;
  syscall("fcntl", fd, F_GETOWN_EX, owner);
  const pid = owner.readInt32LE(4);
  if (pid === 0) return signum === 0 ? NO_OWNER : { ...NO_OWNER, signum };
  const isThread = owner.readInt32LE(0) === F_OWNER_TID;
  const inner = dump.innerPid(pid) ?? (isThread ? dump.innerThread?.(pid) : undefined);
  if (inner === undefined) {
    const what = `fd ${file.fd} of pid ${file.task.pid} (${file.target})`;
    log.loss(`${what}: pid ${pid}, which gets its signals, is not in the tree: restored without`);
    return { ...NO_OWNER, signum };
  }
  const uids = Buffer.alloc(8);
  const known = trySyscall("fcntl", fd, F_GETOWNER_UIDS, uids) === 0;
  const idOf = (at: number): number =>
    known ? idsInside(dump.namespaces, { uid: uids.readUInt32LE(at), gid: 0 }).uid : 0;
  return {
    uid: idOf(0),
    euid: idOf(4),
    signum,
    pid_type: owner.readInt32LE(0),
    pid: inner,
  };
}

/** Adds the call that sets the signal itself, which needs no owner yet. */
export function restoreOwner(program: Program, fown: FownEntry, fd: Argument): void {
  if (fown.signum === 0) return;
  program.call("fcntl", [fd, F_SETSIG, fown.signum], {
    label: `set the signal of a file to ${fown.signum}`,
  });
}

/** Adds the calls that set the owner and O_ASYNC, when all tasks are there; for an entry of any kind. */
export function settleOwner(program: Program, entry: FileEntry, fd: number): void {
  const { fown, flags } = ownedPart(entry);
  if (fown !== undefined && fown.pid !== 0) setOwner(program, fown, fd);
  if ((flags & O_ASYNC) === 0) return;
  // F_GETFL's other flags are as open made them; of ours F_SETFL heeds only the few that it may change.
  program.call("fcntl", [fd, F_SETFL, flags], { label: `set O_ASYNC of fd ${fd}` });
}

/** Whether the owner is a thread that is not the first of its process: it comes later. */
export function isOwnedByThread(entry: FileEntry, tasks: ReadonlyMap<number, unknown>): boolean {
  const { fown } = ownedPart(entry);
  return (
    fown !== undefined && fown.pid !== 0 && fown.pid_type === F_OWNER_TID && !tasks.has(fown.pid)
  );
}

/** Whether `settleOwner` adds anything. */
export function needsOwner(entry: FileEntry): boolean {
  const { fown, flags } = ownedPart(entry);
  return (fown !== undefined && fown.pid !== 0) || (flags & O_ASYNC) !== 0;
}

function setOwner(program: Program, fown: FownEntry, fd: number): void {
  const other = mayBecomeOthers() && (fown.uid !== 0 || fown.euid !== 0);
  // The kernel notes who sets the owner. The saved id stays root, so that this can be taken back.
  if (other) {
    program.call("setresuid", [fown.uid, fown.euid, KEEP_ID], {
      label: `become user ${fown.uid} to set the signal owner of fd ${fd}`,
    });
  }
  const owner = Buffer.alloc(8);
  owner.writeInt32LE(fown.pid_type, 0);
  owner.writeInt32LE(fown.pid, 4);
  program.call("fcntl", [fd, F_SETOWN_EX, program.data(owner)], {
    label: `make pid ${fown.pid} the signal owner of fd ${fd}`,
  });
  if (other) program.call("setresuid", [0, 0, KEEP_ID], { label: "become root again" });
}

/** Owner and flags of whatever kind the entry is. */
function ownedPart(entry: FileEntry): { fown: FownEntry | undefined; flags: number } {
  for (const part of Object.values(entry)) {
    if (typeof part !== "object" || part === null || !("fown" in part)) continue;
    return { fown: part.fown, flags: "flags" in part ? part.flags : 0 };
  }
  return { fown: undefined, flags: 0 };
}
