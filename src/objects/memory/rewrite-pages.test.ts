import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import type { MemoryRange } from "../../sys/memory.ts";
import { rearrange } from "./rewrite-pages.ts";

const PAGES = 12;
const pages = fc
  .uniqueArray(fc.integer({ min: 1, max: PAGES }), { minLength: 1 })
  .map((list) => list.toSorted((a, b) => a - b));

function rangesOf(list: readonly number[]): MemoryRange[] {
  return list.map((page) => ({ address: page * PAGE_SIZE, length: PAGE_SIZE }));
}

test("pages that stay keep what they have, wherever in the file they come to lie", () => {
  const dir = mkdtempSync(join(tmpdir(), "reprise-rearrange-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const path = join(dir, "pages");
  const fd = openSync(path, "w+");
  onTestFinished(() => closeSync(fd));
  let rearranged = 0;
  fc.assert(
    fc.property(pages, pages, (before, after) => {
      ftruncateSync(fd);
      before.forEach((page, index) =>
        writeSync(fd, Buffer.alloc(PAGE_SIZE, page), 0, PAGE_SIZE, index * PAGE_SIZE),
      );
      // A file system without such moves says so, and all is written.
      if (!rearrange(fd, rangesOf(before), rangesOf(after))) return;
      rearranged += 1;
      const content = readFileSync(path);
      expect(content.length).toBe(after.length * PAGE_SIZE);
      after.forEach((page, index) => {
        const kept = content.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
        if (before.includes(page)) expect(new Set(kept)).toEqual(new Set([page]));
      });
    }),
    { numRuns: 60 },
  );
  expect(rearranged).toBeGreaterThan(0);
});
