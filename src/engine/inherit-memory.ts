// Memory that a task has from the one that made it. After a fork both have the same pages until one of them writes (copy on write); so
// that a restored tree takes no more memory than the saved one, areas that creator and child have in common are made before the child,
// which inherits them, and reads only pages that differ. Which do is found by comparing the pages in the images. Pure, but for that.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import type { PagePlace, PlacedPages } from "../images/page-places.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { hasPrivatePages, isMapped } from "../objects/memory/vma.ts";
import { MAP_HUGETLB, PAGE_SIZE } from "../sys/abi/mman.ts";
import type { MemoryRange } from "../sys/memory.ts";
import type { TreeNode, TreePlan } from "./plan-tree.ts";

/** How a task comes to its private memory. */
export interface MemoryPlan {
  /** Areas that it has from its creator. */
  readonly inherited: ReadonlySet<VmaEntry>;
  /** Areas that must be there before it makes its children: the inherited ones, and those that a child inherits. */
  readonly early: ReadonlySet<VmaEntry>;
  /** What it reads for these, and for all others. */
  readonly earlyPages: readonly PlacedPages[];
  readonly latePages: readonly PlacedPages[];
  /** Pages of the creator's that it does not have. */
  readonly dropped: readonly MemoryRange[];
  /** Areas of the creator's that it does not have: another child inherits them. */
  readonly foreign: readonly VmaEntry[];
  /** Pages that it has in common with its creator. */
  readonly sharedPages: number;
}

/** What this needs of a task. */
export interface TaskMemory {
  readonly pid: number;
  readonly mm: { readonly vmas: readonly VmaEntry[] };
  readonly pages: readonly PlacedPages[];
  /** It lives in its creator's memory (CLONE_VM). */
  readonly sharesMemory?: boolean;
}

/** Plans the memory of every task of a tree. */
export function planMemory(
  tree: TreePlan,
  tasks: ReadonlyMap<number, TaskMemory>,
  imagesDir: string,
): Map<number, MemoryPlan> {
  using files = new PageFiles(imagesDir);
  const found = new Map<number, Inheritance>();
  const heritable = new Map<number, Set<VmaEntry>>();
  const creators = new Map<number, number>();
  for (const node of tree.nodes) {
    const creator = tasks.get(node.pid);
    const made = [...node.early, ...node.late];
    for (const { pid } of made) creators.set(pid, node.pid);
    if (creator === undefined || creator.sharesMemory === true) continue;
    for (const child of made.flatMap(({ pid }) => tasks.get(pid) ?? [])) {
      if (child.sharesMemory === true) continue;
      const inheritance = compare(creator, child, files);
      found.set(child.pid, inheritance);
      const given = heritable.get(node.pid) ?? new Set();
      for (const { theirs } of inheritance.areas) given.add(theirs);
      heritable.set(node.pid, given);
    }
  }
  const plans = new Map<number, MemoryPlan>();
  const present = new Map<number, ReadonlySet<VmaEntry>>();
  // Creators come before those they make.
  for (const node of tree.nodes) {
    const { pid } = node;
    const given = present.get(creators.get(pid) ?? 0) ?? new Set<VmaEntry>();
    const task = tasks.get(pid);
    if (task?.sharesMemory === true) plans.set(pid, ALL_SHARED);
    else if (task !== undefined) {
      const inheritance = found.get(pid) ?? NOTHING;
      const kept = new Set(inheritance.areas.map(({ theirs }) => theirs));
      const foreign = [...given].filter((vma) => !kept.has(vma));
      const own = planOne(task, inheritance, heritable.get(pid) ?? new Set());
      plans.set(pid, { ...own, foreign });
    }
    // A helper, and a task in its creator's memory, passes on what it has.
    const passesOn = task === undefined || task.sharesMemory === true;
    present.set(pid, passesOn ? given : (plans.get(pid)?.early ?? given));
  }
  return plans;
}

/** Whether a task has something to do before it makes its children. */
export function isEarly(plan: MemoryPlan | undefined, node: TreeNode): boolean {
  const hasChildren = node.early.length + node.late.length > 0;
  return plan !== undefined && hasChildren && plan.early.size + plan.foreign.length > 0;
}

/** Of a task that has all of its memory from its creator, and keeps it in common with it. */
const ALL_SHARED: MemoryPlan = {
  inherited: new Set(),
  early: new Set(),
  earlyPages: [],
  latePages: [],
  dropped: [],
  foreign: [],
  sharedPages: 0,
};

