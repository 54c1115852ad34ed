import * as fc from "fast-check";
import { expect, test } from "vitest";
import type { MemoryRange } from "../../sys/memory.ts";
import { bytesOf, common, placesIn, without } from "./page-ranges.ts";

const PAGES = 24;

/** Lists of ranges over a few pages, by the pages that are in them. */
const pages = fc.uniqueArray(fc.integer({ min: 0, max: PAGES - 1 }));

/** Neighbours are joined, or not: both are lists of ranges. */
function ranges(of: readonly number[], joined: boolean): MemoryRange[] {
  const list: MemoryRange[] = [];
  for (const page of of.toSorted((a, b) => a - b)) {
    const last = list.at(-1);
    if (joined && last !== undefined && last.address + last.length === page)
      list[list.length - 1] = { ...last, length: last.length + 1 };
    else list.push({ address: page, length: 1 });
  }
  return list;
}

function inThem(list: readonly MemoryRange[]): number[] {
  return list.flatMap(({ address, length }) =>
    Array.from({ length }, (_, index) => address + index),
  );
}

test("what is common, what is left, and where it is in a file are what pages one by one say", () => {
  fc.assert(
    fc.property(pages, pages, fc.boolean(), fc.boolean(), (a, b, joinA, joinB) => {
      const [left, right] = [ranges(a, joinA), ranges(b, joinB)];
      const sorted = a.toSorted((x, y) => x - y);
      expect(inThem(common(left, right))).toEqual(sorted.filter((page) => b.includes(page)));
      const rest = without(left, right);
      expect(inThem(rest)).toEqual(sorted.filter((page) => !b.includes(page)));
      expect(bytesOf(rest)).toBe(inThem(rest).length);
      for (const { address, offset } of placesIn(left, rest))
        expect(offset).toBe(sorted.indexOf(address));
      expect(placesIn(left, rest)).toHaveLength(rest.length);
    }),
  );
});
