// Memory that is filled when it is touched first (restore --lazy-pages): a userfaultfd in the task, over its private anonymous
// memory, which is given to the lazy-pages daemon. See userfaultfd(2).

import { RepriseError } from "../../errors.ts";
import type { PlacedPages } from "../../images/page-places.ts";
import { PE_LAZY, type PageRun } from "../../images/pagemap.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { F_DUPFD_CLOEXEC, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { MAP_HUGETLB, MAP_LOCKED, PAGE_SIZE } from "../../sys/abi/mman.ts";
import {
  UFFD_API,
  UFFD_FEATURE_EVENT_FORK,
  UFFD_FEATURE_EVENT_REMAP,
  UFFD_FEATURE_EVENT_REMOVE,
  UFFD_FEATURE_EVENT_UNMAP,
  UFFDIO_API,
  UFFDIO_API_SIZE,
  UFFDIO_REGISTER,
  UFFDIO_REGISTER_MODE_MISSING,
  UFFDIO_REGISTER_SIZE,
  USERFAULTFD_IOC_NEW,
} from "../../sys/abi/userfault.ts";
import { syscall } from "../../sys/ffi.ts";
import { writeU64, type MemoryRange } from "../../sys/memory.ts";
import type { Program, Ref } from "../../tracee/program.ts";
import {
  VMA_AIORING,
  VMA_ANON_PRIVATE,
  VMA_GUARD,
  VMA_VDSO,
  VMA_VSYSCALL,
  VMA_VVAR,
} from "./vma.ts";

/** Whether an area's pages may come later: private anonymous memory that is not locked, and nothing of the kernel's. */
export function canBeLazy({ status, flags }: VmaEntry): boolean {
  const special = VMA_VDSO | VMA_VVAR | VMA_VSYSCALL | VMA_AIORING | VMA_GUARD;
  return (
    (status & VMA_ANON_PRIVATE) !== 0 &&
    (status & special) === 0 &&
    (flags & (MAP_LOCKED | MAP_HUGETLB)) === 0
  );
}

/** A task's pages, parted into those that a restore reads and those that come later. */
export interface PartedPages {
  readonly now: readonly PlacedPages[];
  /** Cut at the borders of areas, ascending. */
  readonly later: readonly MemoryRange[];
}

/**
 * Parts the pages of a task. `left` are runs that have no bytes in the images.
 * @throws RepriseError BAD_IMAGE when a run without bytes is in memory that cannot wait
 */
export function partPages(
  placed: readonly PlacedPages[],
  left: readonly PageRun[],
  vmas: readonly VmaEntry[],
): PartedPages {
  const areas = vmas.filter(canBeLazy);
  const later: MemoryRange[] = [];
  for (const run of left) {
    const range = { address: run.vaddr, length: run.pages * PAGE_SIZE };
    const parts = inAreas(range, areas);
    if (parts.reduce((sum, { length }) => sum + length, 0) !== range.length) {
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore memory ${run.vaddr.toString(16)}: it was left to a lazy-pages server, and cannot be filled later`,
      );
    }
    later.push(...parts);
  }
  const now = placed.map((file) => {
    // In a chain, what the parents have is read at once, as CRIU does it.
    if (file.depth > 0) return file;
    const places = file.places.filter((place) => {
      const parts = (place.flags & PE_LAZY) === 0 ? [] : inAreas(place, areas);
      if (parts.reduce((sum, { length }) => sum + length, 0) !== place.length) return true;
      later.push(...parts);
      return false;
    });
    return { ...file, places };
  });
  return { now, later: later.sort((a, b) => a.address - b.address) };
}

/** The parts of a range that lie in areas, which ascend. */
function inAreas({ address, length }: MemoryRange, areas: readonly VmaEntry[]): MemoryRange[] {
  const end = address + length;
  const parts: MemoryRange[] = [];
  for (let index = firstBehind(areas, address); index < areas.length; index++) {
    const area = areas[index] as VmaEntry;
    if (area.start >= end) break;
    const from = Math.max(address, area.start);
    parts.push({ address: from, length: Math.min(end, area.end) - from });
  }
  return parts;
}

function firstBehind(areas: readonly VmaEntry[], address: number): number {
  let low = 0;
  let high = areas.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((areas[middle] as VmaEntry).end <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The areas in which pages are to come. Both ascend; no range reaches over the end of an area. */
export function lazyAreas(areas: readonly VmaEntry[], later: readonly MemoryRange[]): VmaEntry[] {
  const lazy = areas.filter(canBeLazy);
  const found = new Set(later.map(({ address }) => lazy[firstBehind(lazy, address)]));
  return lazy.filter((area) => found.has(area));
}

/** What the daemon has to follow, so that memory keeps its content when a task moves, unmaps or forks it. */
const FEATURES =
  UFFD_FEATURE_EVENT_FORK |
  UFFD_FEATURE_EVENT_REMAP |
  UFFD_FEATURE_EVENT_REMOVE |
  UFFD_FEATURE_EVENT_UNMAP;

/**
 * Adds the calls that make a userfaultfd over the task's memory.
 *
 * @param device Descriptor of /dev/userfaultfd, for a task that may not call userfaultfd(2): the root of a user namespace.
 * @returns the descriptor, at or above `firstFd`, to be copied from the task for `watchMissing`
 */
export function makeUserfault(
  program: Program,
  { firstFd, device }: { readonly firstFd: number; readonly device: number | undefined },
): Ref {
  const label = "prepare memory that is filled later";
  const hint =
    "userfaultfd needs CAP_SYS_PTRACE, or /dev/userfaultfd (Linux 6.1) in a user namespace; or restore without --lazy-pages.";
  const flags = O_CLOEXEC | O_NONBLOCK;
  const made =
    device === undefined
      ? program.call("userfaultfd", [flags], { label, hint })
      : program.call("ioctl", [device, USERFAULTFD_IOC_NEW, flags], { label, hint });
  const fd = program.call("fcntl", [made, F_DUPFD_CLOEXEC, firstFd], { label });
  program.call("close", [made], { label });
  return fd;
}

/**
 * Puts a userfaultfd over the areas that have pages to come. Done from outside: to be told of forks takes CAP_SYS_PTRACE of the
 * initial user namespace (fs/userfaultfd.c, userfaultfd_api).
 *
 * @throws RepriseError SYSCALL
 */
export function watchMissing(userfault: number, areas: readonly VmaEntry[]): void {
  const api = Buffer.alloc(UFFDIO_API_SIZE);
  writeU64(api, 0, UFFD_API);
  writeU64(api, 8, FEATURES);
  syscall("ioctl", userfault, UFFDIO_API, api);
  for (const { start, end } of areas) {
    const register = Buffer.alloc(UFFDIO_REGISTER_SIZE);
    writeU64(register, 0, start);
    writeU64(register, 8, end - start);
    writeU64(register, 16, UFFDIO_REGISTER_MODE_MISSING);
    syscall("ioctl", userfault, UFFDIO_REGISTER, register);
  }
}
