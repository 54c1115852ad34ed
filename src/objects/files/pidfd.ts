// pidfd: a handle of a process or of a thread, see pidfd_open(2) and fs/pidfs.c. It can be made only when that is there, so the
// descriptor is opened on /dev/null first and replaced in the task that holds it, when the tree stands, or all of its threads do.
// All state besides is O_NONBLOCK. CRIU has no pidfds of threads.

import { closeSync } from "node:fs";
import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type PidfdEntry,
} from "../../images/schema/messages.generated.ts";
import { PIDFD_THREAD } from "../../sys/abi/event-files.ts";
import { AT_FDCWD, F_GETFD, F_SETFD, O_CLOEXEC, O_NONBLOCK, O_RDWR } from "../../sys/abi/fcntl.ts";
import { SCM_RIGHTS, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { syscall, syscallError } from "../../sys/ffi.ts";
import { encodeControl, sendMessage } from "../../sys/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { isHeldTwice, makeCarrier, takeCarried } from "./carrier.ts";
import { processForPidfd } from "./dead-process.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";

export const pidfdKind: FileKind = {
  name: "pidfd",
  type: FdTypes.PIDFD,
  recognise: ({ target }) => target === "anon_inode:[pidfd]" || target.startsWith("pidfd:"),
  write: writePidfd,
  open: openPlaceholder,
  settle: openPidfd,
  settleEach: true,
};

const KEPT_FLAGS = O_NONBLOCK | PIDFD_THREAD;

/** Whether a file is a handle of a thread, which can be made only when the threads are there. */
export function isThreadPidfd({ pidfd }: FileEntry): boolean {
  return pidfd !== undefined && pidfd.nspid !== DEAD && (pidfd.flags & PIDFD_THREAD) !== 0;
}

/** What fdinfo and the image say of a process that is no more. */
const DEAD = -1;

function writePidfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const flags = file.info.flags & ~O_CLOEXEC;
  const what = (flags & PIDFD_THREAD) === 0 ? "process" : "thread";
  const pid = file.info.pidfd?.pid ?? -1;
  const inner = what === "process" ? dump.innerPid(pid) : dump.innerThread?.(pid);
  // Ended and waited for.
  const nspid = pid === DEAD ? DEAD : pid > 0 ? inner : undefined;
  if (nspid === undefined) {
    const who = pid > 0 ? `${what} ${pid}` : `a ${what} of another pid namespace`;
    throw refused(
      file,
      `it stands for ${who}, which is not in the tree`,
      `Dump a tree that contains that ${what}, or have the program close the pidfd.`,
    );
  }
  // The image's field has 32 bits; it only tells equal dead processes.
  const ino = Number(BigInt.asUintN(32, file.stat.inode));
  const pidfd = { id, ino, flags: flags & ~O_RDWR, nspid, fown: readOwner(file, dump) };
  return { type: FdTypes.PIDFD, id, pidfd };
}

/** A pidfd outlives its process: those of one dead process have one inode number. */
function openDead(program: Program, pidfd: PidfdEntry, restore: FilesRestore): Argument {
  const process = processForPidfd(program, pidfd.ino, restore);
  const fd = program.call("pidfd_open", [process, pidfd.flags & KEPT_FLAGS], {
    label: `open pidfd ${pidfd.id} of a dead process`,
  });
  restoreOwner(program, pidfd.fown, fd);
  return fd;
}

function openPlaceholder(
  program: Program,
  { id, pidfd }: FileEntry,
  restore: FilesRestore,
): Argument {
  assert(pidfd !== undefined, `file ${id} is no pidfd`);
  if (pidfd.nspid === DEAD) return openDead(program, pidfd, restore);
  if (isHeldTwice(id, restore)) return openCarrier(program, pidfd, restore);
  return program.call("openat", [AT_FDCWD, program.string("/dev/null"), O_RDWR, 0], {
    label: `open a stand-in for pidfd ${id}`,
  });
}

/** The engine sends the pidfd. */
function openCarrier(program: Program, pidfd: PidfdEntry, restore: FilesRestore): Argument {
  const { id, nspid } = pidfd;
  const { fd, sender } = makeCarrier(program, `pidfd ${id}`, restore);
  const isThread = (pidfd.flags & PIDFD_THREAD) !== 0;
  restore.whenThere(isThread ? "threads" : "tasks", ({ copies, outerTid }) => {
    const made = syscall("pidfd_open", outerTid(nspid) ?? nspid, pidfd.flags & KEPT_FLAGS);
    try {
      const data = Buffer.alloc(4);
      data.writeInt32LE(made);
      const control = encodeControl({ level: SOL_SOCKET, type: SCM_RIGHTS, data });
      const sent = sendMessage(copies.reserved(sender), Buffer.alloc(1), { control });
      if (sent < 0) throw syscallError("sendmsg", -sent, `give pidfd ${id} to its holders`);
    } finally {
      closeSync(made);
    }
  });
  return fd;
}

/** Whether a file is a handle of a process or thread of the tree. */
export function isLivePidfd({ pidfd }: FileEntry): boolean {
  return pidfd !== undefined && pidfd.nspid !== DEAD;
}

/** Runs for every descriptor; whether it is close-on-exec stays as the engine set it. */
function openPidfd(program: Program, entry: FileEntry, fd: number, restore: FilesRestore): void {
  const { id, pidfd } = entry;
  assert(pidfd !== undefined, `file ${id} is no pidfd`);
  if (pidfd.nspid === DEAD) return;
  const descriptorFlags = program.call("fcntl", [fd, F_GETFD, 0]);
  const label = `open a pidfd of ${isThreadPidfd(entry) ? "thread" : "pid"} ${pidfd.nspid} for fd ${fd}`;
  const made = isHeldTwice(id, restore)
    ? takeCarried(program, fd, label)
    : program.call("pidfd_open", [pidfd.nspid, pidfd.flags & KEPT_FLAGS], { label });
  program.call("dup3", [made, fd, 0]);
  program.call("close", [made]);
  program.call("fcntl", [fd, F_SETFD, descriptorFlags]);
  restoreOwner(program, pidfd.fown, fd);
}

function refused({ task, fd }: OpenFile, why: string, hint: string): RepriseError {
  const message = `cannot dump pidfd ${fd} of pid ${task.pid}: ${why}`;
  return new RepriseError("UNSUPPORTED", message, { pid: task.pid, fd, hint });
}
