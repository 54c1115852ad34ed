// The tests that every program goes through: two cycles of dump and restore with a check after each, a clone beside the
// running original, and the bounds on how often threads are stopped.

import { describe, expect, onTestFinished, test } from "vitest";
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { PR_SET_CHILD_SUBREAPER } from "../../src/sys/abi/sched.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { readChildren } from "../../src/proc/children.ts";
import { again, type CycleStats } from "./cycle.ts";
import {
  attachProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";
import { ROOMS, type Subject } from "./rooms.ts";

/** Most stops of one thread: a remote stop costs up to 0.25 ms, so they bound the time that a task stands still. */
const DUMP_STOPS = 8;
const RESTORE_STOPS = 20;

/** Runs all tests of a room. */
export function testRoom(room: string): void {
  for (const subject of ROOMS[room] ?? []) {
    describe([subject.name, ...(subject.args ?? [])].join(" "), () => {
      test("comes back twice", () => comesBackTwice(subject));
      if (subject.alone === undefined) {
        test("goes on beside a clone in another pid namespace", () => goesOnBesideClone(subject));
      }
    });
  }
}

/**
 * Has orphans of a dump's trees reaped by the engine, and not when pid 1 finds the time: a restore waits for their numbers. For files
 * in which the engine works in the process of the tests alone.
 */
export function reapOrphansHere(): void {
  syscall("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

/** Starts a program that ends with the test. */
export async function start(
  name: string,
  args: readonly string[] = [],
  options: { readonly inner?: boolean } = {},
): Promise<RunningProgram> {
  const dir = makeDir(name);
  onTestFinished(() => removeDir(dir));
  const program = await startProgram(name, args, { dir });
  endWithTest(program);
  await program.waitReady();
  if (options.inner !== true) return program;
  const [child] = readChildren(program.pid);
  return endWithTest(attachProgram(name, child ?? 0, dir));
}

/** Kills what is left of a program when the test is over. */
export function endWithTest(program: RunningProgram): RunningProgram {
  onTestFinished(() => killProgram(program));
  return program;
}

/** A new directory for images below the program's own. */
export function imagesDirOf(program: RunningProgram): string {
  return mkdtempSync(join(program.dir, "images-"));
}

/** Two cycles of dump and restore, with a check after each. */
export async function comesBackTwice(subject: Subject): Promise<void> {
  const stats: CycleStats[] = [];
  const options = {
    onStats: (seen: CycleStats) => stats.push(seen),
    ...(subject.checkpoint === undefined ? {} : { checkpoint: subject.checkpoint }),
    ...(subject.restore === undefined ? {} : { restore: subject.restore }),
  };
  const first = await start(subject.name, subject.args, subject);
  const second = endWithTest(await again(first, options));
  expect(await second.ask()).toBe("ok 1");
  const third = endWithTest(await again(second, options));
  expect(await third.ask()).toBe("ok 2");
  expect(await third.finish()).toBe("pass");
  for (const { dump, restore: made } of stats) {
    expect(dump.stops).toBeLessThanOrEqual(DUMP_STOPS * dump.threads);
    expect(made.stops).toBeLessThanOrEqual(RESTORE_STOPS * Math.max(made.threads, made.tasks));
  }
}

/** A clone beside the running original. */
export async function goesOnBesideClone(subject: Subject): Promise<void> {
  const original = await start(subject.name, subject.args, subject);
  const imagesDir = imagesDirOf(original);
  await checkpoint({ pid: original.pid, imagesDir, leave: "running", ...subject.checkpoint });
  const { pid } = await restore({ imagesDir, newPidNamespace: true });
  expect(pid).not.toBe(original.pid);
  const clone = endWithTest(attachProgram(subject.name, pid, original.dir));
  expect(await clone.ask()).toBe("ok 1");
  expect(await clone.finish()).toBe("pass");
  expect(await original.ask()).toBe("ok 1");
  expect(await original.finish()).toBe("pass");
}
