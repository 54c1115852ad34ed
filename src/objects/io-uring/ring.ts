// io_uring(7): a ring of requests and one of completions in memory that a program shares with the kernel. A ring at rest (no request
// under way) is made again with its memory and its counters; context.ts tells how it is. The kernel's own memory for a ring can be mapped
// only where the kernel likes (io_uring_get_unmapped_area), so a restored ring lives in a memory file of ours, given to it with
// IORING_SETUP_NO_MMAP, which tasks map at the old addresses: the offsets in that file are those by which the program mapped the ring.
//
// CRIU has no such kind: it refuses the dump, and a set with a ring has a file of kind EXT (for a plugin), with a message of ours.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RepriseIoUringEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { F_SETFL, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { syscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "../files/file-kind.ts";
import { readOwner, restoreOwner } from "../files/owner.ts";
import { lookAtRing, type RingContext } from "./context.ts";
import { bringToState } from "./counters.ts";
import { kernelMemory, MEMORY_NAME, RING_LINK } from "./ring-memory.ts";

export const ioUringKind: FileKind = {
  name: "io_uring ring",
  type: FdTypes.EXT,
  recognise: ({ target }) => target === RING_LINK,
  write: writeRing,
  open: openRing,
  mapped: (_program, { id }, restore) => memoryOf(id, restore),
};

/** Ways of setting up that a new ring can have as well, made by any task. */
const KEPT_FLAGS =
  uring.IORING_SETUP_IOPOLL |
  uring.IORING_SETUP_SUBMIT_ALL |
  uring.IORING_SETUP_COOP_TASKRUN |
  uring.IORING_SETUP_TASKRUN_FLAG |
  uring.IORING_SETUP_SQE128 |
  uring.IORING_SETUP_CQE32 |
  uring.IORING_SETUP_NO_SQARRAY;
/** What is another way to the same ring. */
const IGNORED_FLAGS =
  uring.IORING_SETUP_CQSIZE | uring.IORING_SETUP_CLAMP | uring.IORING_SETUP_NO_MMAP;

/** The flags that make a ring that only some task can use, or somebody else empties. */
const NAMED_FLAGS: readonly (readonly [number, string])[] = [
  [
    uring.IORING_SETUP_SQPOLL,
    "a thread of the kernel that takes its requests (IORING_SETUP_SQPOLL)",
  ],
  [uring.IORING_SETUP_DEFER_TASKRUN, "one thread that may use it (IORING_SETUP_DEFER_TASKRUN)"],
  [uring.IORING_SETUP_SINGLE_ISSUER, "one thread that may use it (IORING_SETUP_SINGLE_ISSUER)"],
  [uring.IORING_SETUP_R_DISABLED, "not been enabled yet (IORING_SETUP_R_DISABLED)"],
];

/** A restore that takes longer is announced: so many requests are made again in a second or two. */
const MANY_REQUESTS = 10_000_000;

function writeRing(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const ring = look(file, dump);
  const flags = ring.flags & ~IGNORED_FLAGS;
  refuse(file, ring, flags);
  const requests = Math.max(ring.sqHead, ring.cqTail);
  if (requests > MANY_REQUESTS) {
    log.warn(
      `fd ${file.fd} of pid ${file.task.pid} (${file.target}): a restore brings its counters to ${requests} by as many empty requests, some seconds for ten millions`,
    );
  }
  const offsets = offsetsOf({
    setup_flags: flags,
    sq_entries: ring.sqEntries,
    cq_entries: ring.cqEntries,
  });
  const reprise_io_uring: RepriseIoUringEntry = {
    id,
    flags: file.info.flags & ~O_CLOEXEC,
    setup_flags: flags,
    sq_entries: ring.sqEntries,
    cq_entries: ring.cqEntries,
    sq_head: ring.sqHead,
    cq_tail: ring.cqTail,
    ...offsets,
    ...(ring.drainDisabled ? { drain_disabled: true } : {}),
    rings_size: ring.rings.length,
    entries_size: ring.entries.length,
    rings: withoutZeros(ring.rings),
    entries: withoutZeros(ring.entries),
  };
  checkQueues(file, reprise_io_uring);
  return { type: FdTypes.EXT, id, ext: { id, fown: readOwner(file, dump) }, reprise_io_uring };
}

