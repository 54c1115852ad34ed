import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { expect, test } from "vitest";
import { crc32OfZlib } from "./zlib.ts";

test("the checksum that the process has in it is that of Node's zlib, whole and in parts", () => {
  const ours = crc32OfZlib();
  if (ours === undefined) throw new Error("this Node has no crc32 of zlib");
  const bytes = randomBytes(70_001);
  expect(ours(bytes, 0)).toBe(crc32(bytes));
  expect(ours(bytes.subarray(33), ours(bytes.subarray(0, 33), 0))).toBe(crc32(bytes));
  expect(ours(bytes.subarray(0, 0), 7)).toBe(7);
});
