// Writing much memory before the tree is frozen, so that the time for which it stands still does not grow with its memory.
//
// Of a tree that sleeps it is kept only when every task slept until it was stopped (sleepers.ts): one that runs could write into
// another's memory (process_vm_writev(2), /proc/PID/mem) and remember that it did. Who does so from outside is not saved, and no
// dump can say whether that was before or after. What the kernel writes when it interrupts a call (the rest of a sleep, the events
// of a poll) lies where the arguments point to, and is written once more.
//
// A tree at work is stopped for a moment in which its writes begin to be watched (watch-memory.ts). What it has written to since is
// written again, in smaller and smaller rounds while it runs and the rest when it is frozen. A round begins with a moment in which it
// is stopped, too: the kernel writes into pages that it holds for direct I/O without being seen, and holds none for a stopped task.

import { ftruncateSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type { RawImage } from "../images/image-set-writer.ts";
import { MAX_CHECKED_PAGES } from "../images/manifest.ts";
import { imageName } from "../images/names.ts";
import type { PageRun } from "../images/pagemap.ts";
import { log } from "../log.ts";
import { nextPagesId } from "../objects/files/pages-id.ts";
import { bytesOf, common, placesIn, rangesOf, without } from "../objects/memory/page-ranges.ts";
import { scanPages, writePages, isSharedByFork } from "../objects/memory/pages.ts";
import { rearrange, rewritePages, writePlaced } from "../objects/memory/rewrite-pages.ts";
import type { WriteWatch } from "../objects/memory/write-watch.ts";
import { collectVmas, VMA_AIORING } from "../objects/memory/vma.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import type { Sleep } from "../proc/sleep.ts";
import { readSmaps, type SmapsVma } from "../proc/smaps.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { KCMP_VM } from "../sys/abi/sched.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import type { MemoryRange } from "../sys/memory.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { sharersAmong } from "./common-memory.ts";
import type { FreezeOptions, FrozenTree } from "./freeze.ts";
import { ARGUMENTS, Sleeper } from "./sleepers.ts";
import { asRepriseError } from "./system-error.ts";
import {
  canBeWatched,
  watchMemory,
  whileStopped,
  withMuchMemory,
  type WatchedTask,
} from "./watch-memory.ts";

/** Below this a task's pages are written so soon that two looks at its threads would not pay. */
const FROM_BYTES = MAX_CHECKED_PAGES;
/** How often they are looked at while pages are written. */
const LOOK_EVERY_MS = 10;
/** How much is written again from each argument on that may be an address, besides the page that it is in: 8,192 pollfds. */
const ARGUMENT_BYTES = 64 * 1024;
/** A pollfd, and how many fit. */
const POLLFD_SIZE = 8;

/** What may be left for the time when the tree stands still: it is written in some milliseconds. */
const LEFT_BYTES = 4 * 1024 * 1024;
/** Most rounds in which a tree at work is written again while it runs. */
const MOST_ROUNDS = 4;

/** Memory that has been written; the file is still open. */
interface EarlyPages {
  readonly pagesId: number;
  readonly raw: RawImage;
  /** What is in the file. Empty when that is good for nothing. */
  runs: readonly PageRun[];
  /** Of a task at work. */
  readonly watch?: WriteWatch;
}

/** A pages file for a task, and whether the pages are in it already. */
export interface PagesPlace {
  readonly pagesId: number;
  readonly raw: RawImage;
  readonly isWritten: boolean;
}

/** What has been written ahead of a dump. */
export class WrittenAhead implements Disposable {
  readonly #images: ImageSetWriter;
  readonly #early = new Map<number, EarlyPages>();
  /** Of tasks at work. */
  readonly #watches: WriteWatch[] = [];
  /** All tasks of the tree, as soon as something is written. */
  readonly #sleepers = new Map<number, Sleeper>();
  /** What was read of tasks that sleep: the kernel walks through all pages for it, 20 ms for a gigabyte. */
  readonly #areas = new Map<number, readonly SmapsVma[]>();

  private constructor(images: ImageSetWriter) {
    this.#images = images;
  }

  /** For dumps that cannot use it: incremental ones, and those to a page server. */
  static nothing(images: ImageSetWriter): WrittenAhead {
    return new WrittenAhead(images);
  }

  /** Writes the memory of all tasks of a tree (the root first) that have much of it. */
  static async of(
    pids: readonly number[],
    images: ImageSetWriter,
    freeze: FreezeOptions,
  ): Promise<WrittenAhead> {
    const ahead = new WrittenAhead(images);
    const tree = new Set(pids);
    const large = withMuchMemory(pids, FROM_BYTES);
    if (large.size === 0) return ahead;
    if (ahead.#watch(tree)) for (const pid of large) await ahead.#tryToWrite(pid, tree);
    const isDone = [...large].every((pid) => (ahead.#early.get(pid)?.runs.length ?? 0) > 0);
    if (!isDone) await ahead.#writeAtWork(pids, large, freeze);
    return ahead;
  }

  /** Whether nothing was written, so that next to no time has passed. */
  get isEmpty(): boolean {
    return this.#early.size === 0;
  }

  /** The areas of a task that has slept since they were read, and does so now. */
  areasOf(pid: number): readonly SmapsVma[] | undefined {
    return this.#sleepers.get(pid)?.sleepsStill() === true ? this.#areas.get(pid) : undefined;
  }

  /** Finds out whether all tasks slept on. To be called when they have been stopped, and before they do anything for us. */
  compare({ tasks }: FrozenTree): void {
    const living = tasks.filter(({ state }) => state !== "zombie");
    const slept =
      living.length === this.#sleepers.size &&
      living.every((task) => this.#sleepers.get(task.pid)?.sleptUntil(task) === true);
    if (!slept)
      for (const early of this.#early.values()) if (early.watch === undefined) early.runs = [];
    this.#close();
  }

  /** The file for a task's pages. */
  place(task: FrozenTask, runs: readonly PageRun[]): PagesPlace {
    const early = this.#early.get(task.pid);
    if (early === undefined) {
      const pagesId = nextPagesId(this.#images);
      return { pagesId, raw: this.#images.openRaw("pages", pagesId), isWritten: false };
    }
    this.#early.delete(task.pid);
    const { raw, pagesId } = early;
    const path = this.#images.path(imageName("pages", pagesId));
    const told =
      early.watch === undefined
        ? finishSleeping(task, runs, { path, fd: raw.fd, early: early.runs })
        : finishAtWork(task, runs, { path, fd: raw.fd, early: early.runs, watch: early.watch });
    if (told === undefined) ftruncateSync(raw.fd);
    log.debug(`the memory of pid ${task.pid} ${told ?? "is written again: it woke up"}`);
    return { pagesId, raw, isWritten: told !== undefined };
  }

  /** Takes back what is of no use: tasks that ended meanwhile, or all when the dump fails. */
  end(): void {
    for (const { pagesId } of this.#early.values()) this.#images.drop("pages", pagesId);
    this.#early.clear();
    this.#close();
  }

  /** Watches no longer. When nobody waits: the kernel goes through all pages for it, 40 ms for a gigabyte. */
  [Symbol.dispose](): void {
    for (const watch of this.#watches.splice(0)) watch[Symbol.dispose]();
  }

  /** Looks at all tasks from now on; false when one does not sleep, or may not be looked at. */
  #watch(tree: ReadonlySet<number>): boolean {
    for (const pid of tree) {
      // Threads of a process may live on without its first one, which says nothing of them.
      if (readStatIfAlive(pid)?.state === "Z" && (readTasksIfAlive(pid)?.length ?? 0) <= 1)
        continue;
      const sleeper = Sleeper.of(pid);
      if (sleeper !== undefined) this.#sleepers.set(pid, sleeper);
      // A child that was made before is on the list by now, or gone.
      const isKnown = (child: number): boolean => tree.has(child);
      if (sleeper === undefined || readChildrenIfAlive(pid)?.every(isKnown) !== true) {
        log.debug(`memory is written later: pid ${pid} does not sleep`);
        this.#close();
        return false;
      }
    }
    return true;
  }

  /** Whether all tasks have slept so far. */
  #sleepStill(): boolean {
    return [...this.#sleepers.values()].every((sleeper) => sleeper.sleepsStill());
  }

  #close(): void {
    for (const sleeper of this.#sleepers.values()) sleeper.close();
    this.#sleepers.clear();
  }

  /** What cannot be looked at yet is for the dump itself to tell. */
  async #tryToWrite(pid: number, tree: ReadonlySet<number>): Promise<void> {
    try {
      // A task may sleep while another one writes to the memory of both.
      if (!sharersAmong(tree, [KCMP_VM]).has(pid)) await this.#write(pid);
    } catch (thrown) {
      log.debug(`the memory of pid ${pid} is written later: ${ofRunning(thrown).message}`);
    }
  }

  /** Writes the memory of tasks that run. Whatever cannot be done is left to the dump itself. */
  async #writeAtWork(
    pids: readonly number[],
    large: ReadonlySet<number>,
    freeze: FreezeOptions,
  ): Promise<void> {
    const [root] = pids;
    if (root === undefined || !pids.every(canBeWatched)) return;
    this.end();
    try {
      const stopped = <T>(act: (tree: FrozenTree) => T): T => whileStopped(root, freeze, act);
      const watched = stopped((tree) => watchMemory(tree, large));
      for (const { watch } of watched.values()) this.#watches.push(watch);
      for (const [pid, task] of watched) await this.#writeWatched(pid, task);
      let last = Number.POSITIVE_INFINITY;
      for (let round = 1; round <= MOST_ROUNDS; round += 1) {
        const changed = this.#changedBytes();
        if (changed <= LEFT_BYTES || changed > last * WORTHWHILE) break;
        last = changed;
        const again = stopped(() => this.#protectAgain());
        for (const { pid, early, ranges } of again) {
          const all = rangesOf(early.runs);
          const path = this.#images.path(imageName("pages", early.pagesId));
          writePlaced({ pid }, placesIn(all, common(all, ranges)), { path, fd: early.raw.fd });
        }
      }
    } catch (thrown) {
      log.debug(`memory is written later: ${ofRunning(thrown).message}`);
      this.end();
    }
  }

  async #writeWatched(pid: number, { vmas, watch }: WatchedTask): Promise<void> {
    const { runs } = scanPages({ pid }, vmas);
    if (isSharedByFork(vmas.map(({ area }) => area)) || bytesOf(rangesOf(runs)) <= FROM_BYTES)
      return;
    const pagesId = nextPagesId(this.#images);
    const raw = this.#images.openRaw("pages", pagesId);
    this.#early.set(pid, { pagesId, raw, runs, watch });
    await writePages({ pid }, runs, {
      path: this.#images.path(imageName("pages", pagesId)),
      fd: raw.fd,
    });
  }

  #changedBytes(): number {
    let bytes = 0;
    for (const { runs, watch } of this.#early.values())
      if (watch !== undefined) bytes += bytesOf(without(rangesOf(runs), watch.untouched()));
    return bytes;
  }

  #protectAgain(): { pid: number; early: EarlyPages; ranges: readonly MemoryRange[] }[] {
    return [...this.#early].map(([pid, early]) => ({
      pid,
      early,
      ranges: early.watch?.protectAgain() ?? [],
    }));
  }

  async #write(pid: number): Promise<void> {
    const sleeper = this.#sleepers.get(pid);
    if (sleeper === undefined || sleeper.calls.some(writesMuch) || !this.#sleepStill()) return;
    const areas = readSmaps(pid);
    this.#areas.set(pid, areas);
    const runs = runsOf(pid, areas);
    if (runs === undefined) return;
    const pagesId = nextPagesId(this.#images);
    const raw = this.#images.openRaw("pages", pagesId);
    const early = { pagesId, raw, runs };
    this.#early.set(pid, early);
    let lookedAt = performance.now();
    const look = (): void => {
      if (performance.now() - lookedAt < LOOK_EVERY_MS) return;
      lookedAt = performance.now();
      if (!sleeper.sleepsStill()) throw new WokeUp();
    };
    try {
      const path = this.#images.path(imageName("pages", pagesId));
      await writePages({ pid }, runs, { path, fd: raw.fd, passing: look });
    } catch (thrown) {
      // The memory may have changed under our hands; the dump itself tells when a disk is full.
      if (!(thrown instanceof WokeUp)) ofRunning(thrown);
      early.runs = [];
    }
  }
}

class WokeUp extends Error {}

/** What may go wrong with tasks that run, which may end at any time. Whatever else is thrown goes on. */
function ofRunning(thrown: unknown): RepriseError {
  const error = asRepriseError(thrown, "write memory of a running task");
  if (!(error instanceof RepriseError)) throw error;
  return error;
}

interface Finished {
  readonly path: string;
  readonly fd: number;
  /** What is in the file. */
  readonly early: readonly PageRun[];
}

/** Says what was done; undefined when everything is to be written. */
function finishSleeping(
  task: FrozenTask,
  runs: readonly PageRun[],
  { early, ...file }: Finished,
): string | undefined {
  if (!areSame(runs, early)) return undefined;
  rewritePages(task, runs, { ...file, ranges: touchedBy(task) });
  return "was written while it slept";
}

function finishAtWork(
  task: FrozenTask,
  runs: readonly PageRun[],
  { early, watch, ...file }: Finished & { readonly watch: WriteWatch },
): string | undefined {
  const now = rangesOf(runs);
  const before = rangesOf(early);
  const changed = without(now, common(untouchedBy(watch), before));
  const bytes = bytesOf(changed);
  // Below the first size there is a checksum of everything; from half on it is as quick to write everything side by side.
  if (bytesOf(now) <= FROM_BYTES || bytes > bytesOf(now) / 2) return undefined;
  if (!rearrange(file.fd, before, now)) return undefined;
  writePlaced(task, placesIn(now, changed), file);
  return `was written while it ran, and ${bytes / PAGE_SIZE} of its pages once more`;
}

/** Nothing where the task has left its memory by exec. */
function untouchedBy(watch: WriteWatch): readonly MemoryRange[] {
  try {
    return watch.untouched();
  } catch (error) {
    if (error instanceof RepriseError) return [];
    throw error;
  }
}

/** As a portion of what was written before; at least so much less makes another round worthwhile. */
const WORTHWHILE = 0.7;

/** The pages of a running task, as the dump will find them if it sleeps on; undefined when it cannot be dumped as it is. */
function runsOf(pid: number, areas: readonly SmapsVma[]): readonly PageRun[] | undefined {
  try {
    // The dump knows how to read these without taking them apart.
    if (isSharedByFork(areas)) return undefined;
    const vmas = collectVmas({ pid }, areas, () => ({ id: 0, memfd: false }));
    // AIO writes to memory while the task sleeps.
    if (vmas.some(({ entry }) => (entry.status & VMA_AIORING) !== 0)) return undefined;
    const { runs } = scanPages({ pid }, vmas);
    const pages = runs.reduce((sum, run) => sum + run.pages, 0);
    return pages * PAGE_SIZE > FROM_BYTES ? runs : undefined;
  } catch (error) {
    if (error instanceof RepriseError) return undefined; // the dump will say it
    throw error;
  }
}

/** A poll of more files than are written again. */
function writesMuch({ call, words }: Sleep): boolean {
  const polls = call === POLL || call === SYSCALLS.ppoll.nr;
  return polls && Number(words[1] ?? 0n) * POLLFD_SIZE > ARGUMENT_BYTES;
}

const POLL = 7;

/** Where the kernel may have written when it interrupted the calls. */
function touchedBy({ threads }: FrozenTask): MemoryRange[] {
  return threads.flatMap(({ stopped: { regs } }) =>
    ARGUMENTS.map((name) => {
      const address = Math.floor(regs.getNumber(name) / PAGE_SIZE) * PAGE_SIZE;
      return { address, length: PAGE_SIZE + ARGUMENT_BYTES };
    }),
  );
}

function areSame(a: readonly PageRun[], b: readonly PageRun[]): boolean {
  return (
    a.length === b.length &&
    a.every((run, index) => {
      const other = b[index] as PageRun;
      return run.vaddr === other.vaddr && run.pages === other.pages && run.flags === other.flags;
    })
  );
}
