import { describe, expect, it } from "vitest";
import { encodeBundleLines, findBundleLine } from "./bundle-lines.ts";

describe("findBundleLine()", () => {
  const table = encodeBundleLines([
    undefined,
    { source: "src/a.ts", line: 7 },
    { source: "src/b/ü.ts", line: 1_000_000 },
    { source: "src/a.ts", line: 8 },
  ]);

  it("finds the source of a line", () => {
    expect(findBundleLine(table, 2)).toEqual({ source: "src/a.ts", line: 7 });
    expect(findBundleLine(table, 3)).toEqual({ source: "src/b/ü.ts", line: 1_000_000 });
    expect(findBundleLine(table, 4)).toEqual({ source: "src/a.ts", line: 8 });
  });

  it.each([0, 1, 5, -1])("knows nothing of line %i", (line) => {
    expect(findBundleLine(table, line)).toBeUndefined();
  });

  it("knows nothing without a table", () => {
    expect(findBundleLine(Buffer.alloc(0), 1)).toBeUndefined();
  });
});
