import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readFds, readFdNumbers, readFdsIfAlive } from "./fd.ts";

describe("readFds()", () => {
  it("lists descriptors in order with the kernel's text for each", () => {
    const dir = mkdtempSync(join(tmpdir(), "fd-"));
    const path = join(dir, "a b\nc");
    const fd = openSync(path, "w");
    try {
      expect(readFds(process.pid)).toContainEqual({ fd, target: path });
      rmSync(dir, { recursive: true });
      expect(readFds(process.pid)).toContainEqual({ fd, target: `${path} (deleted)` });
      const numbers = readFdNumbers(process.pid);
      expect(numbers).toContain(fd);
      expect(numbers).toStrictEqual(numbers.toSorted((a, b) => a - b));
    } finally {
      closeSync(fd);
    }
    expect(readFds(process.pid)).not.toContainEqual({ fd, target: `${path} (deleted)` });
  });

  it("is undefined for a process that is not there", () => {
    expect(readFdsIfAlive(2 ** 30)).toBeUndefined();
  });
});
