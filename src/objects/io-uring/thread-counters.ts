// The same as counters.ts for a ring that only one thread may use (IORING_SETUP_SINGLE_ISSUER): the thread does the requests, by programs
// of many calls each. That completions are taken is a copy of one word in its own memory over another.

import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, PAGE_SIZE, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { iovecs, IOVEC_SIZE } from "../../sys/memory.ts";
import { Program, type Pointer, type Ref } from "../../tracee/program.ts";
import {
  POSTED_AT_ONCE,
  postingEntries,
  RingWindows,
  segmentsOf,
  takenFirst,
  type Segment,
} from "./counters.ts";

/** A new ring in the thread that may use it. */
export interface ThreadRing {
  readonly fd: number;
  /** Where the queues are in the thread's memory. */
  readonly rings: number;
  /** The engine's descriptor of the ring's memory. */
  readonly memory: number;
  /** Runs a program in the thread. */
  run(program: Program): void;
}

/** Calls for so many requests are in one program. */
const BATCHES = 500;

/**
 * Gives a new ring the counters and the content of the saved one.
 *
 * @throws RepriseError SYSCALL, REMOTE_CALL
 */
export function bringToStateInThread(saved: RepriseIoUringEntry, ring: ThreadRing): void {
  using windows = new RingWindows(saved, ring.memory);
  windows.begin();
  windows.rings.write(windows.places.sqTail, takenFirst(saved));
  const most = Math.min(saved.sq_entries, saved.cq_entries);
  let waiting = 0;
  for (const segment of segmentsOf(saved)) {
    const { what, count, taken } = segment;
    if (what === "skip") windows.skipCompletions();
    if (what === "drop") windows.dropEntries();
    const step = what === "drop" ? 1 : what === "post" ? Math.min(POSTED_AT_ONCE, most) : most;
    const around = { saved, windows, ring, segment, waiting };
    const whole = Math.floor(count / (step * BATCHES));
    if (whole > 0) {
      const program = programOf(around, { step, batches: BATCHES });
      for (let index = 0; index < whole; index++) ring.run(program);
    }
    const rest = count - whole * step * BATCHES;
    const batches = Math.floor(rest / step);
    if (batches > 0) ring.run(programOf(around, { step, batches }));
    const last = rest - batches * step;
    const before = taken ? waiting : waiting + batches * step;
    if (last > 0) ring.run(programOf({ ...around, waiting: before }, { step: last, batches: 1 }));
    if (!taken && (what === "request" || what === "post")) waiting += count;
  }
  windows.finish();
}

interface Around {
  readonly saved: RepriseIoUringEntry;
  readonly windows: RingWindows;
  readonly ring: ThreadRing;
  readonly segment: Segment;
  /** Completions that wait already. */
  readonly waiting: number;
}

interface Batches {
  readonly step: number;
  readonly batches: number;
}

function programOf(around: Around, { step, batches }: Batches): Program {
  const { saved, windows, ring, segment } = around;
  const { what, taken } = segment;
  const program = new Program();
  const label = `bring io_uring ring ${saved.id} to its counters`;
  const { cqHead, cqTail } = windows.places;
  const word = (at: number): Pointer =>
    program.data(iovecs([{ address: ring.rings + at, length: 4 }]));
  const [from, to] = [word(cqTail), word(cqHead)];
  const self = program.call("getpid", []);
  const poster = what === "post" ? makePoster(program, around, { self, label }) : undefined;
  for (let index = 0; index < batches; index++) {
    const submitted = poster?.fd ?? ring.fd;
    const expect = what === "drop" ? 0 : step;
    program.call("io_uring_enter", [submitted, step, 0, 0, 0, 0], { label, expect });
    if (poster !== undefined) {
      // What others post is put into the queue only when the thread asks for it (IORING_SETUP_DEFER_TASKRUN).
      const wanted = taken ? step : around.waiting + (index + 1) * step;
      const flags = uring.IORING_ENTER_GETEVENTS;
      program.call("io_uring_enter", [ring.fd, 0, wanted, flags, 0, 0], { label });
    }
    if (taken) program.call("process_vm_writev", [self, from, 1, to, 1, 0], { label, expect: 4 });
  }
  poster?.close();
  return program;
}

/** Adds the making of a ring that posts to the other, with all its entries in the queue. */
function makePoster(
  program: Program,
  { windows, ring, segment }: Around,
  { self, label }: { readonly self: Ref; readonly label: string },
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
  const tail = Buffer.alloc(4);
  tail.writeUInt32LE(segment.count);
  write(tail, queue, windows.places.sqTail);
  return {
    fd,
    close: () => {
      program.call("munmap", [queue, PAGE_SIZE], { label });
      program.call("munmap", [places, entries.length], { label });
      program.call("close", [fd], { label });
    },
  };
}

const IOVEC_LENGTH = 8;