function look(file: OpenFile, dump: FilesDump): RingContext {
  try {
    const ring = lookAtRing(dump.borrow(file), kernelMemory(dump));
    if (ring !== undefined) return ring;
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    throw refusal(file, `it cannot be looked into: ${error.message}`, error.hint ?? WITHOUT_RINGS);
  }
  throw refusal(file, "requests come to their end while it is looked at", BUSY);
}

const BUSY =
  "Dump when the program waits for nothing by this ring, or start it so that it has none: with kernel.io_uring_disabled=2 most programs use epoll instead (Node: UV_USE_IO_URING=0).";
const WITHOUT_RINGS =
  "Let the process close its rings before the dump, or start it so that it has none: with kernel.io_uring_disabled=2 most programs use epoll instead (Node: UV_USE_IO_URING=0).";

function refuse(file: OpenFile, ring: RingContext, flags: number): void {
  if (ring.inFlight > 0) {
    const what = ring.inFlight === 1 ? "1 request is" : `${ring.inFlight} requests are`;
    throw refusal(file, `${what} under way`, BUSY);
  }
  const named = NAMED_FLAGS.find(([flag]) => (flags & flag) !== 0);
  if (named !== undefined) throw refusal(file, `it has ${named[1]}`, WITHOUT_RINGS);
  const others = flags & ~KEPT_FLAGS;
  if (others !== 0)
    throw refusal(file, `it was set up with flags 0x${others.toString(16)}`, WITHOUT_RINGS);
  const [extra] = ring.extras;
  if (extra !== undefined) throw refusal(file, `it has ${extra}`, WITHOUT_RINGS);
  if (ring.memory !== undefined && ring.memory.name !== `memfd:${MEMORY_NAME}`)
    throw refusal(file, "its memory is the program's own (IORING_SETUP_NO_MMAP)", WITHOUT_RINGS);
}

/** The words that the program writes may be anything; the kernel's must be what it counts itself. */
function checkQueues(file: OpenFile, ring: RepriseIoUringEntry): void {
  const [sq, cq] = [Buffer.from(ring.sq_off), Buffer.from(ring.cq_off)];
  const rings = fullBytes(ring.rings, ring.rings_size);
  const word = (offsets: Buffer, at: number): number =>
    rings.readUInt32LE(offsets.readUInt32LE(at));
  const waiting = (ring.cq_tail - word(cq, uring.CQ_OFF_HEAD)) >>> 0;
  const isSound =
    word(sq, uring.SQ_OFF_HEAD) === ring.sq_head &&
    word(cq, uring.CQ_OFF_TAIL) === ring.cq_tail &&
    waiting <= ring.cq_entries;
  if (!isSound) throw refusal(file, "its queues are not as the kernel has them", WITHOUT_RINGS);
}

