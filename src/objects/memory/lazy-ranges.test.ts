import { expect, test } from "vitest";
import { LazyRanges } from "./lazy-ranges.ts";

const PAGE = 4096;
const at = (page: number, pages: number, saved = page) => ({
  address: page * PAGE,
  length: pages * PAGE,
  saved: saved * PAGE,
});

function pagesOf(ranges: LazyRanges): [number, number][] {
  const copy = ranges.copy();
  const found: [number, number][] = [];
  for (let one = copy.first(PAGE); one !== undefined; one = copy.first(PAGE)) {
    found.push([one.address / PAGE, one.saved / PAGE]);
    copy.drop(one);
  }
  return found;
}

test("at() finds what is to be filled from an address on, and where it was saved", () => {
  const ranges = new LazyRanges([at(10, 4), at(20, 2, 50)]);
  expect(ranges.at(12 * PAGE, 8 * PAGE)).toEqual(at(12, 2));
  expect(ranges.at(21 * PAGE, PAGE)).toEqual(at(21, 1, 51));
  expect(ranges.at(14 * PAGE, PAGE)).toBeUndefined();
});

test.each([
  ["the beginning", at(8, 4), [12, 13, 20]],
  ["the middle", at(11, 2), [10, 13, 20]],
  ["the end", at(13, 3), [10, 11, 12, 20]],
  ["everything", at(0, 100), []],
  ["nothing", at(14, 6), [10, 11, 12, 13, 20]],
])("drop() takes out %s", (_what, range, left) => {
  const ranges = new LazyRanges([at(10, 4), at(20, 1)]);
  ranges.drop(range);
  expect(pagesOf(ranges)).toEqual(left.map((page) => [page, page]));
});

test("move() keeps the address in the images, and the order", () => {
  const ranges = new LazyRanges([at(10, 4), at(20, 2)]);
  ranges.move(at(11, 2), 30 * PAGE);
  expect(pagesOf(ranges)).toEqual([
    [10, 10],
    [13, 13],
    [20, 20],
    [21, 21],
    [30, 11],
    [31, 12],
  ]);
  ranges.drop(at(13, 1));
  ranges.move(at(20, 12), 2 * PAGE);
  expect(pagesOf(ranges)).toEqual([
    [2, 20],
    [3, 21],
    [10, 10],
    [12, 11],
    [13, 12],
  ]);
});

test("copy() is another list", () => {
  const ranges = new LazyRanges([at(10, 4)]);
  const child = ranges.copy();
  child.drop(at(10, 4));
  expect(child.isEmpty).toBe(true);
  expect(ranges.isEmpty).toBe(false);
});
