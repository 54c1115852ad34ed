// Arithmetic of page ranges: lists that ascend and do not overlap.

import type { PageRun } from "../../images/pagemap.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import type { MemoryRange } from "../../sys/memory.ts";

/** What is in both. */
export function common(left: readonly MemoryRange[], right: readonly MemoryRange[]): MemoryRange[] {
  const found: MemoryRange[] = [];
  let next = 0;
  for (const { address, length } of left) {
    const end = address + length;
    for (; next < right.length; next++) {
      const other = right[next] as MemoryRange;
      const otherEnd = other.address + other.length;
      const from = Math.max(address, other.address);
      const to = Math.min(end, otherEnd);
      if (from < to) found.push({ address: from, length: to - from });
      if (otherEnd > end) break;
    }
  }
  return found;
}

/** What is in the first and not in the second. */
export function without(
  ranges: readonly MemoryRange[],
  taken: readonly MemoryRange[],
): MemoryRange[] {
  const left: MemoryRange[] = [];
  let next = 0;
  for (const { address, length } of ranges) {
    const end = address + length;
    let from = address;
    for (; next < taken.length; next++) {
      const other = taken[next] as MemoryRange;
      const otherEnd = other.address + other.length;
      if (other.address >= end) break;
      if (other.address > from) left.push({ address: from, length: other.address - from });
      from = Math.max(from, otherEnd);
      if (otherEnd > end) break;
    }
    if (from < end) left.push({ address: from, length: end - from });
  }
  return left;
}

/** Runs of a pagemap as ranges. */
export function rangesOf(runs: readonly PageRun[]): MemoryRange[] {
  return runs.map(({ vaddr, pages }) => ({ address: vaddr, length: pages * PAGE_SIZE }));
}

export function bytesOf(ranges: readonly MemoryRange[]): number {
  return ranges.reduce((sum, { length }) => sum + length, 0);
}

/** A range of memory, and where it is in the pages file. */
export interface PlacedRange extends MemoryRange {
  readonly offset: number;
}

/** Places of ranges in a pages file that holds the pages of `all`, one behind the other; each range is in `all`. */
export function placesIn(
  all: readonly MemoryRange[],
  ranges: readonly MemoryRange[],
): PlacedRange[] {
  const placed: PlacedRange[] = [];
  let next = 0;
  let offset = 0;
  for (const { address, length } of all) {
    const end = address + length;
    for (; next < ranges.length; next++) {
      const range = ranges[next] as MemoryRange;
      if (range.address >= end) break;
      placed.push({ ...range, offset: offset + range.address - address });
    }
    offset += length;
  }
  return placed;
}
