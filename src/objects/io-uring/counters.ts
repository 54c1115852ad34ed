// Bringing a new ring to where the old one was. The kernel counts what it took and what it completed by itself (cached_sq_head,
// cached_cq_tail in io_uring/io_uring.c) and writes these counters into the ring; programs keep copies of them. So a new ring does as many
// empty requests as the old one did: its entries are zeros, which is IORING_OP_NOP, and the tail may lie far ahead. Then all of its
// memory is as it was.
//
// Who does it depends on the ring: the engine, a thread of the kernel that the engine wakes (SQPOLL), or the one thread that may use the
// ring (thread-counters.ts).

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, PAGE_SIZE, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { errnoName } from "../../sys/errno.ts";
import { memoryAt, syscall, trySyscall } from "../../sys/ffi.ts";

/** What is done so many times. */
export interface Segment {
  /**
   * Empty requests with a completion each; requests without one, by the flag for that; entries that are dropped; completions that another
   * ring posts.
   */
  readonly what: "request" | "skip" | "drop" | "post";
  readonly count: number;
  /** The completions are taken, so that there is room for more. */
  readonly taken: boolean;
}

/** Where the words that move lie in the memory of the queues. */
export interface RingPlaces {
  readonly sqHead: number;
  readonly sqTail: number;
  readonly sqFlags: number;
  /** 0 in a ring without. */
  readonly sqArray: number;
  readonly cqHead: number;
  readonly cqTail: number;
}

export function placesOf({ sq_off, cq_off }: RepriseIoUringEntry): RingPlaces {
  const [sq, cq] = [Buffer.from(sq_off), Buffer.from(cq_off)];
  return {
    sqHead: sq.readUInt32LE(uring.SQ_OFF_HEAD),
    sqTail: sq.readUInt32LE(uring.SQ_OFF_TAIL),
    sqFlags: sq.readUInt32LE(uring.SQ_OFF_FLAGS),
    sqArray: sq.readUInt32LE(uring.SQ_OFF_ARRAY),
    cqHead: cq.readUInt32LE(uring.CQ_OFF_HEAD),
    cqTail: cq.readUInt32LE(uring.CQ_OFF_TAIL),
  };
}

/**
 * What brings a new ring to the counters of a saved one.
 *
 * Completions that the program has not taken are not taken here, either, and those before them are: the kernel looks at the head only
 * now and then, and believes until then that it has the room that it saw (io_cqe_cache_refill).
 */
export function segmentsOf(saved: RepriseIoUringEntry): Segment[] {
  const { cq_tail, drain_disabled } = saved;
  const sq_head = takenFirst(saved);
  const both = Math.min(sq_head, cq_tail);
  const head = Math.max(0, finalHead(saved));
  const segments: Segment[] = [
    { what: "request", count: Math.min(both, head), taken: true },
    { what: "request", count: both - Math.min(both, head), taken: false },
    // The old ring has had such as well: IOSQE_IO_DRAIN is refused after the first request without a completion.
    { what: drain_disabled === true ? "skip" : "drop", count: sq_head - both, taken: false },
    { what: "post", count: Math.max(0, Math.min(cq_tail, head) - both), taken: true },
    { what: "post", count: cq_tail - Math.max(both, Math.min(cq_tail, head)), taken: false },
  ];
  return segments.filter(({ count }) => count > 0);
}

/** How many entries are taken before the requests that wait still, which have no completions yet. */
export function takenFirst({ sq_head, requests }: RepriseIoUringEntry): number {
  return sq_head - requests.length;
}

/** Where the head of the completions is to be before the first request. */
export function firstHead(saved: RepriseIoUringEntry): number {
  return Math.min(0, finalHead(saved));
}

/** Entries that all complete in silence. */
export function skippingEntries(saved: RepriseIoUringEntry): Buffer {
  const entries = Buffer.alloc(saved.sq_entries * entrySize(saved));
  for (let at = 0; at < entries.length; at += entrySize(saved))
    entries.writeUInt8(uring.IOSQE_CQE_SKIP_SUCCESS, at + uring.SQE_FLAGS);
  return entries;
}

/** An array of the queue that names no entry that exists, so that all are dropped. */
export function droppedArray(saved: RepriseIoUringEntry): Buffer {
  if (placesOf(saved).sqArray === 0) throw failureOf(saved, "it took more than it completed");
  return Buffer.alloc(saved.sq_entries * 4, 0xff);
}

function entrySize({ setup_flags }: RepriseIoUringEntry): number {
  const isLarge = (setup_flags & uring.IORING_SETUP_SQE128) !== 0;
  return isLarge ? 2 * uring.SQE_SIZE : uring.SQE_SIZE;
}

/** Where an entry goes that is the one with this number: its place among the entries, and in the array of the queue (if there is one). */
export function slotOf(
  saved: RepriseIoUringEntry,
  number: number,
): { readonly slot: number; readonly entryAt: number; readonly arrayAt: number } {
  const slot = (number & (saved.sq_entries - 1)) >>> 0;
  const { sqArray } = placesOf(saved);
  return { slot, entryAt: slot * entrySize(saved), arrayAt: sqArray + slot * 4 };
}

