// The last part of a ring's restore, when all tasks have their memory, threads, descriptors and credentials: a ring that belongs to a
// process or thread is made there, from the memory where the program has it, and takes the place of its stand-in; then what is registered
// with a ring: an eventfd, files, buffers.

import { closeSync } from "node:fs";
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
import { Program, type Pointer, type Ref } from "../../tracee/program.ts";
import { settleOwner } from "../files/owner.ts";
import { bringToState, finishContent, RingWindows, slotOf, takenFirst } from "./counters.ts";
import { hasArray, isMadeByOwner, paramsOf } from "./layout.ts";
import { addWrites, bringToStateInThread } from "./thread-counters.ts";

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

/** The process that a ring belongs to, or that uses it. */
export interface RingOwner {
  /** The descriptors that lead to the ring. */
  readonly fds: readonly FdinfoEntry[];
  /** The areas that are mapped from it. */
  readonly areas: readonly VmaEntry[];
}

/** A ring of which a part is left for the end. */
export class LateRing {
  /** The thread that does what only the owner can. */
  readonly tid: number;
  readonly #entry: FileEntry;
  readonly #ring: RepriseIoUringEntry;
  readonly #owner: RingOwner;

  /** @throws RepriseError BAD_IMAGE */
  constructor(entry: FileEntry, owner: RingOwner) {
    const ring = entry.reprise_io_uring;
    assert(ring?.owner !== undefined, `file ${entry.id} has nothing left for its owner`);
    if (owner.fds.length === 0) throw broken(ring, "its owner has no descriptor of it");
    this.#entry = entry;
    this.#ring = ring;
    this.#owner = owner;
    this.tid = ring.thread ?? ring.owner;
  }

