// Incremental dumps: which pages are as the parent set has them. Pages are compared with the parent's bytes, so the answer
// is right whatever happened between the two dumps: another process under the same pid, a parent that CRIU made, a
// kernel without soft-dirty bits. A page that is the same becomes PE_PARENT; everything else is written.

import { closeSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { placePages, type PagePlace } from "../../images/page-places.ts";
import { PE_PARENT, type PagemapKind, type PageRun } from "../../images/pagemap.ts";
import type { PagemapSet } from "../../images/pagemap-set.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import type { MemoryRange } from "../../sys/memory.ts";
import { bytesOf, portions, type TaskMemory } from "./task-memory.ts";

/** Bytes compared at a time: what a CPU keeps in its second-level cache. */
const WINDOW = 512 * 1024;

/** A page of the parent chain: where its bytes are. */
interface ParentPlace extends PagePlace {
  readonly fd: number;
}

/** The pages of one pagemap of a parent set and of the parents' parents. */
export class ParentPages implements Disposable {
  readonly #fds: number[] = [];
  /** Ascending. */
  readonly #places: readonly ParentPlace[];

  /**
   * @param parent the set before the one that is being written
   * @throws RepriseError BAD_IMAGE, IMAGE_MISSING for a broken chain; system errors of open(2)
   */
  static open(
    parent: PagemapSet,
    { kind, id }: { readonly kind: PagemapKind; readonly id: number },
  ): ParentPages | undefined {
    const pagemap = parent.readPagemap(kind, id);
    if (pagemap === undefined) return undefined;
    // Pages that a dump left to a lazy-pages server cannot be compared: they are written again.
    const placed = placePages(parent, { kind, id, pagemap }, () => undefined);
    return new ParentPages(placed.map((file) => ({ ...file, path: join(parent.dir, file.name) })));
  }

  private constructor(files: readonly { path: string; places: readonly PagePlace[] }[]) {
    try {
      this.#places = files
        .flatMap(({ path, places }) => {
          const fd = openSync(path, "r");
          this.#fds.push(fd);
          return places.map((place) => ({ ...place, fd }));
        })
        .sort((a, b) => a.address - b.address);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * The parts of runs whose pages are in the parent set, byte for byte. Ascending.
   * @param except runs in these ranges are not looked at
   */
  equalRanges(
    runs: readonly PageRun[],
    { memory, except }: { memory: TaskMemory; except: readonly MemoryRange[] },
  ): MemoryRange[] {
    const compared = runs.filter((run) => !except.some((range) => isIn(run, range)));
    return [...this.#equalRanges(compared, memory)];
  }

  *#equalRanges(runs: readonly PageRun[], memory: TaskMemory): Generator<MemoryRange> {
    const now = Buffer.allocUnsafe(WINDOW);
    const then = Buffer.allocUnsafe(WINDOW);
    for (const portion of portions(overlaps(runs, this.#places), WINDOW)) {
      if (memory.read(portion, now) === portion && readPlaces(portion, then)) {
        yield* equalPages(portion, now, then);
        continue;
      }
      // Something in it cannot be read: one range after the other.
      for (const range of portion) {
        const one = [range];
        if (memory.read(one, now) === one && readPlaces(one, then))
          yield* equalPages(one, now, then);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}

function isIn({ vaddr, pages }: PageRun, { address, length }: MemoryRange): boolean {
  return vaddr < address + length && address < vaddr + pages * PAGE_SIZE;
}

interface Overlap extends MemoryRange {
  readonly place: ParentPlace;
}

type Portion = readonly (MemoryRange & { readonly of: Overlap })[];

/** Both ascend. */
function* overlaps(runs: readonly PageRun[], places: readonly ParentPlace[]): Generator<Overlap> {
  let next = 0;
  for (const run of runs) {
    const end = run.vaddr + run.pages * PAGE_SIZE;
    for (; next < places.length; next++) {
      const place = places[next] as ParentPlace;
      const placeEnd = place.address + place.length;
      const from = Math.max(place.address, run.vaddr);
      const to = Math.min(placeEnd, end);
      if (from < to) yield { address: from, length: to - from, place };
      if (placeEnd > end) break;
    }
  }
}

/** Reads the parent's bytes of a portion; false when they are not all there. */
function readPlaces(portion: Portion, into: Buffer): boolean {
  let at = 0;
  for (let first = 0; first < portion.length;) {
    const start = positionOf(portion[first] as Portion[number]);
    let { length } = start;
    let next = first + 1;
    for (; next < portion.length; next++) {
      const { fd, offset, length: more } = positionOf(portion[next] as Portion[number]);
      if (fd !== start.fd || offset !== start.offset + length) break;
      length += more;
    }
    if (!readAll(start.fd, into.subarray(at, at + length), start.offset)) return false;
    at += length;
    first = next;
  }
  return true;
}

function positionOf({ address, length, of: { place } }: Portion[number]): {
  fd: number;
  offset: number;
  length: number;
} {
  return { fd: place.fd, offset: place.offset + address - place.address, length };
}

function readAll(fd: number, into: Buffer, offset: number): boolean {
  for (let done = 0; done < into.length;) {
    const count = readSync(fd, into, done, into.length - done, offset + done);
    if (count === 0) return false;
    done += count;
  }
  return true;
}

/** Pages compared at once before they are compared one by one. */
const CHUNK = 16 * PAGE_SIZE;

function* equalPages(portion: Portion, now: Buffer, then: Buffer): Generator<MemoryRange> {
  const total = bytesOf(portion);
  if (isEqual(now, then, 0, total)) {
    yield* portion;
    return;
  }
  let base = 0;
  for (const { address, length } of portion) {
    for (let at = 0; at < length; at += CHUNK) {
      const size = Math.min(CHUNK, length - at);
      if (isEqual(now, then, base + at, size)) {
        yield { address: address + at, length: size };
        continue;
      }
      for (let page = at; page < at + size; page += PAGE_SIZE) {
        if (isEqual(now, then, base + page, PAGE_SIZE))
          yield { address: address + page, length: PAGE_SIZE };
      }
    }
    base += length;
  }
}

function isEqual(now: Buffer, then: Buffer, at: number, length: number): boolean {
  return now.compare(then, at, at + length, at, at + length) === 0;
}

/** Cuts runs at the borders of ranges that become PE_PARENT. Both ascend. */
export function markRuns(runs: readonly PageRun[], inParent: readonly MemoryRange[]): PageRun[] {
  const marked: PageRun[] = [];
  let next = 0;
  for (const run of runs) {
    const end = run.vaddr + run.pages * PAGE_SIZE;
    let at = run.vaddr;
    while (at < end) {
      const range = inParent[next];
      if (range === undefined || range.address >= end) {
        addRun(marked, { from: at, to: end, flags: run.flags });
        break;
      }
      const rangeEnd = range.address + range.length;
      if (rangeEnd <= at) {
        next += 1;
        continue;
      }
      const from = Math.max(range.address, at);
      if (from > at) addRun(marked, { from: at, to: from, flags: run.flags });
      const to = Math.min(rangeEnd, end);
      addRun(marked, { from, to, flags: PE_PARENT });
      at = to;
    }
  }
  return marked;
}

function addRun(runs: PageRun[], { from, to, flags }: { from: number; to: number; flags: number }) {
  const pages = (to - from) / PAGE_SIZE;
  const last = runs.at(-1);
  if (last?.flags === flags && last.vaddr + last.pages * PAGE_SIZE === from)
    runs[runs.length - 1] = { ...last, pages: last.pages + pages };
  else runs.push({ vaddr: from, pages, flags });
}
