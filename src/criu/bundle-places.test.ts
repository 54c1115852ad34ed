import { describe, expect, it } from "vitest";
import { encodeBundlePlaces, findBundlePlace } from "./bundle-places.ts";

describe("findBundlePlace()", () => {
  const table = encodeBundlePlaces([
    { line: 2, column: 1, from: { source: "src/a.ts", line: 7 } },
    { line: 2, column: 40, from: { source: "src/b/ü.ts", line: 1_000_000 } },
    { line: 2, column: 900_000, from: undefined },
    { line: 4, column: 10, from: { source: "src/a.ts", line: 8 } },
  ]);

  it("finds the source of the piece that a place is in", () => {
    expect(findBundlePlace(table, 2, 1)).toEqual({ source: "src/a.ts", line: 7 });
    expect(findBundlePlace(table, 2, 39)).toEqual({ source: "src/a.ts", line: 7 });
    expect(findBundlePlace(table, 2, 40)).toEqual({ source: "src/b/ü.ts", line: 1_000_000 });
    expect(findBundlePlace(table, 4, 5000)).toEqual({ source: "src/a.ts", line: 8 });
  });

  it.each([
    [1, 1],
    [2, 900_001],
    [3, 1],
    [4, 9],
    [5, 1],
    [-1, 1],
  ])("knows nothing of line %i, column %i", (line, column) => {
    expect(findBundlePlace(table, line, column)).toBeUndefined();
  });

  it("knows nothing without a table", () => {
    expect(findBundlePlace(Buffer.alloc(0), 1, 1)).toBeUndefined();
  });

  it("has no place for columns that do not fit", () => {
    expect(() => encodeBundlePlaces([{ line: 1, column: 2 ** 20, from: undefined }])).toThrow(
      RangeError,
    );
  });
});
