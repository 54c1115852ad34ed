// Which pages a running task writes: a userfaultfd in asynchronous write-protect mode over its private anonymous memory
// (Linux 6.7). A write to a protected page takes the protection away by itself, and PAGEMAP_SCAN tells which have lost
// it. Nothing stays: when the descriptor is closed, also by the engine's death, the kernel forgets all of it. See
// Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst.

import { closeSync, openSync } from "node:fs";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as mm from "../../sys/abi/mman.ts";
import {
  UFFD_API,
  UFFD_FEATURE_PAGEFAULT_FLAG_WP,
  UFFD_FEATURE_WP_ASYNC,
  UFFD_FEATURE_WP_UNPOPULATED,
  UFFDIO_API,
  UFFDIO_API_SIZE,
  UFFDIO_REGISTER,
  UFFDIO_REGISTER_MODE_WP,
  UFFDIO_REGISTER_SIZE,
} from "../../sys/abi/userfault.ts";
import { FUTEX_WAIT } from "../../sys/abi/sched.ts";
import { addressOf, syscall, trySyscall } from "../../sys/ffi.ts";
import { readU64, writeU64, type MemoryRange } from "../../sys/memory.ts";
import { openPidfd } from "../../sys/process.ts";
import type { Pointer, Program, Ref } from "../../tracee/program.ts";
import type { RunningProgram } from "../../tracee/run.ts";
import { canBeLazy } from "./lazy.ts";

/** Smaller areas are compared as quickly as they are watched. */
const FROM_BYTES = 1024 * 1024;

/** The areas of a task that are worth watching. */
export function watchedAreas(vmas: readonly VmaEntry[]): VmaEntry[] {
  return vmas.filter((vma) => canBeLazy(vma) && vma.end - vma.start >= FROM_BYTES);
}

/** How long a task waits at most for the engine to copy its userfaultfd, and how often it looks whether that is done. */
const PATIENCE_MS = 100;
const LOOK_EVERY_NS = 200_000;

/** A program that makes a userfaultfd, waits for its being copied, and closes it. */
export interface WatchRequest {
  /** The descriptor; negative where there is none. */
  readonly fd: Ref;
  /** A call behind it that does not give 0. */
  readonly isMade: Ref;
  /** A word on which the program waits as long as it is 0. */
  readonly isCopied: Pointer;
}

/**
 * Adds the calls that make the userfaultfd. All may fail: then nothing is watched. It is one program, which goes on by itself after
 * a while: when the engine dies meanwhile, no descriptor is left in the task.
 */
export function watchWrites(program: Program, areas: readonly VmaEntry[]): WatchRequest {
  const may = { mayFail: true };
  const fd = program.call("userfaultfd", [O_CLOEXEC | O_NONBLOCK], may);
  const api = Buffer.alloc(UFFDIO_API_SIZE);
  writeU64(api, 0, UFFD_API);
  const features =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
  writeU64(api, 8, features);
  program.call("ioctl", [fd, UFFDIO_API, program.data(api)], may);
  for (const { start, end } of areas) {
    const register = Buffer.alloc(UFFDIO_REGISTER_SIZE);
    writeU64(register, 0, start);
    writeU64(register, 8, end - start);
    writeU64(register, 16, UFFDIO_REGISTER_MODE_WP);
    program.call("ioctl", [fd, UFFDIO_REGISTER, program.data(register)], may);
  }
  const isMade = program.call("getpid", []);
  const isCopied = program.data(Buffer.alloc(8));
  const moment = Buffer.alloc(16);
  writeU64(moment, 8, LOOK_EVERY_NS);
  const timeout = program.data(moment);
  program.repeat((PATIENCE_MS * 1_000_000) / LOOK_EVERY_NS, () => {
    program.call("futex", [isCopied, FUTEX_WAIT, 0, timeout], may);
  });
  program.call("close", [fd], may);
  return { fd, isMade, isCopied };
}

/**
 * Takes a copy of the userfaultfd while the program runs that makes it.
 *
 * @returns undefined where there is none, or the task did not wait long enough.
 * @throws RepriseError SYSCALL
 */
