// Cgroups that tests make for their programs; they go with the test.

import { mkdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished } from "vitest";
import { restore } from "../../src/engine/restore.ts";
import { Hierarchies, hierarchyName } from "../../src/objects/cgroups/hierarchies.ts";
import { readCgroups } from "../../src/proc/cgroup.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest } from "./suite.ts";

/** A cgroup that a test has made. */
export interface TestCgroup {
  readonly path: string;
  readonly directory: string;
}

let made = 0;

/** A cgroup below another one, or below the tests' own; it goes with the test. */
export function makeCgroup(
  hierarchy: string,
  name: string,
  above: string = cgroupOf(process.pid, hierarchy) ?? "/",
): TestCgroup {
  const path = join(above, `reprise-test-${process.pid}-${++made}-${name}`);
  const directory = new Hierarchies().directory(hierarchy, path);
  mkdirSync(directory);
  onTestFinished(() => expect.poll(() => isRemoved(directory), { timeout: 10_000 }).toBe(true));
  return { path, directory };
}

/** Removes a cgroup; false while it is in use. */
export function isRemoved(directory: string): boolean {
  if (statSync(directory, { throwIfNoEntry: false }) === undefined) return true;
  try {
    rmdirSync(directory);
    return true;
  } catch {
    return false; // EBUSY until its last task is reaped
  }
}

/** Moves a process. */
export function enter({ directory }: TestCgroup, pid: number): void {
  writeFileSync(join(directory, "cgroup.procs"), String(pid));
}

/** Processes in a cgroup. */
export function members({ directory }: TestCgroup): number[] {
  return readFileSync(join(directory, "cgroup.procs"), "utf8")
    .split("\n")
    .filter(Boolean)
    .map(Number);
}

/** Path of a process's cgroup. */
export function cgroupOf(pid: number, hierarchy: string): string | undefined {
  return readCgroups(pid).find((entry) => hierarchyName(entry) === hierarchy)?.path;
}

/** Children of a process. */
export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
    .split(" ")
    .filter(Boolean)
    .map(Number);
}

/** Whether a hierarchy can be reached. */
export function isMounted(hierarchy: string): boolean {
  return new Hierarchies().find(hierarchy, "/") !== undefined;
}

/** Restores a program, which ends with the test. */
export async function bringBack(
  program: RunningProgram,
  imagesDir: string,
  options: Partial<Parameters<typeof restore>[0]> = {},
): Promise<RunningProgram> {
  const { pid } = await restore({ imagesDir, ...options });
  return endWithTest(attachProgram(program.name, pid, program.dir));
}
