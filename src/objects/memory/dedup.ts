// Giving back the disk space of saved pages that nobody needs any more: holes are punched into older pages files of a chain
// for what a newer set has, or for what a restore has read. Sizes and offsets stay (fallocate(2), FALLOC_FL_PUNCH_HOLE).

import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { noteGivenBack } from "../../images/manifest.ts";
import { imageName } from "../../images/names.ts";
import type { PlacedPages } from "../../images/page-places.ts";
import { PE_PRESENT, type PagemapKind, type PageRun } from "../../images/pagemap.ts";
import { PARENT_LINK, type BareSet } from "../../images/pagemap-set.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import { syscall } from "../../sys/ffi.ts";

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

/** A pagemap, and those of its runs that a newer set has. */
export interface Superseded {
  readonly kind: PagemapKind;
  readonly id: number;
  /** Ascending. */
  readonly runs: readonly PageRun[];
}

/**
 * Punches what a set has itself out of all sets before it.
 *
 * @returns bytes given back
 * @throws RepriseError SYSCALL, BAD_IMAGE; system errors
 */
export function dedupParents(set: BareSet, { kind, id, runs }: Superseded): number {
  const own = runs.filter(({ flags }) => (flags & PE_PRESENT) !== 0);
  let bytes = 0;
  for (let older = set.parent(); older !== undefined; older = older.parent()) {
    const map = older.readPagemap(kind, id);
    if (map === undefined) break;
    const holes = overlapping(map.runs, own);
    bytes += punch(older.dir, imageName("pages", map.pagesId), holes);
  }
  return bytes;
}

/** Punches what a restore has read, wherever in the chain it was. */
export function punchPlaces(dir: string, placed: readonly PlacedPages[]): void {
  for (const { name, depth, places } of placed) {
    const file = name.slice(`${PARENT_LINK}/`.length * depth);
    const holes = places.map(({ offset, length }) => ({ offset, length }));
    punch(join(dir, name.slice(0, name.length - file.length)), file, holes);
  }
}

interface Hole {
  readonly offset: number;
  readonly length: number;
}

/** Where the pages of `runs` that are in `own`, too, lie in their file. Both ascend. */
function overlapping(
  runs: readonly (PageRun & { readonly offset: number | undefined })[],
  own: readonly PageRun[],
): Hole[] {
  const holes: Hole[] = [];
  let next = 0;
  for (const run of runs) {
    const end = run.vaddr + run.pages * PAGE_SIZE;
    for (; next < own.length; next++) {
      const other = own[next] as PageRun;
      const otherEnd = other.vaddr + other.pages * PAGE_SIZE;
      const from = Math.max(run.vaddr, other.vaddr);
      const to = Math.min(end, otherEnd);
      if (from < to && run.offset !== undefined)
        holes.push({ offset: run.offset + from - run.vaddr, length: to - from });
      if (otherEnd > end) break;
    }
  }
  return holes;
}

function punch(dir: string, name: string, holes: readonly Hole[]): number {
  if (holes.length === 0) return 0;
  noteGivenBack(dir, name);
  const fd = openSync(join(dir, name), "r+");
  try {
    for (const { offset, length } of holes)
      syscall("fallocate", fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  } finally {
    closeSync(fd);
  }
  return holes.reduce((sum, { length }) => sum + length, 0);
}
