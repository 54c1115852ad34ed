// eventfd: a 64-bit counter, see eventfd(2) and fs/eventfd.c. fdinfo tells all of it (from Linux 6.5 on also EFD_SEMAPHORE,
// which CRIU's images have no field for: ours is an extension that criu skips).

import { FdTypes, type FileEntry } from "../../images/schema/messages.generated.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { EFD_SEMAPHORE } from "../../sys/abi/event-files.ts";
import { assert } from "../../errors.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, OpenFile } from "./file-kind.ts";

export const eventfdKind: FileKind = {
  name: "eventfd",
  type: FdTypes.EVENTFD,
  recognise: ({ info }) => info.eventfd !== undefined,
  write: writeEventfd,
  open: openEventfd,
};

/** The counter's largest value that write(2) reaches; only the kernel's own users (aio) come to 2^64-1. */
const COUNTER_MAX = 0xffff_ffff_ffff_fffen;
/** What fits into eventfd2's own argument. */
const INITIAL_MAX = 0xffff_ffffn;

function writeEventfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const { eventfd, flags } = file.info;
  assert(eventfd !== undefined, `fd ${file.fd} of pid ${file.task.pid} is no eventfd`);
  return {
    type: FdTypes.EVENTFD,
    id,
    efd: {
      id,
      flags: flags & ~O_CLOEXEC,
      fown: readOwner(file, dump),
      counter: eventfd.count,
      ...(eventfd.semaphore === true ? { semaphore: true } : {}),
    },
  };
}

function openEventfd(program: Program, { id, efd }: FileEntry): Argument {
  assert(efd !== undefined, `file ${id} is no eventfd`);
  const direct = efd.counter <= INITIAL_MAX;
  const flags = (efd.flags & O_NONBLOCK) | (efd.semaphore === true ? EFD_SEMAPHORE : 0);
  const fd = program.call("eventfd2", [direct ? efd.counter : 0, flags], {
    label: `make eventfd ${id}`,
  });
  if (!direct) {
    const counter = Buffer.alloc(8);
    counter.writeBigUInt64LE(efd.counter < COUNTER_MAX ? efd.counter : COUNTER_MAX);
    program.call("write", [fd, program.data(counter), counter.length], {
      label: `set the counter of eventfd ${id}`,
    });
  }
  restoreOwner(program, efd.fown, fd);
  return fd;
}
