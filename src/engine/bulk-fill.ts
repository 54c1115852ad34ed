// Much memory is filled by the engine, while its tasks stand still and before they do the rest themselves. The disk reads into
// windows that lie in one piece, several at a time and from the moment on when the images are understood; what has come is put into
// its place at once (objects/memory/missing.ts). A task that reads into its own memory takes twice as long: its pages lie anywhere,
// and each is a fault first.

import { closeSync, constants, openSync, read } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { PagePlace, PlacedPages } from "../images/page-places.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { isSegment } from "../objects/ipc/shm.ts";
import { addMissingWatch, MissingMemory } from "../objects/memory/missing.ts";
import { readsDirectly } from "../objects/memory/read-pages.ts";
import { isMapped, mapVma, VMA_ANON_PRIVATE } from "../objects/memory/vma.ts";
import { ioWindows, WINDOW, WINDOWS } from "../objects/memory/windows.ts";
import { MAP_DROPPABLE, MAP_GROWSDOWN, MAP_HUGETLB } from "../sys/abi/mman.ts";
import type { MemoryRange } from "../sys/memory.ts";
import { processorCount } from "../sys/processors.ts";
import { Program } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import { firstPoolFd, taskJob, type Growth } from "./growth.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Below this the whole tree is done before it would pay. */
const FROM_BYTES = 32 * 1024 * 1024;
/** Below these a task, and an area, are left to the task. */
const TASK_FROM = 4 * 1024 * 1024;
const AREA_FROM = 1024 * 1024;
/** So many tasks that copy from the page cache side by side are faster than the engine, given the processors. */
const MANY = 3;

/** Reads and puts into place what is worth it. */
export class BulkFill {
  readonly #tasks: ReadonlyMap<number, Parted>;
  readonly #fds: number[] = [];
  readonly #portions: readonly Portion[];
  /** Reads under way or done, by the portion's place in the order. */
  readonly #reads = new Map<number, Promise<void>>();

  /** Undefined when there is too little of it. */
  static of(plan: RestorePlan, imagesDir: string): BulkFill | undefined {
    const large = [...plan.tasks.values()].filter(
      (task) => bytesOf(task.memory.latePages) >= TASK_FROM && mapsFreely(task),
    );
    const tasks = new Map<number, Parted>();
    for (const task of large) {
      const parted = partPages(task);
      if (bytesOf(parted.bulk) >= TASK_FROM) tasks.set(task.pid, parted);
    }
    const files = [...tasks.values()].flatMap(({ bulk }) => bulk);
    if (bytesOf(files) < FROM_BYTES) return undefined;
    const direct = new Set(
      files.filter((file) => readsDirectly(join(imagesDir, file.name), bytesOf([file]))),
    );
    if (direct.size === 0 && tasks.size >= MANY && processorCount() >= MANY) return undefined;
    return new BulkFill(tasks, { imagesDir, direct });
  }

  private constructor(
    tasks: ReadonlyMap<number, Parted>,
    { imagesDir, direct }: { imagesDir: string; direct: ReadonlySet<PlacedPages> },
  ) {
    this.#tasks = tasks;
    const all: Portion[] = [];
    for (const [pid, { bulk }] of tasks) {
      for (const file of bulk) {
        const flags = direct.has(file) ? constants.O_DIRECT : 0;
        const fd = openSync(join(imagesDir, file.name), constants.O_RDONLY | flags);
        this.#fds.push(fd);
        for (const portion of portions(file.places)) all.push({ ...portion, pid, fd });
      }
      log.debug(`${bytesOf(bulk)} bytes of pid ${pid} are copied by the engine`);
    }
    this.#portions = all;
    for (let index = 0; index < WINDOWS; index++) this.#ask(index);
  }

  /** What is left for a task to do itself: pages to read, and which areas are there already. */
  restOf(pid: number): Pick<Parted, "own" | "areas"> | undefined {
    return this.#tasks.get(pid);
  }

  /** Makes the areas, and fills them. */
  async fill(plan: RestorePlan, growth: Growth): Promise<void> {
    const memories = this.#prepare(plan, growth);
    try {
      for (const [index, { pid, ranges, length }] of this.#portions.entries()) {
        await this.#reads.get(index);
        this.#reads.delete(index);
        memories.get(pid)?.put(ranges, windowOf(index, length));
        this.#ask(index + WINDOWS);
      }
    } finally {
      for (const memory of memories.values()) memory[Symbol.dispose]();
    }
  }

