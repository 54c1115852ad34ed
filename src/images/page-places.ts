// Where the bytes of saved pages lie. In an incremental chain a run of a pagemap may point to the parent set (PE_PARENT),
// whose pagemap of the same name says the rest, and so on: format.md section 9.1.

import { RepriseError } from "../errors.ts";
import { imageName } from "./names.ts";
import {
  PAGE_SIZE,
  PE_LAZY,
  PE_PARENT,
  PE_PRESENT,
  type Pagemap,
  type PagemapKind,
  type PageRun,
  type StoredPageRun,
} from "./pagemap.ts";
import { PARENT_LINK, type PagemapSet } from "./pagemap-set.ts";

/** A stretch of memory and where its bytes are in a pages file. */
export interface PagePlace {
  /** Address; for shared memory the offset in the object. */
  readonly address: number;
  readonly length: number;
  readonly offset: number;
  /** PE_* bits of its run. */
  readonly flags: number;
}

/** A pages file of a set or of one of its parents. */
export interface PlacedPages {
  /** Relative to the images directory: `parent/pages-1.img`. */
  readonly name: string;
  /** 0 for the set itself, 1 for its parent, and so on. */
  readonly depth: number;
  readonly places: readonly PagePlace[];
}

export interface PagemapSource {
  readonly kind: PagemapKind;
  readonly id: number;
  readonly pagemap: Pagemap;
}

/** Runs whose bytes are in no image: they were left to a lazy-pages server. */
export type LeftRuns = (run: PageRun) => void;

/**
 * Finds the bytes of all pages of a pagemap, in its set and the parents, nearest first. Each list ascends.
 *
 * @param left told of runs without bytes; @default an error
 * @throws RepriseError IMAGE_MISSING, BAD_IMAGE
 */
export function placePages(
  top: PagemapSet,
  { kind, id, pagemap }: PagemapSource,
  left: LeftRuns = refuseLeft,
): PlacedPages[] {
  const placed: PlacedPages[] = [];
  let set = top;
  let { pagesId } = pagemap;
  let runs: readonly StoredPageRun[] = pagemap.runs;
  for (let depth = 0; ; depth++) {
    const { places, inherited } = sortRuns(runs, left);
    const name = `${`${PARENT_LINK}/`.repeat(depth)}${imageName("pages", pagesId)}`;
    if (places.length > 0) placed.push({ name, depth, places });
    if (inherited.length === 0) return placed;
    const parent = set.parent();
    const older = parent?.readPagemap(kind, id);
    if (parent === undefined || older === undefined) {
      const what = parent === undefined ? "is missing" : `lacks ${imageName(kind, id)}`;
      throw new RepriseError(
        "IMAGE_MISSING",
        `cannot restore memory: the parent set of an incremental dump ${what}`,
        {
          hint: "Keep all sets of the chain; the link `parent` leads from each to the one before.",
        },
      );
    }
    runs = cutOut(older.runs, inherited);
    pagesId = older.pagesId;
    set = parent;
  }
}

function sortRuns(
  runs: readonly StoredPageRun[],
  left: LeftRuns,
): { places: PagePlace[]; inherited: PageRun[] } {
  const places: PagePlace[] = [];
  const inherited: PageRun[] = [];
  for (const run of runs) {
    const { vaddr: address, flags, offset } = run;
    if ((flags & PE_PRESENT) !== 0 && offset !== undefined)
      places.push({ address, length: run.pages * PAGE_SIZE, offset, flags });
    else if ((flags & PE_PARENT) !== 0) inherited.push(run);
    else if ((flags & PE_LAZY) !== 0) left(run);
  }
  return { places, inherited };
}

function refuseLeft(run: PageRun): never {
  throw new RepriseError(
    "BAD_IMAGE",
    `cannot restore memory ${run.vaddr.toString(16)}: its pages were left to a lazy-pages server`,
    {
      hint: "The dump was made with --lazy-pages: start lazy-pages with --page-server, and restore with --lazy-pages.",
    },
  );
}

/**
 * The parts of `runs` that `wanted` asks for. Both ascend.
 * @throws RepriseError BAD_IMAGE when one is not there.
 */
function cutOut(runs: readonly StoredPageRun[], wanted: readonly PageRun[]): StoredPageRun[] {
  const parts: StoredPageRun[] = [];
  let next = 0;
  for (const want of wanted) {
    const end = pageRunEnd(want);
    let at = want.vaddr;
    while (at < end) {
      const run = runs[next];
      if (run === undefined || run.vaddr > at) {
        throw new RepriseError(
          "BAD_IMAGE",
          `cannot restore memory ${at.toString(16)}: the parent set does not have all of its pages`,
        );
      }
      const runEnd = pageRunEnd(run);
      if (runEnd > at) {
        const to = Math.min(runEnd, end);
        const offset = run.offset === undefined ? undefined : run.offset + at - run.vaddr;
        parts.push({ vaddr: at, pages: (to - at) / PAGE_SIZE, flags: run.flags, offset });
        at = to;
      }
      if (runEnd <= at) next += 1;
    }
  }
  return parts;
}

/** First address behind a run. */
function pageRunEnd(run: PageRun): number {
  return run.vaddr + run.pages * PAGE_SIZE;
}
