// The content of private memory: which pages a task has of its own (PAGEMAP_SCAN, Linux 6.7; /proc/PID/pagemap before), and how
// they get into pages-N.img. How a restored task reads them back is in read-pages.ts.

import { closeSync, constants, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { PE_LAZY, PE_PRESENT, type PageRun } from "../../images/pagemap.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { readMaps } from "../../proc/maps.ts";
import type { SmapsVma } from "../../proc/smaps.ts";
import * as mm from "../../sys/abi/mman.ts";
import { EINVAL, ENOSPC, errnoName } from "../../sys/errno.ts";
import {
  addressOf,
  syscall,
  syscallError,
  syscallInBackground,
  trySyscall,
} from "../../sys/ffi.ts";
import { IOV_MAX, iovecs, readU64, writeU64, type MemoryRange } from "../../sys/memory.ts";
import type { FrozenTask } from "../task/task.ts";
import { leaveOutBreakpoints } from "./breakpoints.ts";
import { alignedWindow } from "./page-sink.ts";
import { hasPrivatePages, VMA_AIORING, VMA_ANON_PRIVATE, VMA_VDSO, type DumpedVma } from "./vma.ts";
import { ioWindows, POOL_THREADS, WINDOW } from "./windows.ts";

/** Pages of a task that go into the image, and its guard pages. */
export interface PageScan {
  readonly runs: readonly PageRun[];
  readonly guards: readonly MemoryRange[];
  /** Pages looked at: all that the private areas could hold. */
  readonly scanned: number;
  readonly pages: number;
  /** Text that has pages of its own which are not among them: breakpoints.ts. */
  readonly probed: ReadonlySet<VmaEntry>;
}

/** Finds the pages that a restore could not get from anywhere else. */
export function scanPages(task: Pick<FrozenTask, "pid">, vmas: readonly DumpedVma[]): PageScan {
  const own = vmas.map(({ entry }) => entry).filter(hasPrivatePages);
  const { dirty, guards } = scan(task.pid);
  const { runs, probed } = leaveOutBreakpoints(task.pid, vmas, intersect(own, dirty));
  return {
    runs,
    guards,
    probed,
    scanned: own.reduce((sum, { start, end }) => sum + (end - start) / mm.PAGE_SIZE, 0),
    pages: runs.reduce((sum, run) => sum + run.pages, 0),
  };
}

/** struct pm_scan_arg (include/uapi/linux/fs.h). */
const PM_SCAN_ARG_SIZE = 96;
const PM_WALK_END = 32;
/** struct page_region: start, end, categories. */
const PAGE_REGION_SIZE = 24;
const REGIONS = 4096;

interface ScanResult {
  readonly dirty: readonly MemoryRange[];
  readonly guards: readonly MemoryRange[];
}

let regionBuffer: Buffer | undefined;

function scan(pid: number): ScanResult {
  const fd = openSync(`/proc/${pid}/pagemap`, "r");
  try {
    const notOwn = mm.PAGE_IS_FILE | mm.PAGE_IS_PFNZERO;
    const own = mm.PAGE_IS_PRESENT | mm.PAGE_IS_SWAPPED;
    // One walk for both: each takes 7 ms for a gigabyte. A guard is something that is not there, and so no file's.
    const all = regions(fd, {
      anyOf: own | mm.PAGE_IS_GUARD,
      not: notOwn,
      told: mm.PAGE_IS_GUARD,
    });
    if (all !== undefined)
      return {
        dirty: all.filter(({ categories }) => categories === 0),
        guards: all.filter(({ categories }) => categories !== 0),
      };
    // Kernels before 6.15 do not know guards as a category; they have none that could be seen.
    const plain = regions(fd, { anyOf: own, not: notOwn, told: 0 });
    return { dirty: plain ?? readPagemap(fd, pid), guards: [] };
  } finally {
    closeSync(fd);
  }
}

interface Wanted {
  /** Categories of which a page must have one, and those that it must not have. */
  readonly anyOf: number;
  readonly not: number;
  /** Categories by which regions differ. */
  readonly told: number;
}

interface Region extends MemoryRange {
  /** Those of `told` that its pages have. */
  readonly categories: number;
}

/** One PAGEMAP_SCAN over the whole address space; undefined when the kernel does not know it, or a category. */
function regions(fd: number, want: Wanted): Region[] | undefined {
  regionBuffer ??= Buffer.alloc(REGIONS * PAGE_REGION_SIZE);
  const found: Region[] = [];
  let start = 0;
  while (start < mm.TASK_SIZE) {
    const arg = Buffer.alloc(PM_SCAN_ARG_SIZE);
    [
      PM_SCAN_ARG_SIZE,
      0,
      start,
      mm.TASK_SIZE,
      0,
      addressOf(regionBuffer),
      REGIONS,
      0,
      want.not,
      want.not,
      want.anyOf,
      want.told,
    ].forEach((value, index) => writeU64(arg, index * 8, value));
    const count = trySyscall("ioctl", fd, mm.PAGEMAP_SCAN, arg);
    if (count < 0) return undefined;
    for (let i = 0; i < count; i++) {
      const at = i * PAGE_REGION_SIZE;
      const address = readU64(regionBuffer, at);
      const length = readU64(regionBuffer, at + 8) - address;
      found.push({ address, length, categories: readU64(regionBuffer, at + 16) });
    }
    // Room was left: the whole range was seen. (walk_end may be old then, from a flush of the kernel's own buffer.)
    if (count < REGIONS) break;
    start = Math.max(readU64(arg, PM_WALK_END), rangeEnd(found.at(-1)));
  }
  return found;
}

/** Bits of a /proc/PID/pagemap word (Documentation/admin-guide/mm/pagemap.rst). */
const PM_PRESENT_HIGH = 0x8000_0000;
const PM_SWAP_HIGH = 0x4000_0000;
const PM_FILE_HIGH = 0x2000_0000;

/** Before Linux 6.7: one word a page. Zero pages cannot be told apart and are saved like others. */
function readPagemap(fd: number, pid: number): MemoryRange[] {
  const found: MemoryRange[] = [];
  const window = Buffer.alloc(512 * 1024);
  for (const { start, end } of mappedRanges(pid)) {
    for (let at = start; at < end;) {
      const want = Math.min(window.length, ((end - at) / mm.PAGE_SIZE) * 8);
      const got = syscall("pread64", fd, window, want, (at / mm.PAGE_SIZE) * 8);
      if (got <= 0) break;
      for (let word = 0; word < got; word += 8) {
        const high = window.readUInt32LE(word + 4);
        const own = (high & (PM_PRESENT_HIGH | PM_SWAP_HIGH)) !== 0 && (high & PM_FILE_HIGH) === 0;
        if (own) found.push({ address: at + (word / 8) * mm.PAGE_SIZE, length: mm.PAGE_SIZE });
      }
      at += (got / 8) * mm.PAGE_SIZE;
    }
  }
  return found;
}

function mappedRanges(pid: number): readonly { start: number; end: number }[] {
  return readMaps(pid).filter(({ end }) => end <= mm.TASK_SIZE);
}

/** Cuts the ranges of pages to the areas they lie in, both in ascending order. */
function intersect(vmas: readonly VmaEntry[], ranges: readonly MemoryRange[]): PageRun[] {
  const runs: PageRun[] = [];
  let next = 0;
  for (const vma of vmas) {
    if ((vma.status & (VMA_VDSO | VMA_AIORING)) !== 0) {
      // Saved whole, touched or not: CRIU compares a vdso with the kernel's at restore, and looks into rings.
      const pages = (vma.end - vma.start) / mm.PAGE_SIZE;
      addRun(runs, { vaddr: vma.start, pages, flags: pageFlags(vma) });
      continue;
    }
    while (next < ranges.length && rangeEnd(ranges[next]) <= vma.start) next++;
    for (let i = next; i < ranges.length; i++) {
      const range = ranges[i] as MemoryRange;
      if (range.address >= vma.end) break;
      const from = Math.max(range.address, vma.start);
      const to = Math.min(rangeEnd(range), vma.end);
      addRun(runs, { vaddr: from, pages: (to - from) / mm.PAGE_SIZE, flags: pageFlags(vma) });
    }
  }
  return runs;
}

function rangeEnd(range: MemoryRange | undefined): number {
  return range === undefined ? 0 : range.address + range.length;
}

/** Neighbours with equal flags become one run, as CRIU joins them. */
function addRun(runs: PageRun[], run: PageRun): void {
  const last = runs.at(-1);
  if (
    last !== undefined &&
    last.flags === run.flags &&
    last.vaddr + last.pages * mm.PAGE_SIZE === run.vaddr
  ) {
    runs[runs.length - 1] = { ...last, pages: last.pages + run.pages };
  } else {
    runs.push(run);
  }
}

/** What may be filled on demand later: anonymous memory that is not locked, and nothing of the kernel's. */
function pageFlags(vma: VmaEntry): number {
  const lazy =
    (vma.status & VMA_ANON_PRIVATE) !== 0 &&
    (vma.status & (VMA_VDSO | VMA_AIORING)) === 0 &&
    (vma.flags & mm.MAP_LOCKED) === 0;
  return lazy ? PE_LAZY | PE_PRESENT : PE_PRESENT;
}

/** From this size on it takes several threads. */
const SIDE_BY_SIDE_FROM = 4 * 1024 * 1024;
/** Bytes from which on several threads do so; with less, they would take their time from the one that makes the images. */
const MANY_THREADS_FROM = 32 * 1024 * 1024;
/** From this size on pages bypass the page cache: several times faster than a buffered write. */
export const DIRECT_FROM = 1024 * 1024;

/** Where pages are written to. */
export interface PagesTarget {
  readonly path: string;
  readonly fd: number;
  /** Takes the bytes of small files on their way, so that nobody has to read them back. */
  readonly passing?: (bytes: Uint8Array) => void;
  /** Pages are shared with other tasks since a fork, and are to stay so. @default false */
  readonly keepShared?: boolean;
}

/** Whether private memory of a task is shared with others since a fork. */
export function isSharedByFork(areas: readonly SmapsVma[]): boolean {
  return areas.some(({ shared, beyondShare }) => !shared && beyondShare > 0);
}

/**
 * Copies pages of a stopped task into its pages file. With much memory several threads copy and write, each a window at a time.
 *
 * @returns the number of bytes written.
 * @throws RepriseError SYSCALL (a full disk, say)
 */
export async function writePages(
  task: Pick<FrozenTask, "pid">,
  runs: readonly PageRun[],
  target: PagesTarget,
): Promise<number> {
  const total = runs.reduce((sum, run) => sum + run.pages * mm.PAGE_SIZE, 0);
  const direct = total >= DIRECT_FROM ? openDirect(target.path) : undefined;
  try {
    if (direct !== undefined && total > SIDE_BY_SIDE_FROM) {
      reserve(target, total);
      const threads = total > MANY_THREADS_FROM ? POOL_THREADS : 1;
      await writeSideBySide(task, batches(runs), { ...target, direct, threads });
    } else writeInTurn(task, batches(runs), { ...target, direct });
  } finally {
    if (direct !== undefined) closeSync(direct);
  }
  return total;
}

interface OpenTarget extends PagesTarget {
  /** The same file without the page cache. */
  readonly direct: number | undefined;
}

function writeInTurn(
  task: Pick<FrozenTask, "pid">,
  portions: Iterable<Batch>,
  target: OpenTarget,
): void {
  const window = alignedWindow();
  for (const { ranges, length, offset } of portions) {
    const bytes = window.subarray(0, length);
    copyOut(task, ranges, { bytes, keepShared: target.keepShared });
    target.passing?.(bytes);
    writeNow(bytes, offset, target);
  }
}

/** Nothing is under way any more when it ends, also when it fails: the task goes on then, and the file is removed. */
async function writeSideBySide(
  task: Pick<FrozenTask, "pid">,
  portions: Iterator<Batch>,
  target: OpenTarget & { readonly direct: number; readonly threads: number },
): Promise<void> {
  const failures: unknown[] = [];
  /** What has been copied passes in order. */
  let passed: Promise<void> = Promise.resolve();
  const copyAndWrite = async (index: number): Promise<void> => {
    const window =
      target.threads === 1
        ? alignedWindow()
        : ioWindows().bytes.subarray(index * WINDOW, (index + 1) * WINDOW);
    while (failures.length === 0) {
      const { value, done } = portions.next();
      if (done === true) return;
      const { ranges, length, offset } = value;
      const bytes = window.subarray(0, length);
      const copied = copyAside(task, ranges, { bytes, keepShared: target.keepShared });
      passed = passInTurn(copied, passed, () => target.passing?.(bytes));
      await passed;
      const written = await syscallInBackground("pwrite64", target.direct, bytes, length, offset);
      // What a direct write left over may not be aligned, and what it refused may be for a reason of its own.
      if (written < length) writeNow(bytes, offset, { ...target, direct: undefined });
    }
  };
  const threads = Array.from({ length: target.threads }, async (_, index) => {
    try {
      await copyAndWrite(index);
    } catch (error) {
      failures.push(error);
    }
  });
  await Promise.all(threads);
  if (failures.length > 0) throw failures[0];
}

/** Ends when nothing is under way any more, also when it fails. */
async function passInTurn(
  copied: Promise<void>,
  before: Promise<void>,
  pass: () => void,
): Promise<void> {
  await copied;
  await before;
  pass();
}

/** Writes all of it, where the kernel takes a part only, too. @throws RepriseError SYSCALL (a full disk, say) */
export function writeNow(
  bytes: Uint8Array,
  offset: number,
  { fd, path, direct }: Pick<OpenTarget, "fd" | "path" | "direct">,
): void {
  let to = direct ?? fd;
  for (let done = 0; done < bytes.length;) {
    const left = bytes.subarray(done);
    const written = trySyscall("pwrite64", to, left, left.length, offset + done);
    if (written <= 0 && (to === fd || written !== -EINVAL)) throw diskError(path, -written);
    done += Math.max(0, written);
    to = fd;
  }
}

/** Gets memory for what a small task has, so that this is not done while it stands still. */
export function prepareWindows(): void {
  // Unknown before Linux 5.14: then the pages come when they are written to.
  trySyscall("madvise", addressOf(alignedWindow()), SMALL_TASK, mm.MADV_POPULATE_WRITE);
}

const SMALL_TASK = 512 * 1024;

/** Takes room for the whole file at once: writes into it can then go on side by side, and a full disk is seen at once. */
function reserve({ fd, path }: PagesTarget, length: number): void {
  const result = trySyscall("fallocate", fd, 0, 0, length);
  if (result === -ENOSPC) throw diskError(path, ENOSPC);
}

/** What fits a window, and where in the file it goes. */
interface Batch {
  readonly ranges: readonly MemoryRange[];
  readonly length: number;
  readonly offset: number;
}

function* batches(runs: readonly PageRun[]): Generator<Batch, undefined> {
  let ranges: MemoryRange[] = [];
  let length = 0;
  let offset = 0;
  for (const run of runs) {
    const end = run.vaddr + run.pages * mm.PAGE_SIZE;
    for (let address = run.vaddr; address < end;) {
      const part = Math.min(end - address, WINDOW - length);
      ranges.push({ address, length: part });
      address += part;
      length += part;
      if (length < WINDOW && ranges.length < IOV_MAX) continue;
      yield { ranges, length, offset };
      offset += length;
      ranges = [];
      length = 0;
    }
  }
  if (length > 0) yield { ranges, length, offset };
}

/** Copies pages of a task out of it, also those that may not be read. @throws RepriseError SYSCALL */
export function copyOut(
  task: Pick<FrozenTask, "pid">,
  ranges: readonly MemoryRange[],
  { bytes, keepShared }: { readonly bytes: Uint8Array; readonly keepShared: boolean | undefined },
): void {
  const local = iovecs([{ address: addressOf(bytes), length: bytes.length }]);
  const args = [task.pid, local, 1, iovecs(ranges), ranges.length, 0] as const;
  // process_vm_readv pins pages, and the kernel gives a task a copy of its own of what is pinned and shared (gup_must_unshare).
  const isCopied = keepShared !== true && trySyscall("process_vm_readv", ...args) === bytes.length;
  if (!isCopied) readOut(task, ranges, bytes);
}

/** The same on another thread. */
async function copyAside(
  task: Pick<FrozenTask, "pid">,
  ranges: readonly MemoryRange[],
  { bytes, keepShared }: { readonly bytes: Uint8Array; readonly keepShared: boolean | undefined },
): Promise<void> {
  const local = iovecs([{ address: addressOf(bytes), length: bytes.length }]);
  const args = [task.pid, local, 1, iovecs(ranges), ranges.length, 0] as const;
  const isCopied =
    keepShared !== true &&
    (await syscallInBackground("process_vm_readv", ...args)) === bytes.length;
  if (!isCopied) readOut(task, ranges, bytes);
}

/** /proc/PID/mem reads past the protection, as debuggers do, and pins nothing; it is slower. */
function readOut(
  task: Pick<FrozenTask, "pid">,
  ranges: readonly MemoryRange[],
  bytes: Uint8Array,
): void {
  const fd = openSync(`/proc/${task.pid}/mem`, "r");
  try {
    let at = 0;
    for (const range of ranges) {
      const got = trySyscall("pread64", fd, bytes.subarray(at), range.length, range.address);
      if (got !== range.length) {
        throw new RepriseError(
          "SYSCALL",
          `cannot read memory ${range.address.toString(16)} of pid ${task.pid}: pread64: ${got < 0 ? errnoName(-got) : "short read"}`,
          { pid: task.pid, syscall: "pread64" },
        );
      }
      at += range.length;
    }
  } finally {
    closeSync(fd);
  }
}

function diskError(path: string, errno: number): RepriseError {
  const error = syscallError("pwrite64", errno, `write pages to ${path}`);
  return new RepriseError("SYSCALL", error.message, {
    syscall: "pwrite64",
    errno: errnoName(errno),
    hint: "Is the disk full? The process goes on as before; make room and try again.",
  });
}

function openDirect(path: string): number | undefined {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_DIRECT);
  } catch {
    return undefined; // the file system has no direct I/O
  }
}