  /** Adds the making of a ring that its owner makes, and its way to its counters where the thread has to do that. */
  make(program: Program): void {
    const ring = this.#ring;
    if (!isMadeByOwner(ring)) return;
    const label = `make io_uring ring ${ring.id}`;
    const rings = placeOf(ring, this.#owner, { offset: 0, size: ring.rings_size });
    const entries = placeOf(ring, this.#owner, {
      offset: uring.IORING_OFF_SQES,
      size: ring.entries_size,
    });
    const params = paramsOf(ring, uring.IORING_SETUP_NO_MMAP);
    writeU64(params, uring.PARAMS_CQ_OFF + uring.OFFSETS_USER_ADDR, rings);
    writeU64(params, uring.PARAMS_SQ_OFF + uring.OFFSETS_USER_ADDR, entries);
    const made = program.call("io_uring_setup", [ring.sq_entries, program.data(params)], {
      label,
      hint: "Rings may be forbidden here (kernel.io_uring_disabled), or take more memory than may be locked (ulimit -l).",
    });
    if ((ring.flags & O_NONBLOCK) !== 0)
      program.call("fcntl", [made, F_SETFL, O_NONBLOCK], { label });
    for (const { fd, flags } of this.#owner.fds)
      program.call("dup3", [made, fd, (flags & FD_CLOEXEC) === 0 ? 0 : O_CLOEXEC], { label });
    program.call("close", [made], { label });
    settleOwner(program, this.#entry, this.#fd);
    if (!this.#hasOwnThread) bringToStateInThread(program, ring, { fd: this.#fd, rings, entries });
  }

  /** Does the engine's part when it is made; `copyOf` gives a copy of a descriptor of the owner's. */
  finish(copyOf: (pid: number, fd: number) => number): void {
    const ring = this.#ring;
    if (!isMadeByOwner(ring)) return;
    const memory = memoryOf(ring);
    if (!this.#hasOwnThread) {
      finishContent(ring, memory);
      return;
    }
    const copy = copyOf(ring.owner ?? -1, this.#fd);
    try {
      bringToState(ring, { fd: copy, memory });
    } finally {
      closeSync(copy);
    }
  }

  /** Adds the registering of what is registered with it, to the program of its thread, and of itself with others. */
  register(programOf: (tid: number) => Program): void {
    const ring = this.#ring;
    register(programOf(this.tid), ring, this.#fd);
    for (const { thread, place } of ring.registrations) {
      const program = programOf(thread);
      const list = Buffer.alloc(16);
      list.writeUInt32LE(place, 0);
      writeU64(list, 8, this.#fd);
      program.call(
        "io_uring_register",
        [this.#fd, uring.IORING_REGISTER_RING_FDS, program.data(list), 1],
        { label: `register io_uring ring ${ring.id} with thread ${thread}`, expect: 1 },
      );
    }
  }

  get #fd(): number {
    return this.#owner.fds[0]?.fd ?? -1;
  }

  /** A thread of the kernel takes its requests. */
  get #hasOwnThread(): boolean {
    return (this.#ring.setup_flags & uring.IORING_SETUP_SQPOLL) !== 0;
  }
}

/**
 * Begins the requests anew that waited in rings. To be done last of all: they may end at once.
 *
 * Each thread begins its own, of all rings in one program. It puts them into the queues itself, since these may be shorter.
 *
 * @throws RepriseError REMOTE_CALL, BAD_IMAGE
 */
export function beginRequests(
  files: readonly FileEntry[],
  ownerOf: (tid: number, fileId: number) => RingOwner | undefined,
  run: (tid: number, program: Program) => void,
): void {
  const rings = files.flatMap(({ id, reprise_io_uring: ring }) =>
    ring === undefined || ring.requests.length === 0 ? [] : [new WaitingRing(id, ring)],
  );
  const threads = new Set(rings.flatMap(({ ring }) => ring.requests.map(({ thread }) => thread)));
  for (const ring of rings) ring.begin();
  for (const tid of threads) {
    const program = new Program();
    const self = program.call("getpid", []);
    for (const ring of rings) ring.add(program, { tid, self, owner: (id) => ownerOf(tid, id) });
    run(tid, program);
  }
  for (const ring of rings) ring.end();
}

/** A ring with requests to begin. */
class WaitingRing {
  readonly ring: RepriseIoUringEntry;
  readonly #fileId: number;
  #next: number;
  /** Where the program's own queue ends. */
  #tail = 0;

  constructor(fileId: number, ring: RepriseIoUringEntry) {
    this.ring = ring;
    this.#fileId = fileId;
    this.#next = takenFirst(ring);
  }

  begin(): void {
    using windows = new RingWindows(this.ring, memoryOf(this.ring));
    const { rings, places } = windows;
    this.#tail = rings.read(places.sqTail);
    rings.write(places.sqTail, this.#next + this.ring.requests.length);
  }

  add(
    program: Program,
    {
      tid,
      self,
      owner: ownerOf,
    }: {
      readonly tid: number;
      readonly self: Ref;
      readonly owner: (fileId: number) => RingOwner | undefined;
    },
  ): void {
    const { ring } = this;
    const requests = ring.requests.filter(({ thread }) => thread === tid);
    if (requests.length === 0) return;
    const owner = ownerOf(this.#fileId);
    const fd = owner?.fds[0]?.fd;
    if (owner === undefined || fd === undefined)
      throw broken(ring, `thread ${tid} waits for a request and has no descriptor of the ring`);
    const label = `begin a request of io_uring ring ${ring.id} anew`;
    const entries = placeOf(ring, owner, {
      offset: uring.IORING_OFF_SQES,
      size: ring.entries_size,
    });
    const queue = hasArray(ring)
      ? placeOf(ring, owner, { offset: 0, size: ring.rings_size })
      : undefined;
    for (const request of requests) {
      const { slot, entryAt, arrayAt } = slotOf(ring, this.#next);
      const number = Buffer.alloc(4);
      number.writeUInt32LE(slot);
      const pieces = [
        { at: entries + entryAt, bytes: Buffer.from(request.entry) },
        ...(queue === undefined ? [] : [{ at: queue + arrayAt, bytes: number }]),
      ];
      const pointers: Record<number, Pointer> =
        request.seconds === undefined ? {} : { [uring.SQE_ADDR]: program.data(timeOf(request)) };
      addWrites(program, pieces, { self, label, pointers });
      // One by one: of several the kernel leaves those out that follow one that it refuses.
      program.call("io_uring_enter", [fd, 1, 0, 0, 0, 0], { label, expect: 1 });
      this.#next += 1;
    }
  }

  end(): void {
    using windows = new RingWindows(this.ring, memoryOf(this.ring));
    windows.putBack(this.#tail);
  }
}

type Request = RepriseIoUringEntry["requests"][number];

/** struct __kernel_timespec. */
function timeOf({ seconds = 0n, nanoseconds = 0 }: Request): Buffer {
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(seconds, 0);
  time.writeBigInt64LE(BigInt(nanoseconds), 8);
  return time;
}

function placeOf(
  ring: RepriseIoUringEntry,
  { areas }: RingOwner,
  { offset, size }: { readonly offset: number; readonly size: number },
): number {
  const area = areas.find(({ pgoff, start, end }) => pgoff === offset && end - start >= size);
  if (area === undefined) throw broken(ring, "who uses it has not mapped its memory");
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
  const addTagged = (
    what: string,
    operation: number,
    { list, tags }: { readonly list: Buffer; readonly tags: readonly bigint[] },
  ): void => {
    const resources = Buffer.alloc(uring.RSRC_REGISTER_SIZE);
    resources.writeUInt32LE(tags.length);
    const pointer = program.structure(resources, {
      [uring.RSRC_DATA]: program.data(list),
      [uring.RSRC_TAGS]: program.data(Buffer.from(BigUint64Array.from(tags).buffer)),
    });
    program.call("io_uring_register", [fd, operation, pointer, uring.RSRC_REGISTER_SIZE], {
      label: `${label}: ${what}`,
      hint: "Registered buffers count as locked memory (ulimit -l).",
    });
  };
  if (ring.files.length > 0) {
    const list = numbers(ring.files);
    if (ring.file_tags.length > 0)
      addTagged("files", uring.IORING_REGISTER_FILES2, { list, tags: ring.file_tags });
    else add("files", uring.IORING_REGISTER_FILES, list, ring.files.length);
  }
  if (ring.file_range_length !== undefined) {
    const range = numbers([ring.file_range_start ?? 0, ring.file_range_length, 0, 0]);
    add("a range for files", uring.IORING_REGISTER_FILE_ALLOC_RANGE, range, 0);
  }
  if (ring.buffers.length > 0) {
    const list = iovecs(ring.buffers.map(({ start, length }) => ({ address: start, length })));
    if (ring.buffer_tags.length > 0)
      addTagged("buffers", uring.IORING_REGISTER_BUFFERS2, { list, tags: ring.buffer_tags });
    else add("buffers", uring.IORING_REGISTER_BUFFERS, list, ring.buffers.length);
  }
  if (ring.clock !== undefined)
    add("a clock", uring.IORING_REGISTER_CLOCK, numbers([ring.clock, 0, 0, 0]), 0);
  if (ring.worker_limits.length > 0)
    add("limits", uring.IORING_REGISTER_IOWQ_MAX_WORKERS, numbers(ring.worker_limits), 2);
  if (ring.eventfd !== undefined) {
    const operation =
      ring.eventfd_async === true
        ? uring.IORING_REGISTER_EVENTFD_ASYNC
        : uring.IORING_REGISTER_EVENTFD;
    add("an eventfd", operation, numbers([ring.eventfd]), 1);
  }
}

/** The engine's descriptor of the memory of a ring. */
function memoryOf(ring: RepriseIoUringEntry): number {
  const memory = memories.get(ring);
  assert(memory !== undefined, `the memory of io_uring ring ${ring.id} was not kept`);
  return memory;
}

function broken({ id }: RepriseIoUringEntry, why: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot restore io_uring ring ${id}: ${why}`);
}
