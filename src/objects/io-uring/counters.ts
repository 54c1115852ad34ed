// Bringing a new ring to where the old one was. The kernel counts what it took and what it completed by itself (cached_sq_head,
// cached_cq_tail in io_uring/io_uring.c) and writes these counters into the ring; programs keep copies of them. So a new ring does as many
// empty requests as the old one did: its entries are zeros, which is IORING_OP_NOP, and the tail may lie far ahead. Then all of its
// memory is as it was.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { errnoName } from "../../sys/errno.ts";
import { memoryAt, syscall, trySyscall } from "../../sys/ffi.ts";

/** The engine's descriptors of a new ring and of its memory. */
export interface NewRing {
  readonly id: number;
  readonly fd: number;
  readonly memory: number;
}

/**
 * Gives a new ring the counters and the content of the saved one.
 *
 * @throws RepriseError SYSCALL
 */
export function bringToState(saved: RepriseIoUringEntry, made: NewRing): void {
  using rings = new Window(made.memory, { offset: 0, size: saved.rings_size });
  using entries = new Window(made.memory, {
    offset: uring.IORING_OFF_SQES,
    size: saved.entries_size,
  });
  new Advance(saved, { made, rings, entries }).run();
  rings.fill(saved.rings);
  entries.fill(saved.entries);
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

  writeByte(at: number, value: number): void {
    this.#bytes.writeUInt8(value, at);
  }

  /** Bytes from the beginning on, zeros behind them. */
  fill(bytes: Uint8Array): void {
    this.#bytes.fill(0, bytes.length);
    this.#bytes.set(bytes.subarray(0, this.#bytes.length));
  }

  [Symbol.dispose](): void {
    syscall("munmap", this.#address, this.#bytes.length);
  }
}

interface Parts {
  readonly made: NewRing;
  readonly rings: Window;
  readonly entries: Window;
}

class Advance {
  readonly #saved: RepriseIoUringEntry;
  readonly #made: NewRing;
  readonly #rings: Window;
  readonly #entries: Window;
  readonly #at: Readonly<Record<"sqTail" | "sqArray" | "cqHead" | "cqTail", number>>;
  /** Where the program will take its next completion from. */
  readonly #finalHead: number;
  #taken = 0;
  #completed = 0;

  constructor(saved: RepriseIoUringEntry, { made, rings, entries }: Parts) {
    this.#saved = saved;
    this.#made = made;
    this.#rings = rings;
    this.#entries = entries;
    const [sq, cq] = [Buffer.from(saved.sq_off), Buffer.from(saved.cq_off)];
    this.#at = {
      sqTail: sq.readUInt32LE(uring.SQ_OFF_TAIL),
      sqArray: sq.readUInt32LE(uring.SQ_OFF_ARRAY),
      cqHead: cq.readUInt32LE(uring.CQ_OFF_HEAD),
      cqTail: cq.readUInt32LE(uring.CQ_OFF_TAIL),
    };
    const full = Buffer.alloc(saved.rings_size);
    full.set(saved.rings.subarray(0, full.length));
    this.#finalHead = full.readUInt32LE(this.#at.cqHead);
  }

  run(): void {
    const { sq_head, cq_tail, drain_disabled } = this.#saved;
    this.#rings.write(this.#at.sqTail, sq_head);
    const both = Math.min(sq_head, cq_tail);
    while (this.#taken < both) this.#submit(both - this.#taken);
    if (this.#taken < sq_head) {
      if (drain_disabled === true) this.#skipCompletions();
      else this.#drop();
    }
    if (this.#completed < cq_tail) this.#complete();
    const isThere = this.#rings.read(this.#at.cqTail) === cq_tail;
    if (!isThere) throw this.#failure(`its completions are not at ${cq_tail}`);
  }

  /** Empty requests with a completion each; at most so many as the queues hold. */
  #submit(most: number): void {
    const count = Math.min(most, this.#saved.sq_entries, this.#makeRoom());
    this.#enter(this.#made.fd, count);
    this.#taken += count;
    this.#completed += count;
  }

  /**
   * Takes completions, but none that the program has not seen: the kernel looks at the head only now and then, and believes until then
   * that it has the room that it saw (io_cqe_cache_refill).
   *
   * @returns how many the queue has room for
   */
  #makeRoom(): number {
    const head = Math.min(this.#completed, this.#headLimit());
    this.#rings.write(this.#at.cqHead, head);
    return this.#saved.cq_entries - (this.#completed - head);
  }

  /** The head of the end, as a count that does not wrap. */
  #headLimit(): number {
    const waiting = (this.#saved.cq_tail - this.#finalHead) >>> 0;
    return this.#saved.cq_tail - waiting;
  }

  /** Requests without completions, which the old ring has had as well. */
  #skipCompletions(): void {
    const { sq_entries, sq_head, entries_size } = this.#saved;
    const step =
      entries_size >= sq_entries * 2 * uring.SQE_SIZE ? 2 * uring.SQE_SIZE : uring.SQE_SIZE;
    for (let index = 0; index < sq_entries; index++)
      this.#entries.writeByte(index * step + 1, uring.IOSQE_CQE_SKIP_SUCCESS);
    while (this.#taken < sq_head) {
      const count = Math.min(sq_head - this.#taken, sq_entries);
      this.#enter(this.#made.fd, count);
      this.#taken += count;
    }
  }

  /** Entries that are dropped since the array names none that exists: so the old ring has had them. */
  #drop(): void {
    const { sq_entries, sq_head } = this.#saved;
    if (this.#at.sqArray === 0) throw this.#failure("it took more requests than it completed");
    for (let index = 0; index < sq_entries; index++)
      this.#rings.write(this.#at.sqArray + index * 4, 0xffff_ffff);
    for (; this.#taken < sq_head; this.#taken++) this.#enter(this.#made.fd, 1, 0);
  }

  /** Completions without requests of this ring (the old one had requests with several): another ring posts them. */
  #complete(): void {
    const poster = new Poster(this.#made.fd);
    try {
      while (this.#completed < this.#saved.cq_tail) {
        const most = Math.min(this.#saved.cq_tail - this.#completed, this.#makeRoom());
        this.#completed += poster.post(most, (fd, count) => this.#enter(fd, count));
      }
    } finally {
      poster.close();
    }
  }

  #enter(fd: number, count: number, expected = count): void {
    const result = trySyscall("io_uring_enter", fd, count, 0, 0, 0, 0);
    if (result === expected) return;
    throw this.#failure(
      `io_uring_enter: ${result < 0 ? errnoName(-result) : `${result} instead of ${expected}`}`,
    );
  }

  #failure(why: string): RepriseError {
    return new RepriseError("SYSCALL", `cannot restore io_uring ring ${this.#made.id}: ${why}`, {
      syscall: "io_uring_enter",
    });
  }
}

/** A ring of the engine's whose requests (IORING_OP_MSG_RING) are completions of another ring, and have none themselves. */
class Poster {
  readonly #fd: number;
  readonly #memory: number;
  #posted = 0;
  readonly #tail: number;
  readonly #rings: Window;

  constructor(target: number) {
    const params = Buffer.alloc(uring.PARAMS_SIZE);
    params.writeUInt32LE(uring.IORING_SETUP_NO_SQARRAY, uring.PARAMS_FLAGS);
    this.#fd = syscall("io_uring_setup", POSTED_AT_ONCE, params);
    this.#memory = this.#fd;
    this.#tail = params.readUInt32LE(uring.PARAMS_SQ_OFF + uring.SQ_OFF_TAIL);
    this.#rings = new Window(this.#memory, { offset: 0, size: PAGE });
    using entries = new Window(this.#memory, {
      offset: uring.IORING_OFF_SQES,
      size: POSTED_AT_ONCE * uring.SQE_SIZE,
    });
    for (let at = 0; at < POSTED_AT_ONCE * uring.SQE_SIZE; at += uring.SQE_SIZE) {
      entries.writeByte(at, uring.IORING_OP_MSG_RING);
      entries.writeByte(at + 1, uring.IOSQE_CQE_SKIP_SUCCESS);
      entries.write(at + 4, target);
    }
  }

  /** @returns how many were posted */
  post(most: number, enter: (fd: number, count: number) => void): number {
    const count = Math.min(most, POSTED_AT_ONCE);
    this.#posted += count;
    this.#rings.write(this.#tail, this.#posted);
    enter(this.#fd, count);
    return count;
  }

  close(): void {
    this.#rings[Symbol.dispose]();
    closeSync(this.#fd);
  }
}

const POSTED_AT_ONCE = 64;
const PAGE = 4096;
