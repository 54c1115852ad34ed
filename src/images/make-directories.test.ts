import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { makeDirectories } from "./make-directories.ts";

it("makes what is missing, once and again", () => {
  const top = mkdtempSync(join(tmpdir(), "reprise-directories-"));
  onTestFinished(() => rmSync(top, { recursive: true }));
  for (const path of ["a/b/c", "a/b/c/", "a"]) makeDirectories(join(top, path), 0o700);
  expect(statSync(join(top, "a/b/c")).mode & 0o777).toBe(0o700);
  writeFileSync(join(top, "file"), "");
  expect(() => makeDirectories(join(top, "file/d"), 0o700)).toThrow("ENOTDIR");
});

it("ends where no directory can be made, as in /proc", () => {
  expect(() => makeDirectories("/proc/nowhere/at/all", 0o700)).toThrow("ENOENT");
});
