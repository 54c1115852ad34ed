// The same as counters.ts for a ring that only one thread may use (IORING_SETUP_SINGLE_ISSUER): the thread does the requests, by repeated
// steps of its program. What is written into the ring's memory meanwhile, the thread writes: copies from its own memory to its own memory.

import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, PAGE_SIZE, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { iovecs, IOVEC_SIZE } from "../../sys/memory.ts";
import type { Pointer, Program, Ref } from "../../tracee/program.ts";
import {
  droppedArray,
  firstHead,
  placesOf,
  POSTED_AT_ONCE,
  postingEntries,
  segmentsOf,
  skippingEntries,
  takenFirst,
  type Segment,
} from "./counters.ts";

/** A new ring in the thread that may use it, all of whose memory is zeros but for what the kernel has written. */
export interface ThreadRing {
  readonly fd: number;
  /** Where the queues and the entries are in the thread's memory. */
  readonly rings: number;
  readonly entries: number;
}

/** Adds the calls that give a new ring the counters of the saved one. Its content comes afterwards (finishContent). */
export function bringToStateInThread(
  program: Program,
  saved: RepriseIoUringEntry,
  ring: ThreadRing,
): void {
  const segments = segmentsOf(saved);
  const label = `bring io_uring ring ${saved.id} to its counters`;
  const self = program.call("getpid", [], { label });
  const write: Write = (pieces) => addWrites(program, pieces, { self, label });
  const { cqHead, sqTail } = placesOf(saved);
  write([
    { at: ring.rings + cqHead, bytes: word(firstHead(saved)) },
    { at: ring.rings + sqTail, bytes: word(takenFirst(saved)) },
  ]);
  let waiting = 0;
  for (const segment of segments) {
    addSegment(program, { saved, ring, segment, waiting, self, label, write });
    if (!segment.taken && (segment.what === "request" || segment.what === "post"))
      waiting += segment.count;
  }
}

type Write = (pieces: readonly Piece[]) => void;

/** Bytes for a place in the thread's memory. */
export interface Piece {
  readonly at: number;
  readonly bytes: Buffer;
}

/** Adds the writing of some pieces by the process itself; some words of the first may be addresses in the program. */
export function addWrites(
  program: Program,
  pieces: readonly Piece[],
  {
    self,
    label,
    pointers = {},
  }: {
    readonly self: Ref;
    readonly label: string;
    readonly pointers?: Readonly<Record<number, Pointer>>;
  },
): void {
  const bytes = Buffer.concat(pieces.map((piece) => piece.bytes));
  const source = program.structure(iovecs([{ address: 0, length: bytes.length }]), {
    0: program.structure(bytes, pointers),
  });
  const target = program.data(
    iovecs(pieces.map(({ at, bytes: { length } }) => ({ address: at, length }))),
  );
  program.call("process_vm_writev", [self, source, 1, target, pieces.length, 0], {
    label,
    expect: bytes.length,
  });
}

interface Around {
  readonly saved: RepriseIoUringEntry;
  readonly ring: ThreadRing;
  readonly segment: Segment;
  /** Completions that wait already. */
  readonly waiting: number;
  readonly self: Ref;
  readonly label: string;
  readonly write: Write;
}

function addSegment(program: Program, around: Around): void {
  const { saved, ring, segment, waiting, self, label, write } = around;
  const { what, count, taken } = segment;
  const { cqHead, cqTail, sqArray } = placesOf(saved);
  if (what === "skip") write([{ at: ring.entries, bytes: skippingEntries(saved) }]);
  if (what === "drop") write([{ at: ring.rings + sqArray, bytes: droppedArray(saved) }]);
  const most = Math.min(saved.sq_entries, saved.cq_entries);
  // The kernel goes no further in one call than to the first entry that it drops.
  const step = what === "drop" ? 1 : what === "post" ? Math.min(POSTED_AT_ONCE, most) : most;
  const place = (at: number): Pointer =>
    program.data(iovecs([{ address: ring.rings + at, length: 4 }]));
  const [from, to] = [place(cqTail), place(cqHead)];
  const poster = what === "post" ? makePoster(program, around) : undefined;
  const add = (some: number, wanted: number): void => {
    const expect = what === "drop" ? 0 : some;
    program.call("io_uring_enter", [poster?.fd ?? ring.fd, some, 0, 0, 0, 0], { label, expect });
    if (poster !== undefined) {
      // What others post is put into the queue only when the thread asks for it (IORING_SETUP_DEFER_TASKRUN).
      const flags = uring.IORING_ENTER_GETEVENTS;
      program.call("io_uring_enter", [ring.fd, 0, wanted, flags, 0, 0], { label });
    }
    if (taken) program.call("process_vm_writev", [self, from, 1, to, 1, 0], { label, expect: 4 });
  };
  const whole = Math.floor(count / step);
  const rest = count - whole * step;
  if (poster === undefined || taken) {
    if (whole > 0) program.repeat(whole, () => add(step, step));
  } else {
    // No more than there is room for in the queue.
    for (let index = 1; index <= whole; index++) add(step, waiting + index * step);
  }
  if (rest > 0) add(rest, taken ? rest : waiting + count);
  poster?.close();
}

/** Adds the making of a ring that posts to the other, with all its entries in the queue. */
function makePoster(
  program: Program,
  { saved, ring, segment, self, label }: Around,
): { readonly fd: Ref; readonly close: () => void } {
  const params = Buffer.alloc(uring.PARAMS_SIZE);
  params.writeUInt32LE(uring.IORING_SETUP_NO_SQARRAY, uring.PARAMS_FLAGS);
  const fd = program.call("io_uring_setup", [POSTED_AT_ONCE, program.data(params)], { label });
  const entries = postingEntries(ring.fd);
  const access = PROT_READ | PROT_WRITE;
  const map = (length: number, offset: number): Ref =>
    program.call("mmap", [0, length, access, MAP_SHARED, fd, offset], { label });
  const queue = map(PAGE_SIZE, 0);
  const places = map(entries.length, uring.IORING_OFF_SQES);
  const write = (bytes: Buffer, base: Ref, offset: number): void => {
    const source = Buffer.alloc(IOVEC_SIZE);
    source.writeUInt32LE(bytes.length, IOVEC_LENGTH);
    const target = program.data(source);
    const address = program.data(Buffer.alloc(8));
    program.copy(base, address);
    program.copy({ kind: "load", from: address, width: 8, plus: offset }, target);
    const local = program.structure(source, { 0: program.data(bytes) });
    program.call("process_vm_writev", [self, local, 1, target, 1, 0], {
      label,
      expect: bytes.length,
    });
  };
  write(entries, places, 0);
  write(word(segment.count), queue, placesOf(saved).sqTail);
  return {
    fd,
    close: () => {
      program.call("munmap", [queue, PAGE_SIZE], { label });
      program.call("munmap", [places, entries.length], { label });
      program.call("close", [fd], { label });
    },
  };
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

const IOVEC_LENGTH = 8;
