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
import { addressOf, syscall, trySyscall } from "../../sys/ffi.ts";
import { readU64, writeU64, type MemoryRange } from "../../sys/memory.ts";
import type { Program, Ref } from "../../tracee/program.ts";
import { canBeLazy } from "./lazy.ts";

/** Smaller areas are compared as quickly as they are watched. */
const FROM_BYTES = 1024 * 1024;

/** The areas of a task that are worth watching. */
export function watchedAreas(vmas: readonly VmaEntry[]): VmaEntry[] {
  return vmas.filter((vma) => canBeLazy(vma) && vma.end - vma.start >= FROM_BYTES);
}

/** Adds the calls that make the userfaultfd. All may fail: then nothing is watched. */
export function watchWrites(program: Program, areas: readonly VmaEntry[]): Ref {
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
  return fd;
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