  /** Waits for what is under way: the windows are used again. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#reads.values());
    this.#reads.clear();
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }

  #prepare(plan: RestorePlan, growth: Growth): ReadonlyMap<number, MissingMemory> {
    const prepared = [...this.#tasks].map(([pid, { areas }]) => {
      const program = new Program();
      for (const area of areas) mapVma(program, area, { isFilled: true });
      const watch = addMissingWatch(program, firstPoolFd(plan));
      return { pid, areas: [...areas], watch, job: taskJob(plan, growth, { pid, program }) };
    });
    const results = runPrograms(prepared.map(({ job }) => job));
    const memories = new Map<number, MissingMemory>();
    prepared.forEach(({ pid, areas, watch }, index) => {
      const fd = results[index]?.value(watch) ?? -1;
      memories.set(pid, new MissingMemory(growth.outerPid(pid), { fd, areas }));
    });
    return memories;
  }

  #ask(index: number): void {
    const portion = this.#portions[index];
    if (portion === undefined) return;
    const reading = readWhole(portion, windowOf(index, portion.length));
    reading.catch(() => undefined); // whoever waits for it is told; it may fail before
    this.#reads.set(index, reading);
  }
}

interface Portion extends FilePortion {
  readonly pid: number;
  readonly fd: number;
}

function windowOf(index: number, length: number): Uint8Array {
  const start = (index % WINDOWS) * WINDOW;
  return ioWindows().bytes.subarray(start, start + length);
}

async function readWhole({ fd, offset }: Portion, into: Uint8Array): Promise<void> {
  for (let done = 0; done < into.length;) {
    const count = await new Promise<number>((resolve, reject) => {
      read(fd, into, done, into.length - done, offset + done, (error, got) => {
        if (error === null) resolve(got);
        else reject(error);
      });
    });
    if (count === 0)
      throw new RepriseError("BAD_IMAGE", `a pages file ends before ${offset + into.length}`);
    done += count;
  }
}

/** The pages of a task: who reads them. */
interface Parted {
  /** What the engine does, each place within one of `areas`. */
  readonly bulk: readonly PlacedPages[];
  readonly own: readonly PlacedPages[];
  readonly areas: ReadonlySet<VmaEntry>;
}

type Filled = {
  readonly mm: Pick<TaskPlan["mm"], "vmas">;
  readonly memory: Pick<TaskPlan["memory"], "latePages" | "early">;
};

/** Parts what belongs into large areas from everything else. */
export function partPages({ mm: { vmas }, memory: { latePages, early } }: Filled): Parted {
  const able = vmas.filter((vma) => isPlain(vma) && !early.has(vma));
  const cut = latePages.map((file) => ({ file, parts: cutAtBorders(file.places, able) }));
  const sizes = new Map<VmaEntry, number>();
  for (const { area, place } of cut.flatMap(({ parts }) => parts))
    if (area !== undefined) sizes.set(area, (sizes.get(area) ?? 0) + place.length);
  const areas = new Set(able.filter((area) => (sizes.get(area) ?? 0) >= AREA_FROM));
  const choose = (isBulk: boolean): PlacedPages[] =>
    cut.flatMap(({ file, parts }) => {
      const places = parts
        .filter(({ area }) => (area !== undefined && areas.has(area)) === isBulk)
        .map(({ place }) => place);
      return places.length === 0 ? [] : [{ ...file, places }];
    });
  return { bulk: choose(true), own: choose(false), areas };
}

interface Part {
  readonly area: VmaEntry | undefined;
  readonly place: PagePlace;
}

/** Cuts places at the borders of areas. Both ascend. */
function cutAtBorders(places: readonly PagePlace[], areas: readonly VmaEntry[]): Part[] {
  const parts: Part[] = [];
  let next = 0;
  for (const place of places) {
    const end = place.address + place.length;
    for (let at = place.address; at < end;) {
      while (next < areas.length && (areas[next] as VmaEntry).end <= at) next++;
      const candidate = areas[next];
      const area = candidate !== undefined && candidate.start <= at ? candidate : undefined;
      const border = area === undefined ? (candidate?.start ?? end) : area.end;
      const length = Math.min(end, border) - at;
      const offset = place.offset + at - place.address;
      parts.push({ area, place: { ...place, address: at, length, offset } });
      at += length;
    }
  }
  return parts;
}

interface FilePortion {
  readonly ranges: readonly MemoryRange[];
  readonly offset: number;
  readonly length: number;
}

/** What is read at once: places that follow each other in the file. */
export function* portions(places: readonly PagePlace[]): Generator<FilePortion> {
  let ranges: MemoryRange[] = [];
  let start = 0;
  let end = 0;
  for (const place of places) {
    for (let done = 0; done < place.length;) {
      const offset = place.offset + done;
      if (ranges.length > 0 && (offset !== end || end - start === WINDOW)) {
        yield { ranges, offset: start, length: end - start };
        ranges = [];
      }
      if (ranges.length === 0) start = end = offset;
      const length = Math.min(place.length - done, WINDOW - (end - start));
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

/** Ordinary memory, whose place is nobody's concern. What it may do, and what is locked, is set when it is full. */
function isPlain(vma: VmaEntry): boolean {
  const special = MAP_HUGETLB | MAP_GROWSDOWN | MAP_DROPPABLE;
  return (
    isMapped(vma) &&
    (vma.status & VMA_ANON_PRIVATE) !== 0 &&
    (vma.flags & special) === 0 &&
    vma.policy === undefined
  );
}

function bytesOf(files: readonly Pick<PlacedPages, "places">[]): number {
  return files.reduce(
    (sum, { places }) => sum + places.reduce((bytes, { length }) => bytes + length, 0),
    0,
  );
}