export function copyWatch(
  pid: number,
  running: RunningProgram,
  { fd, isMade, isCopied }: WatchRequest,
): WriteWatch | undefined {
  const end = performance.now() + PATIENCE_MS;
  while (running.result(isMade) === 0) if (performance.now() > end) return undefined;
  try {
    const made = running.result(fd);
    const pidfd = openPidfd(pid);
    try {
      const copy = made < 0 ? -1 : trySyscall("pidfd_getfd", pidfd, made, 0);
      return copy < 0 ? undefined : new WriteWatch(pid, copy);
    } finally {
      trySyscall("close", pidfd);
    }
  } finally {
    running.put(isCopied, Buffer.from([1]));
  }
}

/** struct pm_scan_arg and struct page_region (include/uapi/linux/fs.h). */
const PM_SCAN_ARG_SIZE = 96;
const PM_WALK_END = 32;
const PAGE_REGION_SIZE = 24;
const REGIONS = 4096;

/** Watches the writes of one task from `protect` on. */
export class WriteWatch implements Disposable {
  readonly #userfault: number;
  readonly #pagemap: number;

  /** @param userfault a copy of the descriptor that `watchWrites` made */
  constructor(pid: number, userfault: number) {
    this.#userfault = userfault;
    this.#pagemap = openSync(`/proc/${pid}/pagemap`, "r");
  }

  /** Begins. @throws RepriseError SYSCALL */
  protect(): void {
    for (let start = 0; start < mm.TASK_SIZE;) {
      const arg = scanArgument({ start, flags: mm.PM_SCAN_WP_MATCHING, inverted: 0, all: 0 });
      syscall("ioctl", this.#pagemap, mm.PAGEMAP_SCAN, arg);
      const end = readU64(arg, PM_WALK_END);
      if (end <= start) break;
      start = end;
    }
  }

  /** Pages that were there at `protect` and have not been written since. Ascending. @throws RepriseError SYSCALL */
  untouched(): MemoryRange[] {
    return this.#find({ flags: 0, inverted: mm.PAGE_IS_WRITTEN });
  }

  /**
   * Pages that have been written since `protect`, or are new. They are protected again, so that `untouched` has them until they are
   * written once more. The task must stand still: what the kernel writes into pages that it holds for direct I/O is not seen.
   * @throws RepriseError SYSCALL
   */
  protectAgain(): MemoryRange[] {
    return this.#find({ flags: mm.PM_SCAN_WP_MATCHING, inverted: 0 });
  }

  #find(want: Pick<Scan, "flags" | "inverted">): MemoryRange[] {
    const found: MemoryRange[] = [];
    const regions = Buffer.alloc(REGIONS * PAGE_REGION_SIZE);
    const all = mm.PAGE_IS_WPALLOWED | mm.PAGE_IS_WRITTEN;
    for (let start = 0; start < mm.TASK_SIZE;) {
      const arg = scanArgument({ ...want, start, all, regions });
      const count = syscall("ioctl", this.#pagemap, mm.PAGEMAP_SCAN, arg);
      for (let at = 0; at < count * PAGE_REGION_SIZE; at += PAGE_REGION_SIZE) {
        const address = readU64(regions, at);
        found.push({ address, length: readU64(regions, at + 8) - address });
      }
      const last = found.at(-1);
      if (count < REGIONS || last === undefined) break;
      start = Math.max(readU64(arg, PM_WALK_END), last.address + last.length);
    }
    return found;
  }

  [Symbol.dispose](): void {
    closeSync(this.#pagemap);
    trySyscall("close", this.#userfault);
  }
}

interface Scan {
  readonly start: number;
  readonly flags: number;
  /** Categories that must not be. */
  readonly inverted: number;
  /** Categories that count, all of them. */
  readonly all: number;
  readonly regions?: Buffer;
}

function scanArgument({ start, flags, inverted, all, regions }: Scan): Buffer {
  const arg = Buffer.alloc(PM_SCAN_ARG_SIZE);
  const there = mm.PAGE_IS_PRESENT | mm.PAGE_IS_SWAPPED;
  const vector = regions === undefined ? [0, 0] : [addressOf(regions), REGIONS];
  [
    PM_SCAN_ARG_SIZE,
    flags,
    start,
    mm.TASK_SIZE,
    0,
    ...vector,
    0,
    inverted,
    all,
    there,
    regions === undefined ? 0 : there,
  ].forEach((value, index) => writeU64(arg, index * 8, value));
  return arg;
}
