import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { countFds, readFds, readFdNumbers, readFdsIfAlive } from "./fd.ts";

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

it("the count of descriptors is that of their list, or what is known besides", () => {
  // Listing takes one, which may be on the list or not; so may older kernels not tell.
  const listed = readFdNumbers(process.pid).length;
  expect([listed - 1, listed, 100_000]).toContain(countFds(process.pid, 100_000));
  expect(countFds(2 ** 22 + 1, 7)).toBe(7);
});
