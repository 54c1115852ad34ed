// Dumps of trees that somebody else has frozen, as a whole or in part: they are thawed for the time that they stand in ptrace
// stops, and are frozen afterwards as they were found, unless somebody thaws them meanwhile.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { LogLevel, setLogSink } from "../../src/log.ts";
import { start, imagesDirOf } from "./suite.ts";
import {
  childrenOf,
  bringBack,
  enter,
  isMounted,
  makeCgroup,
  type TestCgroup,
} from "./test-cgroups.ts";
import type { RunningProgram } from "./programs.ts";

const FREEZERS = [
  { hierarchy: "freezer", file: "freezer.state", frozen: "FROZEN", thawed: "THAWED" },
  { hierarchy: "", file: "cgroup.freeze", frozen: "1", thawed: "0" },
].filter(({ hierarchy }) => isMounted(hierarchy));

describe.each(FREEZERS)("in the hierarchy '$hierarchy'", ({ hierarchy, file, frozen, thawed }) => {
  const set = ({ directory }: TestCgroup, state: string): void =>
    writeFileSync(join(directory, file), state);
  const get = ({ directory }: TestCgroup): string =>
    readFileSync(join(directory, file), "utf8").trim();

  /** A program whose children are in a cgroup of their own, below its own. */
  async function makeTree(): Promise<{
    program: RunningProgram;
    above: TestCgroup;
    home: TestCgroup;
    inner: TestCgroup;
    beside: TestCgroup;
  }> {
    const above = makeCgroup(hierarchy, "above");
    const home = makeCgroup(hierarchy, "home", above.path);
    const inner = makeCgroup(hierarchy, "inner", home.path);
    const beside = makeCgroup(hierarchy, "beside", above.path);
    const program = await start("many_tasks", ["3"]);
    enter(home, program.pid);
    for (const child of childrenOf(program.pid)) enter(inner, child);
    enter(beside, childrenOf(program.pid)[0] as number);
    onTestFinished(() => [above, home, inner, beside].forEach((one) => set(one, thawed)));
    return { program, above, home, inner, beside };
  }

  test("a program that sleeps is not woken by the freezer that a dump is to use", async () => {
    const home = makeCgroup(hierarchy, "home");
    const program = await start("many_fds", ["20"]);
    enter(home, program.pid);
    const lines: string[] = [];
    setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
    onTestFinished(() => setLogSink(undefined));
    for (let round = 0; round < 8; round += 1) {
      await checkpoint({
        pid: program.pid,
        imagesDir: imagesDirOf(program),
        leave: "running",
        freezeCgroup: home.directory,
      });
    }
    expect(lines.filter((line) => line.endsWith("a task woke up"))).toEqual([]);
  });

  test.each(["above", "home", "inner", "beside"] as const)(
    "a tree that is frozen %s",
    async (which) => {
      const tree = await makeTree();
      const { program } = tree;
      const imagesDir = imagesDirOf(program);
      set(tree[which], frozen);
      await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
      await expect.poll(() => get(tree[which])).toBe(frozen);
      set(tree[which], thawed);
      expect(await program.ask()).toBe("ok 1");
      if (which !== "inner") return;
      set(tree[which], frozen);
      await checkpoint({ pid: program.pid, imagesDir });
      const back = await bringBack(program, imagesDir);
      expect(await back.ask()).toBe("ok 2");
      expect(await back.finish()).toBe("pass");
    },
  );
});
