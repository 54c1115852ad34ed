// Incremental dumps: the set before this one, its link, and which pages it has already. See objects/memory/parent-pages.ts
// for how that is found out.

import { existsSync, readlinkSync, rmSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { RepriseError } from "../errors.ts";
import { ImageSetReader } from "../images/image-set.ts";
import { PE_PARENT, type PageRun } from "../images/pagemap.ts";
import { PARENT_LINK } from "../images/pagemap-set.ts";
import { log } from "../log.ts";
import { markRuns, ParentPages } from "../objects/memory/parent-pages.ts";
import type { TaskMemory } from "../objects/memory/task-memory.ts";
import { VMA_AIORING, VMA_VDSO, type DumpedVma } from "../objects/memory/vma.ts";
import type { MemoryRange } from "../sys/memory.ts";
import { readUptime } from "../proc/self.ts";
import { asRepriseError } from "./system-error.ts";

/**
 * Makes the link to the set before.
 *
 * @param parentDir as the user gave it: relative to the images directory, or absolute
 * @throws RepriseError BAD_ARGUMENT
 */
export function linkParent(imagesDir: string, parentDir: string): void {
  const link = join(imagesDir, PARENT_LINK);
  const path = resolve(imagesDir, parentDir);
  if (!existsSync(path) || path === resolve(imagesDir)) {
    const what = existsSync(path) ? "it is the images directory itself" : "it does not exist";
    throw new RepriseError("BAD_ARGUMENT", `cannot use ${parentDir} as the parent set: ${what}`, {
      hint: "--prev-images-dir is relative to the images directory: ../1, for instance.",
    });
  }
  try {
    if (isLinkTo(link, parentDir)) return;
    rmSync(link, { force: true });
    symlinkSync(parentDir, link);
  } catch (error) {
    throw asRepriseError(error, `link ${link} to the parent set`);
  }
}

function isLinkTo(link: string, target: string): boolean {
  try {
    return readlinkSync(link) === target;
  } catch {
    return false;
  }
}

/** A task whose pages are looked up in the parent set. */
export interface TaskPages {
  /** The number in the images. */
  readonly innerPid: number;
  readonly vmas: readonly DumpedVma[];
  readonly memory: TaskMemory;
  /** What is known to be in the parent set already. */
  readonly known?: readonly MemoryRange[];
}

/** The parent of the set that is being written, if it has one that can be read. */
export class ParentSet {
  readonly #reader: ImageSetReader | undefined;

  /** Follows the link of an images directory. A parent that cannot be read is no parent: everything is written then. */
  static of(imagesDir: string): ParentSet {
    const link = join(imagesDir, PARENT_LINK);
    if (!existsSync(link)) return new ParentSet(undefined);
    try {
      return new ParentSet(new ImageSetReader(link));
    } catch (error) {
      noteUnreadable(error);
      return new ParentSet(undefined);
    }
  }

  /** For a dump that has no parent. */
  static none(): ParentSet {
    return new ParentSet(undefined);
  }

  private constructor(reader: ImageSetReader | undefined) {
    this.#reader = reader;
  }

  get exists(): boolean {
    return this.#reader !== undefined;
  }

  /** The runs with those parts marked as PE_PARENT that the parent set has, byte for byte. */
  mark(runs: readonly PageRun[], task: TaskPages): readonly PageRun[] {
    const known = task.known ?? [];
    const unknown = markRuns(runs, known).filter(({ flags }) => flags !== PE_PARENT);
    return markRuns(runs, merged(known, this.equalRanges(unknown, task)));
  }

  /** The parts of runs that the parent set has, byte for byte. Ascending. */
  equalRanges(
    runs: readonly PageRun[],
    { innerPid, vmas, memory }: Omit<TaskPages, "known">,
  ): readonly MemoryRange[] {
    if (this.#reader === undefined) return [];
    try {
      using pages = ParentPages.open(this.#reader, { kind: "pagemap", id: innerPid });
      // A restore compares the vdso with the kernel's, and AIO writes to its rings by itself: both are in each set.
      const except = vmas
        .filter(({ entry }) => (entry.status & (VMA_VDSO | VMA_AIORING)) !== 0)
        .map(({ entry: { start, end } }) => ({ address: start, length: end - start }));
      return pages === undefined ? [] : pages.equalRanges(runs, { memory, except });
    } catch (error) {
      noteUnreadable(error);
      return [];
    }
  }
}

/** Two lists of ranges that are apart, in one. */
function merged(left: readonly MemoryRange[], right: readonly MemoryRange[]): MemoryRange[] {
  if (left.length === 0) return [...right];
  return [...left, ...right].sort((a, b) => a.address - b.address);
}

function noteUnreadable(error: unknown): void {
  log.warn(`all pages are written, since the parent set cannot be read: ${String(error)}`);
}

/** inventory.img's dump_uptime: CRIU compares it with the start of a task, to see that a pid is not another one's by now. */
export function uptimeMicroseconds(): bigint {
  return BigInt(Math.round(readUptime().up * 100)) * 10_000n;
}
