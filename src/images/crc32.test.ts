import { crc32 as zlibCrc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import { crc32 } from "./crc32.ts";

describe("crc32()", () => {
  it("gives the value that is known of a well-known text", () => {
    expect(crc32(Buffer.from("123456789"))).toBe(0xcbf4_3926);
  });

  it("goes on from a value, and agrees with zlib on little and on much", () => {
    const bytes = Buffer.from(Array.from({ length: 70_000 }, (_, i) => (i * i) & 0xff));
    for (let round = 0; round < 12; round++) {
      const first = crc32(bytes.subarray(0, 12_345));
      expect(crc32(bytes.subarray(12_345), first)).toBe(zlibCrc32(bytes));
    }
  });
});
