// The last part of a ring's restore, when all tasks have their memory, threads, descriptors and credentials: a ring that belongs to a
// process or thread is made there, from the memory where the program has it, and takes the place of its stand-in; then what is registered
// with a ring: an eventfd, files, buffers.

import { assert, RepriseError } from "../../errors.ts";
import type {
  FdinfoEntry,
  FileEntry,
  RepriseIoUringEntry,
  VmaEntry,
} from "../../images/schema/messages.generated.ts";
import { F_SETFL, FD_CLOEXEC, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { iovecs, writeU64 } from "../../sys/memory.ts";
import { Program } from "../../tracee/program.ts";
import { settleOwner } from "../files/owner.ts";
import { bringToState, RingWindows, takenFirst } from "./counters.ts";
import { isMadeByOwner, paramsOf } from "./layout.ts";
import { bringToStateInThread } from "./thread-counters.ts";

/** The engine's descriptors of the memory of rings that are made last. */
const memories = new WeakMap<RepriseIoUringEntry, number>();

/** Keeps a descriptor of the engine's, which is open until the end of the restore. */
export function noteMemory(ring: RepriseIoUringEntry, memory: number): void {
  memories.set(ring, memory);
}

/** Whether something of a ring is left for the end. */
export function hasOwnerPart({ reprise_io_uring: ring }: FileEntry): boolean {
  return ring?.owner !== undefined;
}

/** A thread that has requests of a ring waiting. */
export interface RequestThread {
  /** A descriptor of the ring in its process. */
  readonly fd: number;
  /** Runs a program in it; `before` gets the address of the program's data. */
  run(program: Program, before: (data: number) => void): void;
}

/**
 * Begins the requests anew that waited. To be done last of all: they may end at once.
 *
 * @throws RepriseError REMOTE_CALL
 */
export function beginRequests(
  { reprise_io_uring: ring }: FileEntry,
  threadOf: (tid: number) => RequestThread,
): void {
  if (ring === undefined || ring.requests.length === 0) return;
  const memory = memories.get(ring);
  assert(memory !== undefined, `the memory of io_uring ring ${ring.id} was not kept`);
  using windows = new RingWindows(ring, memory);
  const { rings, places } = windows;
  const tail = rings.read(places.sqTail);
  let taken = takenFirst(ring);
  for (const batch of batchesOf(ring)) {
    const thread = threadOf(batch[0]?.thread ?? 0);
    const program = new Program();
    const times = batch.map((request) => program.data(timeOf(request)));
    for (let index = 0; index < batch.length; index++) {
      // One by one: of several the kernel leaves those out that follow one that it refuses.
      program.call("io_uring_enter", [thread.fd, 1, 0, 0, 0, 0], {
        label: `begin a request of io_uring ring ${ring.id} anew`,
        expect: 1,
      });
    }
    const first = taken;
    thread.run(program, (data) => {
      batch.forEach((request, index) => {
        const entry = Buffer.from(request.entry);
        if (request.seconds !== undefined)
          writeU64(entry, uring.SQE_ADDR, data + (times[index]?.offset ?? 0));
        windows.put(first + index, entry);
      });
      rings.write(places.sqTail, first + batch.length);
    });
    taken += batch.length;
  }
  windows.putBack(tail);
}

type Request = RepriseIoUringEntry["requests"][number];

/** Requests of one thread each, no more than the queue holds. */
function batchesOf({ requests, sq_entries }: RepriseIoUringEntry): Request[][] {
  const batches: Request[][] = [];
  for (const request of requests) {
    const last = batches.at(-1);
    if (last?.[0]?.thread === request.thread && last.length < sq_entries) last.push(request);
    else batches.push([request]);
  }
  return batches;
}

/** struct __kernel_timespec. */
function timeOf({ seconds = 0n, nanoseconds = 0 }: Request): Buffer {
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(seconds, 0);
  time.writeBigInt64LE(BigInt(nanoseconds), 8);
  return time;
}

/** The process that a ring belongs to. */
export interface RingOwner {
  /** The descriptors that lead to the ring. */
  readonly fds: readonly FdinfoEntry[];
  /** The areas that are mapped from it. */
  readonly areas: readonly VmaEntry[];
  /** Runs a program in the thread that the ring belongs to. */
  run(program: Program): void;
  /** The engine's own copy of a descriptor, for as long as `use` runs. */
  withCopy(fd: number, use: (copy: number) => void): void;
}

/**
 * Does what is left of a ring.
 *
 * @throws RepriseError REMOTE_CALL, SYSCALL, BAD_IMAGE
 */
export function finishRing(entry: FileEntry, owner: RingOwner): void {
  const { reprise_io_uring: ring } = entry;
  assert(ring !== undefined, `file ${entry.id} is no io_uring ring`);
  const [first] = owner.fds;
  if (first === undefined) throw broken(ring, "its owner has no descriptor of it");
  if (isMadeByOwner(ring)) make(entry, ring, owner);
  const program = new Program();
  register(program, ring, first.fd);
  if (program.calls > 0) owner.run(program);
}

function make(entry: FileEntry, ring: RepriseIoUringEntry, owner: RingOwner): void {
  const label = `make io_uring ring ${ring.id}`;
  const rings = placeOf(ring, owner, { offset: 0, size: ring.rings_size });
  const entries = placeOf(ring, owner, {
    offset: uring.IORING_OFF_SQES,
    size: ring.entries_size,
  });
  const params = paramsOf(ring, uring.IORING_SETUP_NO_MMAP);
  writeU64(params, uring.PARAMS_CQ_OFF + uring.OFFSETS_USER_ADDR, rings);
  writeU64(params, uring.PARAMS_SQ_OFF + uring.OFFSETS_USER_ADDR, entries);
  const program = new Program();
  const made = program.call("io_uring_setup", [ring.sq_entries, program.data(params)], {
    label,
    hint: "Rings may be forbidden here (kernel.io_uring_disabled), or take more memory than may be locked (ulimit -l).",
  });
  if ((ring.flags & O_NONBLOCK) !== 0)
    program.call("fcntl", [made, F_SETFL, O_NONBLOCK], { label });
  for (const { fd, flags } of owner.fds)
    program.call("dup3", [made, fd, (flags & FD_CLOEXEC) === 0 ? 0 : O_CLOEXEC], { label });
  program.call("close", [made], { label });
  const fd = owner.fds[0]?.fd ?? -1;
  settleOwner(program, entry, fd);
  owner.run(program);
  const memory = memories.get(ring);
  assert(memory !== undefined, `the memory of io_uring ring ${ring.id} was not kept`);
  const isThreads = (ring.setup_flags & uring.IORING_SETUP_SQPOLL) === 0;
  if (isThreads)
    bringToStateInThread(ring, { fd, rings, memory, run: (batch) => owner.run(batch) });
  else owner.withCopy(fd, (copy) => bringToState(ring, { fd: copy, memory }));
}

function placeOf(
  ring: RepriseIoUringEntry,
  { areas }: RingOwner,
  { offset, size }: { readonly offset: number; readonly size: number },
): number {
  const area = areas.find(({ pgoff, start, end }) => pgoff === offset && end - start >= size);
  if (area === undefined) throw broken(ring, "its owner has not mapped its memory");
  return area.start;
}

function register(program: Program, ring: RepriseIoUringEntry, fd: number): void {
  const label = `register with io_uring ring ${ring.id}`;
  const numbers = (values: readonly number[]): Buffer =>
    Buffer.from(Int32Array.from(values).buffer);
  const add = (what: string, operation: number, list: Buffer, count: number): void =>
    void program.call("io_uring_register", [fd, operation, program.data(list), count], {
      label: `${label}: ${what}`,
      hint: "Registered buffers count as locked memory (ulimit -l).",
    });
  if (ring.files.length > 0)
    add("files", uring.IORING_REGISTER_FILES, numbers(ring.files), ring.files.length);
  if (ring.buffers.length > 0) {
    const ranges = ring.buffers.map(({ start, length }) => ({ address: start, length }));
    add("buffers", uring.IORING_REGISTER_BUFFERS, iovecs(ranges), ranges.length);
  }
  if (ring.eventfd !== undefined) {
    const operation =
      ring.eventfd_async === true
        ? uring.IORING_REGISTER_EVENTFD_ASYNC
        : uring.IORING_REGISTER_EVENTFD;
    add("an eventfd", operation, numbers([ring.eventfd]), 1);
  }
}

function broken({ id }: RepriseIoUringEntry, why: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot restore io_uring ring ${id}: ${why}`);
}
