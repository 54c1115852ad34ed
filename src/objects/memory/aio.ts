// AIO rings, see io_setup(2) and fs/aio.c: a ring of completions that the kernel shares with the task. The handle of a ring is
// its address, which mremap changes, so a new ring is made anywhere and moved to its place. It gets to the old one's head by empty
// requests whose completions are taken; as many more as were waiting are not taken, and the content is written over. Requests under way at the dump come to their end before it reads the ring.
//
// CRIU's format: an area with VMA_AIORING whose pages are saved whole, and an entry in mm_entry.aios.

import { RepriseError } from "../../errors.ts";
import type { AioRingEntry, VmaEntry } from "../../images/schema/messages.generated.ts";
import * as mm from "../../sys/abi/mman.ts";
import { AF_UNIX, SOCK_STREAM } from "../../sys/abi/socket.ts";
import { writeU64, IOVEC_SIZE } from "../../sys/memory.ts";
import type { Pointer, Program } from "../../tracee/program.ts";
import { VMA_AIORING } from "./vma.ts";

/** What a restore makes of one ring. */
export interface AioRing {
  readonly address: number;
  readonly length: number;
  readonly requests: number;
  /** Where the next completion is taken from, and how many wait to be taken. */
  readonly head: number;
  readonly waiting: number;
  /** All places of the ring. */
  readonly events: Buffer;
}

/** struct aio_ring: id, nr, head, tail, magic, features, header length; then struct io_event. */
const HEADER_SIZE = 32;
const EVENT_SIZE = 32;
const RING_NR = 4;
const RING_HEAD = 8;
const RING_TAIL = 12;
const RING_MAGIC = 16;
const MAGIC = 0xa10a10a1;
/** struct iocb; all zero it reads no bytes from descriptor 0. */
const IOCB_SIZE = 64;
const IOCB_FILDES = 20;

/** The entries of a task's rings. */
export function aioEntries(vmas: readonly VmaEntry[]): AioRingEntry[] {
  return vmas
    .filter(({ status }) => (status & VMA_AIORING) !== 0)
    .map(({ start, end }) => ({
      id: start,
      // The kernel doubles the number that was asked for and adds two.
      nr_req: Math.floor((eventsIn(end - start) - 2) / 2),
      ring_len: end - start,
    }));
}

function eventsIn(length: number): number {
  return Math.floor((length - HEADER_SIZE) / EVENT_SIZE);
}

/**
 * Reads a saved ring.
 *
 * @throws RepriseError BAD_IMAGE
 */
export function planAioRing(
  pid: number,
  { id, nr_req, ring_len }: AioRingEntry,
  bytes: Buffer | undefined,
): AioRing {
  const total = eventsIn(ring_len);
  const valid =
    bytes !== undefined &&
    bytes.length === ring_len &&
    bytes.length >= mm.PAGE_SIZE &&
    bytes.readUInt32LE(RING_MAGIC) === MAGIC &&
    bytes.readUInt32LE(RING_NR) === total;
  const head = valid ? bytes.readUInt32LE(RING_HEAD) : total;
  const tail = valid ? bytes.readUInt32LE(RING_TAIL) : total;
  if (!valid || head >= total || tail >= total) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore pid ${pid}: the AIO ring at ${id.toString(16)} is not a ring`,
      { pid },
    );
  }
  return {
    address: id,
    length: ring_len,
    requests: nr_req,
    head,
    waiting: (tail - head + total) % total,
    events: bytes.subarray(HEADER_SIZE),
  };
}

/** Adds the calls that make a ring at its old address with its completions. */
export function restoreAioRing(program: Program, ring: AioRing): void {
  const { address, length, requests, head, waiting } = ring;
  const what = `the AIO ring at ${address.toString(16)}`;
  // The kernel wants a zero there.
  const made = program.data(Buffer.alloc(8));
  program.call("io_setup", [requests, made], {
    label: `make ${what}`,
    hint: "The limit on AIO requests (fs.aio-max-nr) may be reached.",
  });
  const from = { kind: "load", from: made, width: 8 } as const;
  const moved = mm.MREMAP_MAYMOVE | mm.MREMAP_FIXED;
  program.call("mremap", [from, length, length, moved, address], {
    label: `move ${what} to its place`,
    hint: "A ring's size depends on the number of processors of the machine.",
    expect: address,
  });
  if (head + waiting > 0) addEvents(program, ring, what);
}

/** Requests in one call: every ring has room for so many. */
const BATCH = 32;

function addEvents(program: Program, ring: AioRing, what: string): void {
  const { address, head, waiting, events } = ring;
  const label = `complete requests of ${what}`;
  const request = program.data(Buffer.alloc(IOCB_SIZE));
  // The pair's first descriptor is written where the request names its file; a read of nothing is complete at once.
  const fds: Pointer = { ...request, offset: request.offset + IOCB_FILDES };
  program.call("socketpair", [AF_UNIX, SOCK_STREAM, 0, fds], { label });
  const pointers = Array.from({ length: BATCH }, (_, index) => [index * 8, request] as const);
  const list = program.structure(Buffer.alloc(BATCH * 8), Object.fromEntries(pointers));
  const taken = program.output(BATCH * EVENT_SIZE);
  for (const count of batches(head)) {
    program.call("io_submit", [address, count, list], { label, expect: count });
    program.call("io_getevents", [address, count, count, taken, 0], { label, expect: count });
  }
  for (const count of batches(waiting))
    program.call("io_submit", [address, count, list], { label, expect: count });
  for (const offset of [0, 4]) {
    const place = { ...fds, offset: fds.offset + offset };
    program.call("close", [{ kind: "load", from: place, width: 4 }]);
  }
  const own = Buffer.alloc(IOVEC_SIZE);
  writeU64(own, 8, events.length);
  const target = Buffer.alloc(IOVEC_SIZE);
  writeU64(target, 0, address + HEADER_SIZE);
  writeU64(target, 8, events.length);
  const self = program.call("getpid", []);
  const source = program.structure(own, { 0: program.data(events) });
  program.call("process_vm_writev", [self, source, 1, program.data(target), 1, 0], {
    label,
    expect: events.length,
  });
}

function batches(total: number): number[] {
  const full = Array.from({ length: Math.floor(total / BATCH) }, () => BATCH);
  return total % BATCH === 0 ? full : [...full, total % BATCH];
}
