// pidfd: a handle of a process, see pidfd_open(2) and fs/pidfs.c. It can be made only when its process is there, so the
// descriptor is opened on /dev/null first and replaced in every task that holds it, when the tree stands: each holder
// gets a description of its own then. All state besides the process is O_NONBLOCK.

import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type PidfdEntry,
} from "../../images/schema/messages.generated.ts";
import { PIDFD_THREAD } from "../../sys/abi/event-files.ts";
import { AT_FDCWD, F_GETFD, F_SETFD, O_CLOEXEC, O_NONBLOCK, O_RDWR } from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
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

/** What fdinfo and the image say of a process that is no more. */
const DEAD = -1;

function writePidfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const flags = file.info.flags & ~O_CLOEXEC;
  if ((flags & PIDFD_THREAD) !== 0) {
    throw refused(
      file,
      "it stands for a thread",
      "Only pidfds of processes can be saved (opened without PIDFD_THREAD).",
    );
  }
  const pid = file.info.pidfd?.pid ?? -1;
  // Ended and waited for.
  const nspid = pid === DEAD ? DEAD : pid > 0 ? dump.innerPid(pid) : undefined;
  if (nspid === undefined) {
    const who = pid > 0 ? `process ${pid}` : "a process of another pid namespace";
    throw refused(
      file,
      `it stands for ${who}, which is not in the tree`,
      "Dump a tree that contains that process, or have the program close the pidfd.",
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
  const fd = program.call("pidfd_open", [process, pidfd.flags & O_NONBLOCK], {
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
  return program.call("openat", [AT_FDCWD, program.string("/dev/null"), O_RDWR, 0], {
    label: `open a stand-in for pidfd ${id}`,
  });
}

/** Runs for every descriptor; whether it is close-on-exec stays as the engine set it. */
function openPidfd(program: Program, { id, pidfd }: FileEntry, fd: number): void {
  assert(pidfd !== undefined, `file ${id} is no pidfd`);
  if (pidfd.nspid === DEAD) return;
  const descriptorFlags = program.call("fcntl", [fd, F_GETFD, 0]);
  const made = program.call("pidfd_open", [pidfd.nspid, pidfd.flags & O_NONBLOCK], {
    label: `open a pidfd of pid ${pidfd.nspid} for fd ${fd}`,
  });
  program.call("dup3", [made, fd, 0]);
  program.call("close", [made]);
  program.call("fcntl", [fd, F_SETFD, descriptorFlags]);
}

function refused({ task, fd }: OpenFile, why: string, hint: string): RepriseError {
  const message = `cannot dump pidfd ${fd} of pid ${task.pid}: ${why}`;
  return new RepriseError("UNSUPPORTED", message, { pid: task.pid, fd, hint });
}
