import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { LogLevel, setLogSink } from "../../src/log.ts";
import { cycle, type CycleStats } from "./cycle.ts";
import { attachProgram, makeDir, removeDir } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("memory");

test("pages that tasks share since a fork take their memory once, as before", async () => {
  const dir = makeDir("cow_fork");
  onTestFinished(() => removeDir(dir));
  let shared = 0;
  const onStats = (stats: CycleStats): void => {
    shared = stats.restore.pages_skipped_cow;
  };
  const program = endWithTest(await cycle("cow_fork", dir, { onStats }));
  expect(shared).toBeGreaterThan(100);
  // Of shared pages only a part counts for each of those who share them.
  const sizes = readFileSync(`/proc/${program.pid}/smaps_rollup`, "utf8");
  const size = (name: string): number =>
    Number(new RegExp(`^${name}: +(\\d+)`, "m").exec(sizes)?.[1]);
  expect(size("Anonymous") - size("Pss_Anon")).toBeGreaterThan(200);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test.each(["the disk", "the page cache"])(
  "much memory is put into its place by the engine, from %s",
  async (source) => {
    const program = await start("bulk_memory");
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    // A dump leaves nothing of much memory in the page cache.
    const pages = readdirSync(imagesDir).filter((name) => name.startsWith("pages-"));
    if (source === "the page cache") for (const name of pages) readFileSync(join(imagesDir, name));
    const lines: string[] = [];
    setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
    onTestFinished(() => setLogSink(undefined));
    const { pid } = await restore({ imagesDir });
    expect(lines.filter((line) => line.endsWith("are copied by the engine"))).toHaveLength(2);
    expect(lines.filter((line) => line.includes("has no userfaultfd"))).toEqual([]);
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  },
);

test("areas have their NUMA policies again, as the kernel tells it, and no other area has one", async () => {
  const program = await start("numa_policies");
  // All others have the thread's, and some of them become one.
  const policies = (pid: number): string[] =>
    readFileSync(`/proc/${pid}/numa_maps`, "utf8").match(/^[\da-f]+ (?!prefer=static)\S+/gm) ?? [];
  const before = policies(program.pid);
  expect(before.join()).toContain("bind=static:0");
  expect(before).toHaveLength(5);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  const { pid } = await restore({ imagesDir });
  endWithTest(attachProgram(program.name, pid, program.dir));
  expect(policies(pid)).toEqual(before);
});

test.each(["used", "unused"])(
  "a probe (%s) that is gone leaves no breakpoint behind",
  async (how) => {
    const program = await start("uprobes", [how]);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    writeFileSync(join(program.dir, "leave"), "");
    await expect.poll(() => existsSync(join(program.dir, "left"))).toBe(true);
    const { pid } = await restore({ imagesDir });
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  },
);

test("a thread whose return a probe waits for is refused", async () => {
  const program = await start("uprobes", ["return"]);
  await expect(checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program) })).rejects.toThrow(
    /^cannot dump pid \d+ \(uprobes\): thread \d+ is in a function whose return/,
  );
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});