function refusal({ task, fd, target }: OpenFile, why: string, hint: string): RepriseError {
  const where = fd < 0 ? `a file of pid ${task.pid}` : `fd ${fd} of pid ${task.pid}`;
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump ${where} (${target}): an io_uring ring: ${why}`,
    { pid: task.pid, ...(fd < 0 ? {} : { fd }), hint },
  );
}

/** Where everything lies in the memory of such a ring, which the kernel tells who makes one. */
function offsetsOf(
  ring: Pick<RepriseIoUringEntry, "setup_flags" | "sq_entries" | "cq_entries">,
): Pick<RepriseIoUringEntry, "sq_off" | "cq_off"> {
  const params = paramsOf(ring, 0);
  closeSync(syscall("io_uring_setup", ring.sq_entries, params));
  const part = (start: number): Buffer => params.subarray(start, start + uring.OFFSETS_USER_ADDR);
  return { sq_off: part(uring.PARAMS_SQ_OFF), cq_off: part(uring.PARAMS_CQ_OFF) };
}

function paramsOf(
  ring: Pick<RepriseIoUringEntry, "setup_flags" | "sq_entries" | "cq_entries">,
  more: number,
): Buffer {
  const params = Buffer.alloc(uring.PARAMS_SIZE);
  params.writeUInt32LE(ring.cq_entries, uring.PARAMS_CQ_ENTRIES);
  params.writeUInt32LE(ring.setup_flags | uring.IORING_SETUP_CQSIZE | more, uring.PARAMS_FLAGS);
  return params;
}

function withoutZeros(bytes: Buffer): Buffer {
  let length = bytes.length;
  while (length > 0 && bytes[length - 1] === 0) length -= 1;
  return bytes.subarray(0, length);
}

function fullBytes(bytes: Uint8Array, size: number): Buffer {
  const full = Buffer.alloc(size);
  full.set(bytes.subarray(0, size));
  return full;
}

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
  checkEntry(id, ring);
  const label = `make io_uring ring ${id}`;
  const hint =
    "Rings may be forbidden here (kernel.io_uring_disabled), or a seccomp filter of the container forbid them.";
  const memory = memoryOf(id, restore);
  const made = program.call("memfd_create", [program.string(MEMORY_NAME), MFD_CLOEXEC], { label });
  program.call("dup3", [made, memory, O_CLOEXEC], { label });
  program.call("close", [made], { label });
  const size = uring.IORING_OFF_SQES + ring.entries_size;
  program.call("ftruncate", [memory, size], { label });
  const access = PROT_READ | PROT_WRITE;
  const rings = program.call("mmap", [0, ring.rings_size, access, MAP_SHARED, memory, 0], {
    label,
  });
  const entries = program.call(
    "mmap",
    [0, ring.entries_size, access, MAP_SHARED, memory, uring.IORING_OFF_SQES],
    { label },
  );
  const params = program.data(paramsOf(ring, uring.IORING_SETUP_NO_MMAP));
  const address = (at: number): typeof params => ({
    ...params,
    offset: params.offset + at + uring.OFFSETS_USER_ADDR,
  });
  program.copy(rings, address(uring.PARAMS_CQ_OFF));
  program.copy(entries, address(uring.PARAMS_SQ_OFF));
  const fd = program.call("io_uring_setup", [ring.sq_entries, params], { label, hint });
  program.call("munmap", [rings, ring.rings_size], { label });
  program.call("munmap", [entries, ring.entries_size], { label });
  if ((ring.flags & O_NONBLOCK) !== 0) program.call("fcntl", [fd, F_SETFL, O_NONBLOCK], { label });
  if (ext !== undefined) restoreOwner(program, ext.fown, fd);
  restore.inEngine((copies) =>
    bringToState(ring, { id, fd: copies.file(id), memory: copies.reserved(memory) }),
  );
  return fd;
}

/** A ring of another layout would be of no use to the program, which has the offsets in its memory. */
function checkEntry(id: number, ring: RepriseIoUringEntry): void {
  const refused = (why: string, code: "BAD_IMAGE" | "KERNEL_FEATURE"): RepriseError =>
    new RepriseError(code, `cannot restore io_uring ring ${id}: ${why}`);
  if ((ring.setup_flags & ~KEPT_FLAGS) !== 0)
    throw refused(`it has flags 0x${ring.setup_flags.toString(16)}`, "BAD_IMAGE");
  const here = offsetsOf(ring);
  const isSame = (["sq_off", "cq_off"] as const).every(
    (name) => Buffer.compare(here[name], ring[name]) === 0,
  );
  if (!isSame) throw refused("this kernel lays out rings in another way", "KERNEL_FEATURE");
}