/** Where the program takes its next completion from, as a count that does not wrap: negative where the tail has wrapped and the head not. */
function finalHead(saved: RepriseIoUringEntry): number {
  const at = Buffer.from(saved.cq_off).readUInt32LE(uring.CQ_OFF_HEAD);
  const bytes = Buffer.alloc(4);
  bytes.set(saved.rings.subarray(at, at + 4));
  return saved.cq_tail - ((saved.cq_tail - bytes.readUInt32LE(0)) >>> 0);
}

/** The memory of a new ring, in the engine. */
export class RingWindows implements Disposable {
  readonly rings: Window;
  readonly entries: Window;
  readonly places: RingPlaces;
  readonly #saved: RepriseIoUringEntry;

  constructor(saved: RepriseIoUringEntry, memory: number) {
    this.#saved = saved;
    this.places = placesOf(saved);
    this.rings = new Window(memory, { offset: 0, size: saved.rings_size });
    const offset = uring.IORING_OFF_SQES;
    this.entries = new Window(memory, { offset, size: saved.entries_size });
  }

  /** Before the first request. */
  begin(): void {
    this.rings.write(this.places.cqHead, firstHead(this.#saved));
  }

  /** Has all entries complete in silence from now on. */
  skipCompletions(): void {
    this.entries.fill(skippingEntries(this.#saved));
  }

  /** Has all entries be dropped from now on. */
  dropEntries(): void {
    this.rings.copy(droppedArray(this.#saved), this.places.sqArray);
  }

  /** Takes entries out again that were put there. */
  putBack(tail: number): void {
    const { sq_entries, entries, rings } = this.#saved;
    const { sqArray, sqTail } = this.places;
    this.entries.fill(entries);
    if (sqArray !== 0) {
      const array = Buffer.alloc(sq_entries * 4);
      array.set(rings.subarray(sqArray, sqArray + array.length));
      this.rings.copy(array, sqArray);
    }
    this.rings.write(sqTail, tail);
  }

  /** Gives the ring all that was in it. The kernel's own flags stay: the ring of a thread of the kernel says there whether that sleeps. */
  finish(): void {
    const { rings, places } = this;
    const { cq_tail } = this.#saved;
    const sq_head = takenFirst(this.#saved);
    if (rings.read(places.sqHead) !== sq_head || rings.read(places.cqTail) !== cq_tail)
      throw failureOf(
        this.#saved,
        `it is at ${rings.read(places.sqHead)} and ${rings.read(places.cqTail)} instead of ${sq_head} and ${cq_tail}`,
      );
    this.entries.fill(this.#saved.entries);
    rings.fill(this.#saved.rings, { except: places.sqFlags });
  }

  [Symbol.dispose](): void {
    this.rings[Symbol.dispose]();
    this.entries[Symbol.dispose]();
  }
}

/** Shared memory in this process. */
class Window implements Disposable {
  readonly #address: number;
  readonly #bytes: Buffer;

  constructor(fd: number, { offset, size }: { readonly offset: number; readonly size: number }) {
    this.#address = syscall("mmap", 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    const bytes = memoryAt(this.#address, size);
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  read(at: number): number {
    return this.#bytes.readUInt32LE(at);
  }

  write(at: number, value: number): void {
    this.#bytes.writeUInt32LE(value >>> 0, at);
  }

  copy(bytes: Uint8Array, at: number): void {
    this.#bytes.set(bytes, at);
  }

  /** Bytes from the beginning on, zeros behind them, but for one word that stays. */
  fill(bytes: Uint8Array, { except }: { readonly except?: number } = {}): void {
    const full = Buffer.alloc(this.#bytes.length);
    full.set(bytes.subarray(0, full.length));
    const first = except ?? full.length;
    this.#bytes.set(full.subarray(0, first));
    if (except !== undefined) this.#bytes.set(full.subarray(except + 4), except + 4);
  }

  [Symbol.dispose](): void {
    syscall("munmap", this.#address, this.#bytes.length);
  }
}

/** The engine's descriptors of a new ring and of its memory. */
export interface NewRing {
  readonly fd: number;
  readonly memory: number;
}

/**
 * Gives a new ring the counters and the content of the saved one: one that the engine may use, or that a thread of the kernel serves.
 *
 * @throws RepriseError SYSCALL
 */
export function bringToState(saved: RepriseIoUringEntry, { fd, memory }: NewRing): void {
  using windows = new RingWindows(saved, memory);
  windows.begin();
  const isPolled = (saved.setup_flags & uring.IORING_SETUP_SQPOLL) !== 0;
  const submit = isPolled ? awaitThread : enter;
  if (!isPolled) windows.rings.write(windows.places.sqTail, takenFirst(saved));
  const most = Math.min(saved.sq_entries, saved.cq_entries);
  for (const { what, count, taken } of segmentsOf(saved)) {
    if (what === "skip") windows.skipCompletions();
    if (what === "drop") windows.dropEntries();
    if (what === "post") post({ saved, windows, fd, count, taken });
    for (let rest = what === "post" ? 0 : count; rest > 0;) {
      // The kernel goes no further in one call than to the first entry that it drops.
      const step = what === "drop" && !isPolled ? 1 : Math.min(rest, most);
      submit({ saved, windows, fd, count: step, dropped: what === "drop" });
      if (taken) take(windows);
      rest -= step;
    }
  }
  windows.finish();
}

/** Gives a ring that is at its counters the content of the saved one. */
export function finishContent(saved: RepriseIoUringEntry, memory: number): void {
  using windows = new RingWindows(saved, memory);
  windows.finish();
}

interface Submission {
  readonly saved: RepriseIoUringEntry;
  readonly windows: RingWindows;
  readonly fd: number;
  readonly count: number;
}

function take({ rings, places }: RingWindows): void {
  rings.write(places.cqHead, rings.read(places.cqTail));
}

function enter({
  saved,
  fd,
  count,
  dropped = false,
}: Omit<Submission, "windows"> & { readonly dropped?: boolean }): void {
  const result = trySyscall("io_uring_enter", fd, count, 0, 0, 0, 0);
  const expected = dropped ? 0 : count;
  if (result === expected) return;
  const got = result < 0 ? errnoName(-result) : `${result} instead of ${expected}`;
  throw failureOf(saved, `io_uring_enter: ${got}`);
}

/** A thread of the kernel takes what the tail tells it. */
function awaitThread({ saved, windows: { rings, places }, fd, count }: Submission): void {
  const wanted = (rings.read(places.sqHead) + count) >>> 0;
  rings.write(places.sqTail, wanted);
  const end = performance.now() + THREAD_PATIENCE_MS;
  while (rings.read(places.sqHead) !== wanted) {
    const result = trySyscall("io_uring_enter", fd, 0, 0, uring.IORING_ENTER_SQ_WAKEUP, 0, 0);
    if (result < 0) throw failureOf(saved, `io_uring_enter: ${errnoName(-result)}`);
    if (performance.now() > end) throw failureOf(saved, "its thread of the kernel does not work");
    if (rings.read(places.sqHead) !== wanted) syscall("sched_yield");
  }
}

const THREAD_PATIENCE_MS = 10_000;

/** Completions without requests of this ring (the old one had requests with several). */
function post({
  saved,
  windows,
  fd,
  count,
  taken,
}: Submission & { readonly taken: boolean }): void {
  const poster = new Poster(fd);
  try {
    const most = Math.min(POSTED_AT_ONCE, saved.cq_entries);
    for (let rest = count; rest > 0; rest -= most) {
      poster.prepare(Math.min(rest, most));
      enter({ saved, fd: poster.fd, count: Math.min(rest, most) });
      if (taken) take(windows);
    }
  } finally {
    poster.close();
  }
}

/** A ring of the engine's whose requests (IORING_OP_MSG_RING) are completions of another ring, and have none themselves. */
class Poster {
  readonly fd: number;
  #posted = 0;
  readonly #tail: number;
  readonly #rings: Window;

  constructor(target: number) {
    const params = Buffer.alloc(uring.PARAMS_SIZE);
    params.writeUInt32LE(uring.IORING_SETUP_NO_SQARRAY, uring.PARAMS_FLAGS);
    this.fd = syscall("io_uring_setup", POSTED_AT_ONCE, params);
    this.#tail = params.readUInt32LE(uring.PARAMS_SQ_OFF + uring.SQ_OFF_TAIL);
    this.#rings = new Window(this.fd, { offset: 0, size: PAGE_SIZE });
    const size = POSTED_AT_ONCE * uring.SQE_SIZE;
    using entries = new Window(this.fd, { offset: uring.IORING_OFF_SQES, size });
    entries.fill(postingEntries(target));
  }

  prepare(count: number): void {
    this.#posted += count;
    this.#rings.write(this.#tail, this.#posted);
  }

  close(): void {
    this.#rings[Symbol.dispose]();
    closeSync(this.fd);
  }
}

/** Entries of a ring that posts to another one. */
export const POSTED_AT_ONCE = 64;

export function postingEntries(target: number): Buffer {
  const entries = Buffer.alloc(POSTED_AT_ONCE * uring.SQE_SIZE);
  for (let at = 0; at < entries.length; at += uring.SQE_SIZE) {
    entries.writeUInt8(uring.IORING_OP_MSG_RING, at);
    entries.writeUInt8(uring.IOSQE_CQE_SKIP_SUCCESS, at + 1);
    entries.writeInt32LE(target, at + 4);
  }
  return entries;
}

function failureOf({ id }: RepriseIoUringEntry, why: string): RepriseError {
  return new RepriseError("SYSCALL", `cannot restore io_uring ring ${id}: ${why}`, {
    syscall: "io_uring_enter",
  });
}
