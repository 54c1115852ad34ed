// Moving pages of a task out, run by run in ascending order, to wherever they are kept: a pages file here, or a page server.

import { closeSync, constants, openSync, writeSync } from "node:fs";
import { addressOf } from "../../sys/ffi.ts";
import { PE_PARENT, PE_PRESENT, type PageRun, type PageSink } from "../../images/pagemap.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import type { MemoryRange } from "../../sys/memory.ts";
import { portions, type TaskMemory } from "./task-memory.ts";

/** Bytes moved at a time. */
const WINDOW = 4 * 1024 * 1024;

let window: Buffer | undefined;

/** A buffer of WINDOW bytes for pages on their way, at a page's border as direct I/O wants it. There is one. */
export function alignedWindow(): Buffer {
  if (window === undefined) {
    const room = Buffer.allocUnsafeSlow(WINDOW + PAGE_SIZE);
    const start = PAGE_SIZE - (addressOf(room) % PAGE_SIZE);
    window = room.subarray(start, start + WINDOW);
  }
  return window;
}

export interface PageCounts {
  /** Pages that were moved. */
  readonly written: number;
  /** Pages that were left to the parent set. */
  readonly inParent: number;
}

/** Gives all runs to a sink. Pages that cannot be read any more (the task may run) are left out. */
export function movePages(
  runs: readonly PageRun[],
  memory: TaskMemory,
  sink: PageSink,
): PageCounts {
  let written = 0;
  let inParent = 0;
  const buffer = alignedWindow();
  let present: (MemoryRange & { flags: number })[] = [];
  const flush = (): void => {
    for (const portion of portions(present, WINDOW)) {
      const flags = (range: MemoryRange): number =>
        portion.find(
          ({ address, length }) => address <= range.address && range.address < address + length,
        )?.of.flags ?? PE_PRESENT;
      const read = memory.read(portion, buffer);
      const got =
        read === portion
          ? portion.map(({ address, length, of }) => toRun(address, length, of.flags))
          : read.map((range) => toRun(range.address, range.length, flags(range)));
      const bytes = got.reduce((sum, { pages }) => sum + pages, 0) * PAGE_SIZE;
      if (bytes > 0) sink.pages(got, buffer.subarray(0, bytes));
      written += bytes / PAGE_SIZE;
    }
    present = [];
  };
  for (const run of runs) {
    if ((run.flags & PE_PRESENT) !== 0) {
      present.push({ address: run.vaddr, length: run.pages * PAGE_SIZE, flags: run.flags });
      continue;
    }
    flush();
    sink.hole(run);
    if ((run.flags & PE_PARENT) !== 0) inParent += run.pages;
  }
  flush();
  return { written, inParent };
}

function toRun(vaddr: number, length: number, flags: number): PageRun {
  return { vaddr, pages: length / PAGE_SIZE, flags };
}

/** A pages file that grows; its runs go into the pagemap afterwards. */
export class PagesFile implements PageSink, Disposable {
  readonly #fd: number;
  readonly #direct: number | undefined;
  readonly #runs: PageRun[] = [];
  #size = 0;

  /** @param fd the file, open for writing, which stays open @param path to open it a second time for direct I/O */
  constructor(fd: number, path: string) {
    this.#fd = fd;
    this.#direct = openDirect(path);
  }

  /** What was added, neighbours with equal flags joined. */
  get runs(): readonly PageRun[] {
    return this.#runs;
  }

  hole(run: PageRun): void {
    this.#add(run);
  }

  /** System errors of write(2) are thrown as they are. */
  pages(runs: readonly PageRun[], bytes: Buffer): void {
    this.append(bytes);
    for (const run of runs) this.#add(run);
  }

  /** Writes bytes at the end, for runs that are announced by `hole`. */
  append(bytes: Buffer): void {
    const isAligned = addressOf(bytes) % PAGE_SIZE === 0 && bytes.length % PAGE_SIZE === 0;
    // Small writes are quicker through the page cache.
    let fd = isAligned && bytes.length >= DIRECT_FROM ? (this.#direct ?? this.#fd) : this.#fd;
    for (let at = 0; at < bytes.length;) {
      at += writeSync(fd, bytes, at, bytes.length - at, this.#size + at);
      fd = this.#fd; // what a direct write left over may not be aligned
    }
    this.#size += bytes.length;
  }

  #add(run: PageRun): void {
    const last = this.#runs.at(-1);
    if (last?.flags === run.flags && last.vaddr + last.pages * PAGE_SIZE === run.vaddr)
      this.#runs[this.#runs.length - 1] = { ...last, pages: last.pages + run.pages };
    else this.#runs.push(run);
  }

  [Symbol.dispose](): void {
    if (this.#direct !== undefined) closeSync(this.#direct);
  }
}

const DIRECT_FROM = 1024 * 1024;

function openDirect(path: string): number | undefined {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_DIRECT);
  } catch {
    return undefined; // the file system has no direct I/O
  }
}
