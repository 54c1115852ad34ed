// Every program runs here without any checkpoint and must pass; those that can spoil their own state
// must then fail. So a failure after a restore is the restore's.

import { expect, onTestFinished, test } from "vitest";
import {
  canBreak,
  killProgram,
  makeDir,
  programNames,
  removeDir,
  startProgram,
  verdictOf,
  type RunningProgram,
} from "./programs.ts";
import { ROOMS } from "./rooms.ts";

const VARIANTS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  umask_cwd_root: [["chroot"]],
  threads: [["40"]],
  many_tasks: [["60"]],
  big_heap: [["16"]],
  heap_at_work: [["16"]],
  heap_upheaval: [["16"]],
  many_fds: [["1000"]],
};

test("there are programs", () => {
  expect(programNames().length).toBeGreaterThan(40);
});

for (const name of programNames().filter((program) => !isDemo(program))) {
  for (const args of [[], ...(VARIANTS[name] ?? [])]) {
    test([name, ...args].join(" "), async () => {
      const program = await start(name, args);
      await program.waitReady();
      expect(await program.ask()).toBe("ok 1");
      expect(await program.ask()).toBe("ok 2");
      expect(await program.finish()).toBe("pass");
      expect(await verdictOf(program.outFile, 1000)).toBe("pass");
    });
  }
}

for (const name of programNames().filter(canBreak)) {
  test(`${name} sees its state spoiled`, async () => {
    const program = await start(name, [], { BREAK: "1" });
    await program.waitReady();
    expect(await program.ask()).toMatch(/^fail: /);
    expect(await program.finish()).toHaveProperty("fail");
  });
}

async function start(
  name: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<RunningProgram> {
  const dir = makeDir(name);
  onTestFinished(() => removeDir(dir));
  const program = await startProgram(name, args, { dir, env });
  onTestFinished(() => killProgram(program));
  return program;
}

test("every program is in a room of the live suites", () => {
  const subjects = Object.values(ROOMS).flatMap((room) => room.map(({ name }) => name));
  expect(programNames().filter((name) => !subjects.includes(name) && !isDemo(name))).toEqual([]);
  expect(subjects.filter((name) => !programNames().includes(name))).toEqual([]);
});

/** Programs that go through no cycle: they do not check themselves, or have what cannot be saved (variants.test.ts). */
function isDemo(name: string): boolean {
  return name === "looper" || name === "refused" || name === "random_state";
}
