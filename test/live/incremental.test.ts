// Chains of sets: pre-dumps and dumps of running programs, each with the one before as its parent, and what becomes of a
// chain that is not as it should be.

import { mkdirSync, readdirSync, renameSync, rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { dedup } from "../../src/engine/dedup.ts";
import { preDump } from "../../src/engine/pre-dump.ts";
import type { DumpStats } from "../../src/engine/progress.ts";
import { restore, type RestoreOptions } from "../../src/engine/restore.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start } from "./suite.ts";

reapOrphansHere();

const BETWEEN_MS = 60;

/** Directories 1, 2, … of a chain below the program's own. */
function chainOf(program: RunningProgram, length: number): string[] {
  const top = imagesDirOf(program);
  return Array.from({ length }, (_, index) => {
    const dir = join(top, String(index + 1));
    mkdirSync(dir);
    return dir;
  });
}

function parentOf(index: number): { parentDir?: string } {
  return index === 0 ? {} : { parentDir: `../${index}` };
}

async function expectToComeBack(
  program: RunningProgram,
  imagesDir: string,
  options: Partial<RestoreOptions> = {},
): Promise<void> {
  const { pid } = await restore({ imagesDir, ...options });
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
}

function bytesOnDisk(imagesDir: string): number {
  const files = readdirSync(imagesDir).filter((name) => name.startsWith("pages-"));
  return files.reduce((sum, name) => sum + statSync(join(imagesDir, name)).blocks * 512, 0);
}

function expectExact(stats: DumpStats, imagesDir: string): void {
  const sizes = readdirSync(imagesDir)
    .filter((name) => name.startsWith("pages-"))
    .map((name) => statSync(join(imagesDir, name)).size);
  const pages = sizes.reduce((sum, size) => sum + size, 0) / 4096;
  expect(stats.pages_written + stats.shpages_written).toBe(pages);
}

test.each(["changing_pages", "many_tasks", "big_heap", "memfd_maps", "zombies"])(
  "%s: two pre-dumps and a dump",
  async (name) => {
    const program = await start(name);
    const { pid } = program;
    const dirs = chainOf(program, 3);
    const [first = "", second = "", last = ""] = dirs;
    const one = await preDump({ pid, imagesDir: first });
    expectExact(one.stats, first);
    expect(one.stats.pages_skipped_parent).toBe(0);
    await sleep(BETWEEN_MS);
    const two = await preDump({ pid, imagesDir: second, ...parentOf(1) });
    expectExact(two.stats, second);
    await sleep(BETWEEN_MS);
    const { stats } = await checkpoint({ pid, imagesDir: last, ...parentOf(2) });
    expectExact(stats, last);
    expect(two.stats.pages_skipped_parent).toBeGreaterThan(one.stats.pages_written / 4);
    expect(stats.pages_skipped_parent).toBeGreaterThan(stats.pages_written / 4);
    await expectToComeBack(program, last);
  },
);

test("a chain of dumps of a program that is left running; each of them can be restored", async () => {
  const program = await start("changing_pages");
  const { pid } = program;
  const dirs = chainOf(program, 4);
  for (const [index, imagesDir] of dirs.entries()) {
    await sleep(BETWEEN_MS);
    const leave = index + 1 < dirs.length ? "running" : "killed";
    await checkpoint({ pid, imagesDir, leave, trackMemory: true, ...parentOf(index) });
  }
  for (const imagesDir of dirs)
    await expectToComeBack(program, imagesDir, { newPidNamespace: true });
});

test.each(["by itself", "afterwards"])(
  "pages that a newer set has are given back by the older ones: %s",
  async (when) => {
    const autoDedup = when === "by itself";
    const program = await start("changing_pages");
    const { pid } = program;
    const [first = "", second = "", third = ""] = chainOf(program, 3);
    await preDump({ pid, imagesDir: first });
    await sleep(BETWEEN_MS);
    const before = bytesOnDisk(first);
    await preDump({ pid, imagesDir: second, autoDedup, ...parentOf(1) });
    await sleep(BETWEEN_MS);
    await checkpoint({ pid, imagesDir: third, autoDedup, ...parentOf(2) });
    const given = autoDedup ? [] : [dedup(second), dedup(third)];
    for (const bytes of given) expect(bytes).toBeGreaterThan(0);
    expect(bytesOnDisk(first)).toBeLessThan(before);
    await expect(restore({ imagesDir: second })).rejects.toMatchObject({ code: "BAD_IMAGE" });
    if (autoDedup) {
      const whole = bytesOnDisk(third);
      await expectToComeBack(program, third, { autoDedup });
      expect(bytesOnDisk(third)).toBeLessThan(whole);
      await expect(restore({ imagesDir: third })).rejects.toThrow();
    } else await expectToComeBack(program, third);
  },
);

test("a pre-dump stops no thread more than once, and leaves a stopped task stopped", async () => {
  const program = await start("threads", ["20"]);
  const { stats } = await preDump({ pid: program.pid, imagesDir: imagesDirOf(program) });
  expect(stats.stops).toBe(stats.threads);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test("a parent that has another process under the same pid changes nothing but the size", async () => {
  const other = await start("big_heap");
  const program = await start("changing_pages");
  const [first = "", second = ""] = chainOf(program, 2);
  await preDump({ pid: other.pid, imagesDir: first });
  renameSync(join(first, `pagemap-${other.pid}.img`), join(first, `pagemap-${program.pid}.img`));
  const { stats } = await checkpoint({ pid: program.pid, imagesDir: second, ...parentOf(1) });
  expectExact(stats, second);
  await expectToComeBack(program, second);
});

test.each<[string, (dir: string) => void]>([
  ["has lost its pages", (dir) => rmSync(join(dir, "pages-1.img"))],
  ["is cut off", (dir) => truncateSync(join(dir, "pages-1.img"), 4096)],
  ["has no inventory", (dir) => rmSync(join(dir, "inventory.img"))],
])("a parent that %s is not relied upon", async (_what, spoil) => {
  const program = await start("changing_pages");
  const [first = "", second = ""] = chainOf(program, 2);
  await preDump({ pid: program.pid, imagesDir: first });
  spoil(first);
  await checkpoint({ pid: program.pid, imagesDir: second, ...parentOf(1) });
  await expectToComeBack(program, second);
});

test("a set whose parent is gone is refused, and nothing is left", async () => {
  const program = await start("changing_pages");
  const [first = "", second = ""] = chainOf(program, 2);
  await preDump({ pid: program.pid, imagesDir: first });
  await checkpoint({ pid: program.pid, imagesDir: second, ...parentOf(1) });
  rmSync(first, { recursive: true });
  await expect(restore({ imagesDir: second })).rejects.toThrow("parent set");
});

test.each(["../none", "."])(
  "the parent %s is refused, and the program goes on",
  async (parentDir) => {
    const program = await start("changing_pages");
    const [imagesDir = ""] = chainOf(program, 1);
    const options = { pid: program.pid, imagesDir, parentDir };
    await expect(preDump(options)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    await expect(checkpoint(options)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  },
);
