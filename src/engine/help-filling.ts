// A task that has much memory is helped to fill it: it reads most of it itself, in its program, and the engine, which would only
// wait, copies the rest into it at the same time. Most of the work is page faults, which two processors can share. Only what the
// task could write itself is the engine's to fill: nothing that happens to such an area later (locks, advice) is in its way.

import { closeSync, openSync, readSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { PagePlace, PlacedPages } from "../images/page-places.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { isSegment } from "../objects/ipc/shm.ts";
import { alignedWindow } from "../objects/memory/page-sink.ts";
import { readsDirectly } from "../objects/memory/read-pages.ts";
import { isMapped, VMA_ANON_PRIVATE } from "../objects/memory/vma.ts";
import { MAP_HUGETLB, PAGE_SIZE, PROT_READ, PROT_WRITE } from "../sys/abi/mman.ts";
import { trySyscall } from "../sys/ffi.ts";
import { writeMemory, type MemoryRange } from "../sys/memory.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Below this a task is done before help would pay. */
const FROM_BYTES = 64 * 1024 * 1024;
/**
 * The engine's part. A page takes it twice what it takes the task, which reads past the page cache and needs no copy of it. What is
 * in the page cache the task has to copy, too, but only once.
 */
const SHARE = { direct: 1 / 3, cached: 0.38 };
/** Bytes copied at a time: they stay in the processor's cache. */
const PORTION = 1024 * 1024;
/** How far the disk is ahead, and what one request may ask of it: the kernel cuts larger ones (force_page_cache_ra). */
const AHEAD = 64 * PORTION;
const REQUEST = 2 * PORTION;

const POSIX_FADV_WILLNEED = 3;

/** What the engine copies into a task. */
export class FillingHelp {
  readonly pid: number;
  /** What is left for the task. */
  readonly own: readonly PlacedPages[];
  /** The areas that the engine writes to, which must be there first. */
  readonly areas: ReadonlySet<VmaEntry>;
  readonly #places: readonly PagePlace[];
  readonly #fd: number;
  /** To where in the file the disk has been asked for. */
  #asked: number;

  /** Undefined when no task needs help, or several do and are at work side by side anyway. */
  static of(plan: RestorePlan, imagesDir: string): FillingHelp | undefined {
    if (availableParallelism() < 2) return undefined;
    const big = [...plan.tasks.values()].filter(
      ({ memory }) => bytesOf(memory.latePages.flatMap(({ places }) => places)) >= FROM_BYTES,
    );
    const [task] = big;
    if (task === undefined || big.length > 1 || !mapsFreely(task)) return undefined;
    const file = largestFile(task);
    if (file === undefined) return undefined;
    const isDirect = readsDirectly(join(imagesDir, file.name), bytesOf(file.places));
    const parted = partPages(task, isDirect ? SHARE.direct : SHARE.cached);
    return parted === undefined ? undefined : new FillingHelp(task, { ...parted, imagesDir });
  }

  private constructor(
    { pid, mm }: TaskPlan,
    { own, name, places, imagesDir }: Parted & { readonly imagesDir: string },
  ) {
    this.pid = pid;
    this.own = own;
    const ranges = places.map(toRange);
    this.areas = new Set(mm.vmas.filter((vma) => isWritable(vma) && touches(vma, ranges)));
    this.#places = places;
    this.#fd = openSync(join(imagesDir, name), "r");
    this.#asked = places[0]?.offset ?? 0;
    this.#askAhead(this.#asked);
    log.debug(`${bytesOf(places)} bytes of pid ${pid} are copied by the engine`);
  }

  /** Fills the engine's part. @param outerPid the task in the engine's pid namespace */
  fill(outerPid: number): void {
    const window = alignedWindow();
    for (const { ranges, offset, length } of portions(this.#places)) {
      this.#askAhead(offset);
      const bytes = window.subarray(0, length);
      this.#read(bytes, offset);
      writeMemory(outerPid, ranges, bytes);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #askAhead(from: number): void {
    this.#asked = Math.max(this.#asked, from);
    for (; this.#asked < from + AHEAD; this.#asked += REQUEST)
      trySyscall("fadvise64", this.#fd, this.#asked, REQUEST, POSIX_FADV_WILLNEED);
  }

  #read(bytes: Buffer, offset: number): void {
    for (let done = 0; done < bytes.length;) {
      const count = readSync(this.#fd, bytes, done, bytes.length - done, offset + done);
      if (count === 0)
        throw new RepriseError("BAD_IMAGE", `a pages file ends before ${offset + bytes.length}`);
      done += count;
    }
  }
}

interface Parted {
  readonly own: readonly PlacedPages[];
  readonly name: string;
  readonly places: readonly PagePlace[];
}

type Filled = {
  readonly mm: Pick<TaskPlan["mm"], "vmas">;
  readonly memory: Pick<TaskPlan["memory"], "latePages">;
};

function largestFile({ memory: { latePages } }: Filled): PlacedPages | undefined {
  return latePages.toSorted((a, b) => bytesOf(b.places) - bytesOf(a.places))[0];
}

/** Takes the engine's part off the end of the task's largest file. */
export function partPages(task: Filled, share: number): Parted | undefined {
  const { latePages } = task.memory;
  const total = bytesOf(latePages.flatMap(({ places }) => places));
  const largest = largestFile(task);
  if (largest === undefined) return undefined;
  const others = task.mm.vmas.filter((vma) => !isWritable(vma));
  const places: PagePlace[] = [];
  const left: PagePlace[] = [];
  let room = Math.floor((total * share) / PAGE_SIZE) * PAGE_SIZE;
  for (const place of largest.places.toReversed()) {
    const length = room > 0 && !touches(toRange(place), others) ? Math.min(room, place.length) : 0;
    const kept = place.length - length;
    room -= length;
    if (kept > 0) left.push({ ...place, length: kept });
    if (length === 0) continue;
    const [address, offset] = [place.address + kept, place.offset + kept];
    places.push({ ...place, address, offset, length });
  }
  if (places.length === 0) return undefined;
  const rest = { ...largest, places: left.toReversed() };
  const own = latePages.map((file) => (file === largest ? rest : file));
  return { own, name: largest.name, places: places.toReversed() };
}

/** What is read at once: places that follow each other in the file. */
export function* portions(
  places: readonly PagePlace[],
): Generator<{ readonly ranges: MemoryRange[]; readonly offset: number; readonly length: number }> {
  let ranges: MemoryRange[] = [];
  let start = 0;
  let end = 0;
  for (const place of places) {
    for (let done = 0; done < place.length;) {
      const offset = place.offset + done;
      if (ranges.length > 0 && (offset !== end || end - start === PORTION)) {
        yield { ranges, offset: start, length: end - start };
        ranges = [];
      }
      if (ranges.length === 0) start = end = offset;
      const length = Math.min(place.length - done, PORTION - (end - start));
      ranges.push({ address: place.address + done, length });
      end += length;
      done += length;
    }
  }
  if (ranges.length > 0) yield { ranges, offset: start, length: end - start };
}

/** Whether a task's areas can be made in any order: no creator's areas and no attached segments are in the way. */
function mapsFreely({ later, memory, mm }: TaskPlan): boolean {
  return later.length === 0 && memory.foreign.length === 0 && !mm.vmas.some(isSegment);
}

/** Ordinary memory that its task may write to, and whose place is nobody's concern. */
function isWritable(vma: VmaEntry): boolean {
  const access = PROT_READ | PROT_WRITE;
  return (
    isMapped(vma) &&
    (vma.status & VMA_ANON_PRIVATE) !== 0 &&
    (vma.prot & access) === access &&
    (vma.flags & MAP_HUGETLB) === 0 &&
    vma.policy === undefined
  );
}

interface Range {
  readonly start: number;
  readonly end: number;
}

/** Whether something touches any of the ranges, which ascend. */
function touches(what: Range, ranges: readonly Range[]): boolean {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((ranges[middle] as Range).end <= what.start) low = middle + 1;
    else high = middle;
  }
  const first = ranges[low];
  return first !== undefined && first.start < what.end;
}

function toRange({ address, length }: PagePlace): Range {
  return { start: address, end: address + length };
}

function bytesOf(places: readonly PagePlace[]): number {
  return places.reduce((sum, { length }) => sum + length, 0);
}
