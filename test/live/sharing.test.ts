// Processes that share memory, directories or signal handlers, looked at from outside; and those that are on their way through vfork.

import { readdirSync } from "node:fs";
import { relative } from "node:path";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { preDump } from "../../src/engine/pre-dump.ts";
import { restore } from "../../src/engine/restore.ts";
import { readChildrenIfAlive } from "../../src/proc/children.ts";
import { KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_VM } from "../../src/sys/abi/sched.ts";
import { kcmp } from "../../src/sys/process.ts";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start } from "./suite.ts";

reapOrphansHere();

test("what processes share is shared by the same ones after a restore, and saved once", async () => {
  const program = await start("shared_parts");
  const before = relations(program.pid);
  expect(before.filter((name) => name.startsWith("memory"))).toHaveLength(7);
  const imagesDir = imagesDirOf(program);
  const { stats } = await checkpoint({ pid: program.pid, imagesDir });
  // The program, and the two orphans that have another memory.
  expect(readdirSync(imagesDir).filter((name) => /^pagemap-\d/.test(name))).toHaveLength(3);
  expect(stats.stops).toBeLessThan(20 * stats.tasks);
  const made = await restore({ imagesDir });
  const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
  expect(relations(made.pid)).toEqual(before);
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
});

test("a vfork that does not end is refused by name, and does not hold the dump up", async () => {
  const program = await start("vforks", ["stuck"]);
  const imagesDir = imagesDirOf(program);
  const begun = performance.now();
  const refused = checkpoint({ pid: program.pid, imagesDir });
  await expect(refused).rejects.toMatchObject({ code: "UNSUPPORTED", pid: program.pid });
  await expect(refused).rejects.toThrow(/thread \d+ waits for a child that it made by vfork/);
  expect(performance.now() - begun).toBeLessThan(5000);
  expect(readdirSync(imagesDir)).toEqual([]);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test("a child that takes its time between vfork and exec is waited for", async () => {
  const program = await start("vforks", ["200"]);
  for (let round = 0; round < 3; round++) {
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
    expect(await program.ask()).toBe(`ok ${round + 1}`);
  }
  expect(await program.finish()).toBe("pass");
});

test.each([
  ["table", /thread \d+ has a table of descriptors of its own/],
  ["net", /thread \d+ has a net namespace of its own/],
  ["table 40", /thread \d+ has a table of descriptors of its own/],
  ["net 40", /thread \d+ has a net namespace of its own/],
])("a thread with something of its own is refused by name: %s", async (what, message) => {
  const program = await start("thread_places", what.split(" "));
  const imagesDir = imagesDirOf(program);
  const refused = checkpoint({ pid: program.pid, imagesDir });
  await expect(refused).rejects.toMatchObject({ code: "UNSUPPORTED", pid: program.pid });
  await expect(refused).rejects.toThrow(message);
  expect(readdirSync(imagesDir)).toEqual([]);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test("processes in one memory are left running, saved in a chain, and left stopped", async () => {
  const program = await start("shared_parts");
  const { pid } = program;
  await checkpoint({ pid, imagesDir: imagesDirOf(program), leave: "running", strict: true });
  expect(await program.ask()).toBe("ok 1");
  const [first, second] = [imagesDirOf(program), imagesDirOf(program)];
  await preDump({ pid, imagesDir: first });
  const { stats } = await checkpoint({
    pid,
    imagesDir: second,
    parentDir: relative(second, first),
  });
  expect(stats.pages_skipped_parent).toBeGreaterThan(0);
  const made = await restore({ imagesDir: second, leaveStopped: true });
  for (const stopped of [made.pid, ...(readChildrenIfAlive(made.pid) ?? [])])
    process.kill(stopped, "SIGCONT");
  const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
  expect(await restored.ask()).toBe("ok 2");
  expect(await restored.finish()).toBe("pass");
});

/** Which pairs of a process and its children have what in common. */
function relations(root: number): string[] {
  const pids = [root, ...(readChildrenIfAlive(root) ?? [])].sort((a, b) => a - b);
  const kinds = {
    memory: KCMP_VM,
    directories: KCMP_FS,
    table: KCMP_FILES,
    handlers: KCMP_SIGHAND,
  };
  return Object.entries(kinds).flatMap(([what, kind]) =>
    pids.flatMap((pid, index) =>
      pids
        .slice(index + 1)
        .filter((other) => kcmp({ pid }, { pid: other }, kind) === 0)
        .map((other) => `${what} of ${pid} and ${other}`),
    ),
  );
}
