// The other end of a task's userfaultfd: what happens to the memory that it watches, and filling it. See userfaultfd(2),
// ioctl_userfaultfd(2).

import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import {
  UFFD_EVENT_FORK,
  UFFD_EVENT_PAGEFAULT,
  UFFD_EVENT_REMAP,
  UFFD_EVENT_REMOVE,
  UFFD_EVENT_UNMAP,
  UFFD_MSG_SIZE,
  UFFDIO_COPY,
  UFFDIO_COPY_SIZE,
  UFFDIO_WAKE,
  UFFDIO_ZEROPAGE,
  UFFDIO_ZEROPAGE_SIZE,
} from "../../sys/abi/userfault.ts";
import { EAGAIN, EEXIST, ENOENT, ENOSPC, ESRCH } from "../../sys/errno.ts";
import { addressOf, syscallError, trySyscall } from "../../sys/ffi.ts";
import { readU64, writeU64, type MemoryRange } from "../../sys/memory.ts";

/** What a task does to watched memory. */
export type FaultEvent =
  /** A thread waits for a page. */
  | { readonly kind: "fault"; readonly address: number }
  /** A child has a copy of the memory, watched by a descriptor of its own. */
  | { readonly kind: "fork"; readonly userfault: number }
  | { readonly kind: "moved"; readonly from: MemoryRange; readonly to: number }
  /** Unmapped, or given back: from now on it is zero. */
  | { readonly kind: "gone"; readonly range: MemoryRange };

export class UserFault {
  readonly fd: number;
  /** The address space has no user any more. */
  isGone = false;
  #isOpen = true;

  constructor(fd: number) {
    this.fd = fd;
  }

  /** The next event, if there is one. @throws RepriseError SYSCALL */
  next(): FaultEvent | undefined {
    const message = Buffer.alloc(UFFD_MSG_SIZE);
    const got = trySyscall("read", this.fd, message, message.length);
    if (got === -EAGAIN || got === 0) return undefined;
    if (got < 0) throw syscallError("read", -got, "read from a userfaultfd");
    const event = message.readUInt8(0);
    switch (event) {
      case UFFD_EVENT_PAGEFAULT: {
        const address = readU64(message, 16);
        return { kind: "fault", address: address - (address % PAGE_SIZE) };
      }
      case UFFD_EVENT_FORK:
        return { kind: "fork", userfault: message.readInt32LE(8) };
      case UFFD_EVENT_REMAP: {
        const from = { address: readU64(message, 8), length: readU64(message, 24) };
        return { kind: "moved", from, to: readU64(message, 16) };
      }
      case UFFD_EVENT_REMOVE:
      case UFFD_EVENT_UNMAP: {
        const address = readU64(message, 8);
        return { kind: "gone", range: { address, length: readU64(message, 16) - address } };
      }
      default:
        throw syscallError("read", 0, `understand event ${event} of a userfaultfd`);
    }
  }

  /**
   * Fills memory that is missing and wakes who waits for it. Pages that are there or unmapped by now count as filled.
   *
   * @returns bytes filled; less than all, perhaps 0, when an event has to be read first
   * @throws RepriseError SYSCALL
   */
  copy(address: number, bytes: Buffer): number {
    const call = Buffer.alloc(UFFDIO_COPY_SIZE);
    let step = bytes.length;
    let done = 0;
    while (done < bytes.length && !this.isGone) {
      const length = Math.min(step, bytes.length - done);
      writeU64(call, 0, address + done);
      writeU64(call, 8, addressOf(bytes) + done);
      writeU64(call, 16, length);
      call.fill(0, 24);
      const result = trySyscall("ioctl", this.fd, UFFDIO_COPY, call);
      const copied = Math.max(0, Number(call.readBigInt64LE(32)));
      if (result === 0) done += length;
      else if (result === -EAGAIN && copied > 0) done += copied;
      else if (result === -EAGAIN) return done;
      else if (result === -EEXIST) done += this.#wake(address + done);
      // Two areas now, or none: page by page.
      else if (result === -ENOENT && length > PAGE_SIZE) step = PAGE_SIZE;
      else if (result === -ENOENT) done += PAGE_SIZE;
      else if (result === -ESRCH || result === -ENOSPC) this.isGone = true;
      else throw syscallError("ioctl", -result, `fill memory ${address.toString(16)}`);
    }
    return done;
  }

  /** Fills a page that nothing was saved for. @returns false when an event has to be read first */
  zero(address: number): boolean {
    const call = Buffer.alloc(UFFDIO_ZEROPAGE_SIZE);
    writeU64(call, 0, address);
    writeU64(call, 8, PAGE_SIZE);
    const result = trySyscall("ioctl", this.fd, UFFDIO_ZEROPAGE, call);
    if (result === -EAGAIN) return false;
    if (result === -EEXIST || result === -ENOENT) this.#wake(address);
    else if (result === -ESRCH || result === -ENOSPC) this.isGone = true;
    else if (result < 0)
      throw syscallError("ioctl", -result, `clear memory ${address.toString(16)}`);
    return true;
  }

  #wake(address: number): number {
    const range = Buffer.alloc(16);
    writeU64(range, 0, address);
    writeU64(range, 8, PAGE_SIZE);
    trySyscall("ioctl", this.fd, UFFDIO_WAKE, range);
    return PAGE_SIZE;
  }

  close(): void {
    if (this.#isOpen) trySyscall("close", this.fd);
    this.#isOpen = false;
  }
}
