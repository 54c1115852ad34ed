// signalfd: a set of signals to read, see signalfd(2) and fs/signalfd.c. The signals themselves stay pending in the task
// and belong to it: the file is only the set.

import { FdTypes, type FileEntry } from "../../images/schema/messages.generated.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { SIGSET_SIZE } from "../../sys/abi/signal.ts";
import { assert } from "../../errors.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, OpenFile } from "./file-kind.ts";

export const signalfdKind: FileKind = {
  name: "signalfd",
  type: FdTypes.SIGNALFD,
  recognise: ({ info }) => info.sigmask !== undefined,
  write: writeSignalfd,
  open: openSignalfd,
};

function writeSignalfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const { sigmask, flags } = file.info;
  assert(sigmask !== undefined, `fd ${file.fd} of pid ${file.task.pid} is no signalfd`);
  const sgfd = { id, flags: flags & ~O_CLOEXEC, fown: readOwner(file, dump), sigmask };
  return { type: FdTypes.SIGNALFD, id, sgfd };
}

function openSignalfd(program: Program, { id, sgfd }: FileEntry): Argument {
  assert(sgfd !== undefined, `file ${id} is no signalfd`);
  const set = Buffer.alloc(SIGSET_SIZE);
  set.writeBigUInt64LE(sgfd.sigmask);
  const args = [-1, program.data(set), SIGSET_SIZE, sgfd.flags & O_NONBLOCK];
  const fd = program.call("signalfd4", args, { label: `make signalfd ${id}` });
  restoreOwner(program, sgfd.fown, fd);
  return fd;
}