interface Inheritance {
  /** The creator's area and the child's. */
  readonly areas: readonly { readonly theirs: VmaEntry; readonly own: VmaEntry }[];
  readonly equal: readonly MemoryRange[];
  readonly dropped: readonly MemoryRange[];
}

const NOTHING: Inheritance = { areas: [], equal: [], dropped: [] };

function planOne(
  task: TaskMemory,
  { areas, equal, dropped }: Inheritance,
  heritable: ReadonlySet<VmaEntry>,
): Omit<MemoryPlan, "foreign"> {
  const inherited = new Set(areas.map(({ own }) => own));
  const early = new Set([...inherited, ...heritable]);
  const own = cutAll(task.pages, equal.map(toArea), "outside");
  const ranges = [...early].sort((a, b) => a.start - b.start);
  return {
    inherited,
    early,
    earlyPages: cutAll(own, ranges, "inside"),
    latePages: cutAll(own, ranges, "outside"),
    dropped,
    sharedPages: equal.reduce((sum, { length }) => sum + length / PAGE_SIZE, 0),
  };
}

function compare(creator: TaskMemory, child: TaskMemory, files: PageFiles): Inheritance {
  const theirs = new Map(creator.mm.vmas.filter(isHeritable).map((vma) => [vma.start, vma]));
  const areas: { theirs: VmaEntry; own: VmaEntry }[] = [];
  const compared: ComparedPages[] = [];
  for (const own of child.mm.vmas) {
    const same = theirs.get(own.start);
    if (same === undefined || !isHeritable(own) || !isAlike(same, own)) continue;
    const found = comparePages(placesIn(creator.pages, own), placesIn(child.pages, own), files);
    if (found.equal.length === 0) continue;
    areas.push({ theirs: same, own });
    compared.push(found);
  }
  return {
    areas,
    equal: compared.flatMap(({ equal }) => equal),
    dropped: compared.flatMap(({ dropped }) => dropped),
  };
}

function isHeritable(vma: VmaEntry): boolean {
  return isMapped(vma) && hasPrivatePages(vma) && (vma.flags & MAP_HUGETLB) === 0;
}

function isAlike(a: VmaEntry, b: VmaEntry): boolean {
  return (
    a.end === b.end &&
    a.prot === b.prot &&
    a.flags === b.flags &&
    a.status === b.status &&
    a.shmid === b.shmid &&
    a.pgoff === b.pgoff
  );
}

interface Place extends PagePlace {
  readonly file: string;
}

/** Pages of an area, ascending. */
function placesIn(pages: readonly PlacedPages[], area: VmaEntry): Place[] {
  const found: Place[] = [];
  for (const { name, places } of pages) {
    for (let index = firstIn(places, area); index < places.length; index++) {
      const place = places[index] as PagePlace;
      if (place.address >= area.end) break;
      for (const part of cut(place, area, "inside")) found.push({ ...part, file: name });
    }
  }
  return pages.length === 1 ? found : found.sort((a, b) => a.address - b.address);
}

/** Of ascending places, the first that reaches into an area. */
export function firstIn(places: readonly PagePlace[], { start }: Pick<VmaEntry, "start">): number {
  let low = 0;
  let high = places.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const { address, length } = places[middle] as PagePlace;
    if (address + length <= start) low = middle + 1;
    else high = middle;
  }
  return low;
}

interface ComparedPages {
  readonly equal: readonly MemoryRange[];
  readonly dropped: readonly MemoryRange[];
}

/** Walks over the pages of both at once. */
function comparePages(
  theirs: readonly Place[],
  own: readonly Place[],
  files: PageFiles,
): ComparedPages {
  const equal: MemoryRange[] = [];
  const dropped: MemoryRange[] = [];
  let next = 0;
  for (const place of theirs) {
    const end = place.address + place.length;
    let at = place.address;
    while (next < own.length && endOf(own[next]) <= at) next++;
    for (let index = next; index < own.length && at < end; index++) {
      const other = own[index] as Place;
      if (other.address >= end) break;
      if (other.address > at) addRange(dropped, at, other.address - at);
      at = Math.max(at, other.address);
      const length = Math.min(end, endOf(other)) - at;
      for (const range of files.equalPages(place, other, { address: at, length }))
        addRange(equal, range.address, range.length);
      at += length;
    }
    if (at < end) addRange(dropped, at, end - at);
  }
  return { equal, dropped };
}

function endOf(place: Place | undefined): number {
  return place === undefined ? 0 : place.address + place.length;
}

