// Memory that is compared with the parent set while a program writes to it: what is held to be equal in the end is equal.

import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { ComparedAhead } from "../../src/engine/compare-ahead.ts";
import { freezeTree, releaseTree } from "../../src/engine/freeze.ts";
import { linkParent, ParentSet } from "../../src/engine/incremental.ts";
import { preDump } from "../../src/engine/pre-dump.ts";
import { restore } from "../../src/engine/restore.ts";
import { BareSet } from "../../src/images/pagemap-set.ts";
import { SavedPages } from "../../src/objects/memory/saved-pages.ts";
import { TaskMemory } from "../../src/objects/memory/task-memory.ts";
import { probeFeature } from "../../src/kernel/features.ts";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const hasScan = probeFeature("pagemap_scan").supported;
const LARGE = "24576";

test.skipIf(!hasScan)("what is known before the tree is frozen holds when it is", async () => {
  const program = await start("changing_pages");
  const { pid } = program;
  const top = imagesDirOf(program);
  const [first, second] = ["1", "2"].map((name) => join(top, name)) as [string, string];
  mkdirSync(second);
  await preDump({ pid, imagesDir: first });
  linkParent(second, "../1");
  const options = { timeoutMs: 10_000, freezeCgroup: undefined };
  const parent = ParentSet.of(second);
  using ahead = ComparedAhead.of(pid, { ...options, parent, fromBytes: 0 });
  await sleep(30);
  const tree = freezeTree(pid, options);
  try {
    using memory = new TaskMemory(pid);
    using saved = new SavedPages(new BareSet(first), { kind: "pagemap", id: pid });
    const known = ahead.known(pid);
    const pages = known.reduce((sum, { length }) => sum + length, 0) / 4096;
    // The program writes some pages of its 1024 in this time, and leaves many alone.
    expect(pages).toBeGreaterThan(50);
    for (const range of known) {
      for (let address = range.address; address < range.address + range.length; address += 4096) {
        const [now, then] = [Buffer.alloc(4096), Buffer.alloc(4096)];
        expect(memory.read([{ address, length: 4096 }], now)).toHaveLength(1);
        expect(saved.read(address, then)).toBe(4096);
        expect(now.equals(then), address.toString(16)).toBe(true);
      }
    }
  } finally {
    releaseTree(tree, { leaveStopped: false });
  }
  ahead[Symbol.dispose]();
  expect(readFileSync(`/proc/${pid}/smaps`, "utf8")).not.toMatch(/^VmFlags:.* uw\b/m);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test("a program with much memory comes back from a chain, and is left as it was", async () => {
  const program = await start("changing_pages", [LARGE]);
  const { pid } = program;
  const top = imagesDirOf(program);
  const dirs = ["1", "2", "3"].map((name) => join(top, name)) as [string, string, string];
  await preDump({ pid, imagesDir: dirs[0] });
  const descriptors = readFileSync(`/proc/${pid}/status`, "utf8").match(/^FDSize.*/m)?.[0];
  for (const [index, imagesDir] of dirs.slice(1).entries()) {
    mkdirSync(imagesDir);
    const leave = index === 0 ? "running" : "killed";
    const parentDir = `../${index + 1}`;
    const { stats } = await checkpoint({ pid, imagesDir, parentDir, leave });
    expect(stats.pages_skipped_parent).toBeGreaterThan(1000);
    if (leave === "killed") continue;
    const maps = readFileSync(`/proc/${pid}/smaps`, "utf8");
    expect(maps).not.toMatch(/^VmFlags:.* uw\b/m);
    expect(readFileSync(`/proc/${pid}/status`, "utf8")).toContain(descriptors);
    expect(await program.ask()).toBe("ok 1");
  }
  const { pid: restored } = await restore({ imagesDir: dirs[2] });
  const back = endWithTest(attachProgram(program.name, restored, program.dir));
  expect(await back.ask()).toMatch(/^ok/);
  expect(await back.finish()).toBe("pass");
});
