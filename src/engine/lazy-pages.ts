// The lazy-pages daemon: fills memory of restored tasks when they touch it, and all the rest in the background, from the
// images or from a page server; ends when everything is there. It follows what the tasks do to that memory meanwhile
// (fork, mremap, munmap, madvise): see userfaultfd(2).

import { rmSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { ImageSetReader } from "../images/image-set.ts";
import { placePages } from "../images/page-places.ts";
import type { PageRun } from "../images/pagemap.ts";
import { log } from "../log.ts";
import { partPages } from "../objects/memory/lazy.ts";
import { LazyRanges, type LazyRange } from "../objects/memory/lazy-ranges.ts";
import { alignedWindow } from "../objects/memory/page-sink.ts";
import { SavedPages } from "../objects/memory/saved-pages.ts";
import { UserFault } from "../objects/memory/user-fault.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import { trySyscall } from "../sys/ffi.ts";
import { waitReadable } from "../sys/poll.ts";
import { accept, listenUnix } from "../sys/stream.ts";
import { LAZY_SOCKET, receiveLazyMessage } from "./lazy-wire.ts";
import { PageFetcher } from "./page-fetcher.ts";
import type { PageServerPlace } from "./page-client.ts";

export interface LazyPagesOptions {
  readonly imagesDir: string;
  /** Where the socket is made. */
  readonly workDir: string;
  /** Ask a page server for pages instead of the images. */
  readonly pageServer?: PageServerPlace;
  /** Called when a restore can connect. */
  onReady?(): void;
}

/** Bytes filled at a time in the background: more and more while no task waits. */
const FIRST_LENGTH = 64 * 1024;
const MAX_LENGTH = 4 * 1024 * 1024;

/**
 * Waits for one restore and fills its memory.
 *
 * @throws RepriseError SYSCALL, BAD_IMAGE; tasks whose memory is missing then see zeros where it should be, so end them
 */
export function serveLazyPages(options: LazyPagesOptions): void {
  const reader = new ImageSetReader(options.imagesDir);
  const path = join(options.workDir, LAZY_SOCKET);
  rmSync(path, { force: true });
  const listener = listenUnix(path);
  options.onReady?.();
  const connection = accept(listener);
  trySyscall("close", listener);
  rmSync(path, { force: true });
  const fetcher =
    options.pageServer === undefined ? undefined : new PageFetcher(options.pageServer);
  const daemon = new Daemon(connection, reader, fetcher);
  try {
    daemon.run();
    fetcher?.finish();
  } finally {
    daemon.close();
    fetcher?.close();
    trySyscall("close", connection);
  }
}

/** One address space that is being filled; forks of a task share its saved pages. */
interface Filling {
  readonly pid: number;
  readonly fault: UserFault;
  readonly ranges: LazyRanges;
  readonly saved: SavedPages;
}

class Daemon {
  readonly #connection: number;
  readonly #reader: ImageSetReader;
  readonly #fetcher: PageFetcher | undefined;
  readonly #opened: SavedPages[] = [];
  #fillings: Filling[] = [];
  #isFinished = false;
  #length = FIRST_LENGTH;

  constructor(connection: number, reader: ImageSetReader, fetcher: PageFetcher | undefined) {
    this.#connection = connection;
    this.#reader = reader;
    this.#fetcher = fetcher;
  }

  run(): void {
    for (;;) {
      this.#removeFilled();
      if (this.#isFinished && this.#fillings.length === 0) return;
      const control = this.#isFinished ? [] : [this.#connection];
      const watched = [...control, ...this.#fillings.map(({ fault }) => fault.fd)];
      // Until the restore is finished only what is touched is filled: tasks must start soon.
      const ready = waitReadable(watched, this.#isFinished ? 0 : undefined);
      if (ready.has(this.#connection)) this.#listen();
      // The list grows by forks while it is walked; those are not in what was watched.
      for (const filling of this.#fillings)
        if (ready.has(filling.fault.fd)) this.#handleEvents(filling);
      if (this.#isFinished && ready.size === 0) this.#fillInBackground();
    }
  }

  close(): void {
    for (const { fault } of this.#fillings) fault.close();
    for (const saved of this.#opened) saved[Symbol.dispose]();
  }

  #listen(): void {
    const message = receiveLazyMessage(this.#connection);
    switch (message.kind) {
      case "task":
        this.#fillings.push(this.#begin(message.pid, message.userfault));
        break;
      case "zombie":
        break;
      case "finished":
        this.#isFinished = true;
        break;
      case "closed":
        throw new RepriseError("TASK_DIED", "the restore ended before it was finished");
    }
  }

  #begin(pid: number, userfault: number): Filling {
    const source = { kind: "pagemap", id: pid } as const;
    const saved = new SavedPages(this.#reader, source);
    this.#opened.push(saved);
    const pagemap = this.#reader.readPagemap("pagemap", pid);
    if (pagemap === undefined) throw this.#reader.missing("pagemap", pid);
    const left: PageRun[] = [];
    const placed = placePages(this.#reader, { ...source, pagemap }, (run) => left.push(run));
    const { later } = partPages(placed, left, this.#reader.readOne("mm", pid).vmas);
    if (left.length > 0 && this.#fetcher === undefined) {
      throw new RepriseError("BAD_ARGUMENT", `the pages of pid ${pid} are not in the images`, {
        hint: "They were left to the server of `dump --lazy-pages`: give its --address and --port with --page-server.",
      });
    }
    const bytes = later.reduce((sum, { length }) => sum + length, 0);
    log.info(`fills ${bytes / PAGE_SIZE} pages of pid ${pid}`);
    const ranges = new LazyRanges(later.map((range) => ({ ...range, saved: range.address })));
    return { pid, fault: new UserFault(userfault), ranges, saved };
  }

  /** Reads all events of a task, then fills the pages that it waits for. */
  #handleEvents(filling: Filling): void {
    const { fault, ranges } = filling;
    const waiting = new Set<number>();
    for (;;) {
      for (let event = fault.next(); event !== undefined; event = fault.next()) {
        switch (event.kind) {
          case "fault":
            waiting.add(event.address);
            break;
          case "fork":
            this.#fillings.push({
              ...filling,
              fault: new UserFault(event.userfault),
              ranges: ranges.copy(),
            });
            break;
          case "moved":
            ranges.move(event.from, event.to);
            break;
          case "gone":
            ranges.drop(event.range);
            break;
        }
      }
      for (const address of waiting) if (this.#fillPage(filling, address)) waiting.delete(address);
      if (waiting.size === 0 || fault.isGone) return;
    }
  }

  /** @returns false when an event has to be read first */
  #fillPage(filling: Filling, address: number): boolean {
    this.#length = FIRST_LENGTH;
    const range = filling.ranges.at(address, PAGE_SIZE);
    return range === undefined ? filling.fault.zero(address) : this.#fill(filling, range) > 0;
  }

  #fillInBackground(): void {
    const filling = this.#fillings[0];
    const range = filling?.ranges.first(this.#length);
    if (filling === undefined || range === undefined) return;
    this.#length = Math.min(MAX_LENGTH, this.#length + FIRST_LENGTH);
    this.#fill(filling, range);
  }

  #fill({ pid, fault, ranges, saved }: Filling, range: LazyRange): number {
    const window = alignedWindow().subarray(0, range.length);
    const got =
      this.#fetcher === undefined
        ? saved.read(range.saved, window)
        : this.#fetcher.fetch(pid, range.saved, window);
    if (got === 0)
      throw new RepriseError("BAD_IMAGE", `no pages of pid ${pid} at ${range.saved.toString(16)}`);
    const filled = fault.copy(range.address, window.subarray(0, got));
    // Nothing was filled: an event that changes this memory waits to be read.
    if (filled > 0) ranges.drop({ address: range.address, length: filled });
    return filled;
  }

  #removeFilled(): void {
    this.#fillings = this.#fillings.filter(({ fault, ranges, pid }) => {
      if (!fault.isGone && !(this.#isFinished && ranges.isEmpty)) return true;
      log.info(`pid ${pid} ${fault.isGone ? "has ended" : "has all its pages"}`);
      fault.close();
      return false;
    });
  }
}