function addRange(ranges: MemoryRange[], address: number, length: number): void {
  const last = ranges.at(-1);
  if (last !== undefined && last.address + last.length === address)
    ranges[ranges.length - 1] = { address: last.address, length: last.length + length };
  else ranges.push({ address, length });
}

interface Area {
  readonly start: number;
  readonly end: number;
}

function toArea({ address, length }: MemoryRange): Area {
  return { start: address, end: address + length };
}

/** The parts of all places that lie in any of the ascending areas, or in none. */
function cutAll(
  pages: readonly PlacedPages[],
  areas: readonly Area[],
  side: "inside" | "outside",
): PlacedPages[] {
  return pages.flatMap((file) => {
    const places = file.places.flatMap((place) => {
      const touched = touching(areas, place);
      if (side === "inside") return touched.flatMap((area) => cut(place, area, "inside"));
      return touched.reduce<readonly PagePlace[]>(
        (left, area) => left.flatMap((part) => cut(part, area, "outside")),
        [place],
      );
    });
    return places.length === 0 ? [] : [{ ...file, places }];
  });
}

/** Of ascending areas that do not overlap, those that a place touches. */
function touching(areas: readonly Area[], { address, length }: PagePlace): readonly Area[] {
  let low = 0;
  let high = areas.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((areas[middle] as Area).end <= address) low = middle + 1;
    else high = middle;
  }
  let last = low;
  while (last < areas.length && (areas[last] as Area).start < address + length) last++;
  return areas.slice(low, last);
}

function cut(place: PagePlace, area: Area, side: "inside" | "outside"): PagePlace[] {
  const end = place.address + place.length;
  const from = Math.min(Math.max(place.address, area.start), end);
  const to = Math.max(Math.min(end, area.end), from);
  const part = (start: number, stop: number): PagePlace[] =>
    start >= stop
      ? []
      : [
          {
            ...place,
            address: start,
            length: stop - start,
            offset: place.offset + start - place.address,
          },
        ];
  if (side === "inside") return part(from, to);
  return from === to ? [place] : [...part(place.address, from), ...part(to, end)];
}

/** Bytes of one file that are compared at a time. */
const WINDOW = 256 * 1024;

/** Small files are read at once, and kept up to this: each of many tasks has one. */
const MOST_KEPT = 64 * 1024 * 1024;

interface PageFile {
  readonly fd: number;
  /** All of a small one. */
  readonly content: Buffer | undefined;
}

/** The pages files of a set while they are compared. */
class PageFiles implements Disposable {
  readonly #dir: string;
  readonly #files = new Map<string, PageFile>();
  /** Bytes of them that are in memory. */
  #kept = 0;
  readonly #windows = [Buffer.alloc(0), Buffer.alloc(0)];

  constructor(dir: string) {
    this.#dir = dir;
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.#files.values()) closeSync(fd);
  }

  *equalPages(a: Place, b: Place, { address, length }: MemoryRange): Generator<MemoryRange> {
    for (let done = 0; done < length; done += WINDOW) {
      const size = Math.min(WINDOW, length - done);
      const at = address + done;
      const left = this.#read(0, a, { address: at, length: size });
      const right = this.#read(1, b, { address: at, length: size });
      if (left.equals(right)) {
        yield { address: at, length: size };
        continue;
      }
      for (let page = 0; page < size; page += PAGE_SIZE) {
        const isEqual = left.compare(right, page, page + PAGE_SIZE, page, page + PAGE_SIZE) === 0;
        if (isEqual) yield { address: at + page, length: PAGE_SIZE };
      }
    }
  }

  #read(slot: 0 | 1, place: Place, { address, length }: MemoryRange): Buffer {
    const offset = place.offset + address - place.address;
    const file = this.#files.get(place.file) ?? this.#open(place.file);
    if (file.content !== undefined) return file.content.subarray(offset, offset + length);
    let window = this.#windows[slot] as Buffer;
    if (window.length === 0) window = this.#windows[slot] = Buffer.alloc(WINDOW);
    return window.subarray(0, readSync(file.fd, window, 0, length, offset));
  }

  #open(name: string): PageFile {
    const fd = openSync(join(this.#dir, name), "r");
    const { size } = fstatSync(fd);
    const isSmall = size <= WINDOW && this.#kept + size <= MOST_KEPT;
    const file = { fd, content: isSmall ? readAll(fd, size) : undefined };
    this.#kept += file.content?.length ?? 0;
    this.#files.set(name, file);
    return file;
  }
}

function readAll(fd: number, size: number): Buffer {
  const content = Buffer.allocUnsafeSlow(size);
  return content.subarray(0, readSync(fd, content, 0, size, 0));
}
