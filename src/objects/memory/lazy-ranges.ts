// Which memory of a task still has to come from its images, and from which address there: mremap moves memory away from the
// address that it was saved at. Ranges are whole pages.

import type { MemoryRange } from "../../sys/memory.ts";

/** Memory that is not filled yet. */
export interface LazyRange extends MemoryRange {
  /** Its address in the images. */
  readonly saved: number;
}

/** The ranges of one address space, ascending and apart. */
export class LazyRanges {
  #ranges: LazyRange[];

  constructor(ranges: readonly LazyRange[]) {
    this.#ranges = [...ranges];
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }

  /** For a child made by fork. */
  copy(): LazyRanges {
    return new LazyRanges(this.#ranges);
  }

  /** The first range, cut to at most `length` bytes. */
  first(length: number): LazyRange | undefined {
    const range = this.#ranges[0];
    return range === undefined ? undefined : { ...range, length: Math.min(length, range.length) };
  }

  /** What is to be filled from an address on, at most `length` bytes; undefined when that address is none. */
  at(address: number, length: number): LazyRange | undefined {
    const range = this.#ranges[this.#firstBehind(address)];
    if (range === undefined || range.address > address) return undefined;
    const skipped = address - range.address;
    return {
      address,
      length: Math.min(length, range.length - skipped),
      saved: range.saved + skipped,
    };
  }

  /** Takes a part out: it is filled, unmapped or given back. */
  drop({ address, length }: MemoryRange): void {
    const end = address + length;
    const first = this.#firstBehind(address);
    let last = first;
    const parts: LazyRange[] = [];
    for (; last < this.#ranges.length; last++) {
      const range = this.#ranges[last] as LazyRange;
      if (range.address >= end) break;
      const before = address - range.address;
      const after = range.address + range.length - end;
      if (before > 0) parts.push({ ...range, length: before });
      if (after > 0)
        parts.push({ address: end, length: after, saved: range.saved + range.length - after });
    }
    this.#ranges.splice(first, last - first, ...parts);
  }

  /** Moves a part to another address. */
  move(from: MemoryRange, to: number): void {
    const end = from.address + from.length;
    const moved = this.#ranges.flatMap((range) => {
      const start = Math.max(range.address, from.address);
      const stop = Math.min(range.address + range.length, end);
      if (start >= stop) return [];
      return [
        {
          address: to + start - from.address,
          length: stop - start,
          saved: range.saved + start - range.address,
        },
      ];
    });
    this.drop(from);
    this.#ranges = [...this.#ranges, ...moved].sort((a, b) => a.address - b.address);
  }

  /** Index of the first range that ends behind an address: there may be one for every other page of a large memory. */
  #firstBehind(address: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const range = this.#ranges[middle] as LazyRange;
      if (range.address + range.length <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
