import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { readLimits } from "../../src/proc/limits.ts";
import { again, type CycleStats } from "./cycle.ts";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

const CRIU = fileURLToPath(new URL("../../bin/criu", import.meta.url));

testRoom("files");

test("10,000 descriptors of ten kinds take as many stops as 100", { timeout: 60_000 }, async () => {
  const stops: (readonly number[])[] = [];
  const onStats = ({ dump, restore }: CycleStats): void =>
    void stops.push([dump.stops, restore.stops]);
  for (const count of ["100", "10000"]) {
    const program = endWithTest(await again(await start("many_kinds", [count]), { onStats }));
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  }
  expect(stops[1]).toEqual(stops[0]);
});

test("of other kinds, 1400 descriptors take as many stops as 14", { timeout: 60_000 }, async () => {
  const stops: (readonly number[])[] = [];
  const options = {
    onStats: ({ dump, restore }: CycleStats): void => void stops.push([dump.stops, restore.stops]),
    checkpoint: { tcp: { established: true }, fileLocks: true },
    restore: { tcp: { established: true } },
  } as const;
  for (const count of ["1", "100"]) {
    const program = endWithTest(await again(await start("many_others", [count]), options));
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  }
  expect(stops[1]).toEqual(stops[0]);
});

test("what is in the pipes of a tree may be more than the work area", async () => {
  const program = endWithTest(await again(await start("many_pairs", ["600", "full"])));
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test("a restore needs room for twice as many descriptors as there are, not for three times", async () => {
  // With CAP_SYS_RESOURCE the limit is raised for the restore; then it must be the old one again.
  const program = await start("many_pairs", ["200", "1000"]);
  const limits = readLimits(program.pid);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  const pidfile = join(program.dir, "pid");
  const options = ["-D", imagesDir, "--restore-detached", "--pidfile", pidfile];
  execFileSync("prlimit", ["--nofile=1000", CRIU, "restore", ...options]);
  const pid = Number(readFileSync(pidfile, "utf8"));
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(readLimits(pid)).toEqual(limits);
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
});
