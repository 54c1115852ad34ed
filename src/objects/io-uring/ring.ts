// io_uring(7): a ring of requests and one of completions in memory that a program shares with the kernel. A ring at rest (no request
// under way) is made again with its memory and its counters; context.ts tells how it is. The kernel's own memory for a ring can be mapped
// only where the kernel likes (io_uring_get_unmapped_area), so a restored ring lives in a memory file of ours, given to it with
// IORING_SETUP_NO_MMAP, which tasks map at the old addresses: the offsets in that file are those by which the program mapped the ring.
//
// Any task can make an ordinary ring. One that belongs to a process (whose thread of the kernel serves it) or to a thread is made by
// that at the end (owned-ring.ts), as is what is registered with a ring.
//
// CRIU has no such kind: it refuses the dump, and a set with a ring has a file of kind EXT (for a plugin), with a message of ours.

import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RepriseIoUringEntry,
} from "../../images/schema/messages.generated.ts";
import { F_DUPFD, F_SETFL, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import type { FileKind, FilesRestore } from "../files/file-kind.ts";
import { restoreOwner } from "../files/owner.ts";
import { bringToState } from "./counters.ts";
import { isMadeByOwner, KEPT_FLAGS, offsetsOf, paramsOf } from "./layout.ts";
import { noteMemory } from "./owned-ring.ts";
import { MEMORY_NAME, RING_LINK } from "./ring-memory.ts";
import { writeRing } from "./save-ring.ts";

export const ioUringKind: FileKind = {
  name: "io_uring ring",
  type: FdTypes.EXT,
  recognise: ({ target }) => target === RING_LINK,
  write: writeRing,
  open: openRing,
  mapped: (_program, { id }, restore) => memoryOf(id, restore),
};

/** Descriptors, in all tasks, of the memory of rings, by the rings' ids. */
const memories = new WeakMap<FilesRestore, Map<number, number>>();

function memoryOf(id: number, restore: FilesRestore): number {
  const known = memories.get(restore) ?? new Map<number, number>();
  memories.set(restore, known);
  const fd = known.get(id) ?? restore.reserve();
  known.set(id, fd);
  return fd;
}

function openRing(program: Program, entry: FileEntry, restore: FilesRestore): Argument {
  const { id, ext, reprise_io_uring: ring } = entry;
  if (ring === undefined) {
    throw new RepriseError("UNSUPPORTED", `cannot restore file ${id}: it was saved by a plugin`, {
      hint: "The image set comes from an engine with plugins; restore it there.",
    });
  }
  checkEntry(ring);
  const memory = makeMemory(program, ring, restore);
  if (ring.owner !== undefined)
    restore.inEngine((copies) => noteMemory(ring, copies.reserved(memory)));
  if (isMadeByOwner(ring)) {
    return program.call("fcntl", [memory, F_DUPFD, 0], {
      label: `stand in for io_uring ring ${id}`,
    });
  }
  const fd = makeRing(program, ring, memory);
  if (ext !== undefined) restoreOwner(program, ext.fown, fd);
  restore.inEngine((copies) =>
    bringToState(ring, { fd: copies.file(id), memory: copies.reserved(memory) }),
  );
  return fd;
}

function makeMemory(program: Program, ring: RepriseIoUringEntry, restore: FilesRestore): number {
  const label = `make the memory of io_uring ring ${ring.id}`;
  const memory = memoryOf(ring.id, restore);
  const made = program.call("memfd_create", [program.string(MEMORY_NAME), MFD_CLOEXEC], { label });
  program.call("dup3", [made, memory, O_CLOEXEC], { label });
  program.call("close", [made], { label });
  program.call("ftruncate", [memory, uring.IORING_OFF_SQES + ring.entries_size], { label });
  return memory;
}

function makeRing(program: Program, ring: RepriseIoUringEntry, memory: number): Argument {
  const label = `make io_uring ring ${ring.id}`;
  const access = PROT_READ | PROT_WRITE;
  const map = (length: number, offset: number): Ref =>
    program.call("mmap", [0, length, access, MAP_SHARED, memory, offset], { label });
  const rings = map(ring.rings_size, 0);
  const entries = map(ring.entries_size, uring.IORING_OFF_SQES);
  const params = program.data(paramsOf(ring, uring.IORING_SETUP_NO_MMAP));
  const address = (at: number): typeof params => ({
    ...params,
    offset: params.offset + at + uring.OFFSETS_USER_ADDR,
  });
  program.copy(rings, address(uring.PARAMS_CQ_OFF));
  program.copy(entries, address(uring.PARAMS_SQ_OFF));
  const fd = program.call("io_uring_setup", [ring.sq_entries, params], { label, hint: FORBIDDEN });
  program.call("munmap", [rings, ring.rings_size], { label });
  program.call("munmap", [entries, ring.entries_size], { label });
  if ((ring.flags & O_NONBLOCK) !== 0) program.call("fcntl", [fd, F_SETFL, O_NONBLOCK], { label });
  return fd;
}

const FORBIDDEN =
  "Rings may be forbidden here (kernel.io_uring_disabled), or a seccomp filter of the container forbid them.";

/** A ring of another layout would be of no use to the program, which has the offsets in its memory. */
function checkEntry(ring: RepriseIoUringEntry): void {
  const refused = (why: string, code: "BAD_IMAGE" | "KERNEL_FEATURE"): RepriseError =>
    new RepriseError(code, `cannot restore io_uring ring ${ring.id}: ${why}`);
  if ((ring.setup_flags & ~KEPT_FLAGS) !== 0)
    throw refused(`it has flags 0x${ring.setup_flags.toString(16)}`, "BAD_IMAGE");
  const here = offsetsOf(ring);
  const isSame = (["sq_off", "cq_off"] as const).every(
    (name) => Buffer.compare(here[name], ring[name]) === 0,
  );
  if (!isSame) throw refused("this kernel lays out rings in another way", "KERNEL_FEATURE");
}
