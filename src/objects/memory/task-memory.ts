// Reading pages of a task that may run, or end, meanwhile: process_vm_readv for the usual case, /proc/PID/mem page by page
// for memory without read permission and for what is not there any more. See process_vm_readv(2), proc_pid_mem(5).

import { closeSync, openSync } from "node:fs";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import { addressOf, trySyscall } from "../../sys/ffi.ts";
import { IOV_MAX, iovecs, type MemoryRange } from "../../sys/memory.ts";

/** The memory of a task. While it is open it stays the same memory, even if the task executes another program or ends. */
export class TaskMemory implements Disposable {
  readonly #pid: number;
  readonly #fd: number;

  /** Open it while the task is stopped. */
  constructor(pid: number) {
    this.#pid = pid;
    this.#fd = openSync(`/proc/${pid}/mem`, "r");
  }

  /**
   * Reads at most IOV_MAX ranges of whole pages into a buffer, one behind the other, and leaves out the pages that cannot be read.
   *
   * @returns the ranges that were read: `ranges` itself when it was all of them.
   */
  read(ranges: readonly MemoryRange[], into: Buffer): readonly MemoryRange[] {
    const length = bytesOf(ranges);
    const local = iovecs([{ address: addressOf(into), length }]);
    const call = "process_vm_readv";
    const moved = trySyscall(call, this.#pid, local, 1, iovecs(ranges), ranges.length, 0);
    return moved === length ? ranges : this.#readPieces(ranges, into);
  }

  #readPieces(ranges: readonly MemoryRange[], into: Buffer): readonly MemoryRange[] {
    const found: MemoryRange[] = [];
    let at = 0;
    for (const range of ranges) {
      const end = range.address + range.length;
      for (let address = range.address; address < end;) {
        const room = into.subarray(at, at + end - address);
        const got = trySyscall("pread64", this.#fd, room, room.length, address);
        const length = got - (got % PAGE_SIZE);
        if (got === 0) return found; // the address space is gone
        if (length > 0) {
          found.push({ address, length });
          at += length;
        }
        address += length > 0 ? length : PAGE_SIZE;
      }
    }
    const whole = found.length === ranges.length && at === bytesOf(ranges);
    return whole ? ranges : found;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** Cuts ranges into portions of at most `size` bytes and IOV_MAX ranges. */
export function* portions<T extends MemoryRange>(
  ranges: Iterable<T>,
  size: number,
): Generator<readonly (MemoryRange & { readonly of: T })[]> {
  let portion: (MemoryRange & { readonly of: T })[] = [];
  let room = size;
  for (const range of ranges) {
    for (let done = 0; done < range.length;) {
      const length = Math.min(range.length - done, room);
      portion.push({ address: range.address + done, length, of: range });
      done += length;
      room -= length;
      if (room > 0 && portion.length < IOV_MAX) continue;
      yield portion;
      portion = [];
      room = size;
    }
  }
  if (portion.length > 0) yield portion;
}

export function bytesOf(ranges: readonly MemoryRange[]): number {
  return ranges.reduce((sum, { length }) => sum + length, 0);
}
