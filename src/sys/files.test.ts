// Small files: what a single read brings, and what it does not.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { readShortText, readText } from "./files.ts";

test("a text is read whole at once, and one that is not short all the same", () => {
  const dir = mkdtempSync(join(tmpdir(), "reprise-files-"));
  try {
    for (const length of [0, 1, 2048, 2049, 200_000]) {
      const path = join(dir, `${length}`);
      const text = "äb\n".repeat(length / 4 + 1).slice(0, length);
      writeFileSync(path, text);
      expect(readShortText(path)).toBe(text);
      expect(readText(path)).toBe(text);
    }
    expect(readShortText(join(dir, "none"))).toBe(-2);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("files of /proc/sys are read after a text of megabytes, too, which they refuse room for", () => {
  const dir = mkdtempSync(join(tmpdir(), "reprise-files-"));
  try {
    const path = join(dir, "large");
    writeFileSync(path, "a".repeat(9_000_000));
    expect(readText(path)).toHaveLength(9_000_000);
    const name = "/proc/sys/kernel/random/uuid";
    expect(readShortText(name)).toMatch(/^[\da-f-]{36}\n$/);
    expect(readText(name)).toMatch(/^[\da-f-]{36}\n$/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
