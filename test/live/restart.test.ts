import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { readChildren } from "../../src/proc/children.ts";
import { KernelMemory } from "../../src/sys/kernel-memory.ts";
import { bringBack } from "./test-cgroups.ts";
import { imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("restart");

test.each(["nanosleep_restart", "futex_restart", "poll_restart"])(
  "%s: what was interrupted before goes on, too",
  async (name) => {
    const program = await start(name);
    const imagesDir = imagesDirOf(program);
    for (const signal of ["SIGSTOP", "SIGCONT"] as const) {
      process.kill(program.pid, signal);
      await sleep(20);
    }
    await checkpoint({ pid: program.pid, imagesDir });
    const back = await bringBack(program, imagesDir);
    expect(await back.ask()).toBe("ok 1");
    expect(await back.finish()).toBe("pass");
  },
);

test.runIf(canReadKernel()).each([
  ["once", []],
  ["after it was interrupted before", ["SIGSTOP", "SIGCONT"]],
] as const)("a wait goes on for the rest of its limit: %s", async (_, signals) => {
  const program = await start("limited_waits");
  const imagesDir = imagesDirOf(program);
  for (const signal of signals) {
    process.kill(program.pid, signal);
    await sleep(20);
  }
  await sleep(1200); // of 2000
  await checkpoint({ pid: program.pid, imagesDir });
  await sleep(800);
  const back = await bringBack(program, imagesDir);
  const begun = performance.now();
  expect(await back.ask()).toBe("ok 1");
  const took = performance.now() - begun;
  expect(took).toBeGreaterThan(200);
  expect(took).toBeLessThan(1600);
  expect(await back.finish()).toBe("pass");
});

function canReadKernel(): boolean {
  try {
    using _memory = new KernelMemory();
    return true;
  } catch {
    return false;
  }
}

test.each(["running", "killed"] as const)(
  "a handler ends a call when its signal comes while the tree stands still (%s)",
  async (leave) => {
    const program = await start("signalled_calls");
    const imagesDir = imagesDirOf(program);
    const hooks = {
      queryExternal: () => {
        for (const child of readChildren(program.pid)) process.kill(child, "SIGALRM");
        return [];
      },
    };
    await checkpoint({ pid: program.pid, imagesDir, leave, hooks });
    const after = leave === "running" ? program : await bringBack(program, imagesDir);
    writeFileSync(join(program.dir, "signalled"), "");
    expect(await after.ask()).toBe("ok 1");
    expect(await after.finish()).toBe("pass");
  },
);
