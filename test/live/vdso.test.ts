// A set from a kernel with another vdso: made here by moving a function in the saved vdso's table of symbols. The restored
// program's clocks go through jumps; it is dumped and restored again, by CRIU too, where there is one.

import { closeSync, mkdirSync, openSync, readFileSync, readSync, rmSync, writeSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { loadImageSet } from "../../src/images/check-set.ts";
import { ImageSetReader } from "../../src/images/image-set.ts";
import { MANIFEST_NAME } from "../../src/images/manifest.ts";
import { savedVdso } from "../../src/objects/memory/vdso.ts";
import { readVdsoSymbols } from "../../src/objects/memory/vdso-symbols.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const PAGE = 4096;
const CRIU = process.env["REPRISE_REAL_CRIU"];

test("a vdso of another kernel is led to this one's, again and again", async () => {
  const first = await start("vdso_clock");
  const images = imagesDirOf(first);
  await checkpoint({ pid: first.pid, imagesDir: images });
  moveFunction(images, "__vdso_time");
  const second = endWithTest(await comeBack(first, images));
  expect(await second.ask()).toBe("ok 1");
  expect(kernelAreas(second.pid)).toEqual(["[vdso]", "[vvar]"]);
  const third = endWithTest(await again(second));
  expect(await third.ask()).toBe("ok 2");
  const clone = await checkpointAndClone(third);
  expect(await clone.finish()).toBe("pass");
  expect(await third.finish()).toBe("pass");
});

test.skipIf(CRIU === undefined)("CRIU saves and restores such a task as well", async () => {
  const first = await start("vdso_clock");
  const images = imagesDirOf(first);
  await checkpoint({ pid: first.pid, imagesDir: images });
  moveFunction(images, "__vdso_time");
  const second = endWithTest(await comeBack(first, images));
  const theirs = imagesDirOf(first);
  criu("dump", theirs, ["-t", String(second.pid)]);
  const third = endWithTest(await comeBack(second, theirs));
  expect(await third.ask()).toBe("ok 1");
  const ours = imagesDirOf(first);
  await checkpoint({ pid: third.pid, imagesDir: ours });
  criu("restore", ours, ["-d"]);
  const fourth = endWithTest(attachProgram("vdso_clock", third.pid, third.dir));
  expect(await fourth.ask()).toBe("ok 2");
  expect(await fourth.finish()).toBe("pass");
});

async function again(program: RunningProgram): Promise<RunningProgram> {
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  return comeBack(program, imagesDir);
}

async function comeBack(program: RunningProgram, imagesDir: string): Promise<RunningProgram> {
  const { pid } = await restore({ imagesDir });
  return attachProgram(program.name, pid, program.dir);
}

async function checkpointAndClone(program: RunningProgram): Promise<RunningProgram> {
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
  const { pid } = await restore({ imagesDir, newPidNamespace: true });
  return endWithTest(attachProgram(program.name, pid, program.dir));
}

/** Gives a function of the saved vdso another place, four bytes on, as another compiler would. */
function moveFunction(imagesDir: string, name: string): void {
  const set = loadImageSet(new ImageSetReader(imagesDir));
  const live = set.tasks.get(set.rootPid)?.live;
  const layout = savedVdso(live?.mm.vmas ?? []);
  if (live === undefined || layout === undefined) throw new Error("the set has no vdso");
  const vdso = layout.address + layout.vvarSize;
  const run = live.pagemap.runs.find(
    ({ vaddr, pages }) => vaddr <= vdso && vdso < vaddr + pages * PAGE,
  );
  if (run?.offset === undefined) throw new Error("the vdso was not saved");
  const file = openSync(join(imagesDir, `pages-${live.pagemap.pagesId}.img`), "r+");
  const at = run.offset + vdso - run.vaddr;
  const code = Buffer.alloc(layout.vdsoSize);
  readSync(file, code, 0, code.length, at);
  const offset = readVdsoSymbols(code)?.get(name);
  if (offset === undefined) throw new Error(`the vdso has no ${name}`);
  const wanted = Buffer.alloc(8);
  wanted.writeBigUInt64LE(BigInt(offset));
  // The value stands in the table of symbols, once for each name of the function.
  for (let word = 0; word < offset; word += 8) {
    if (!code.subarray(word, word + 8).equals(wanted)) continue;
    code.writeBigUInt64LE(BigInt(offset + 4), word);
  }
  expect(readVdsoSymbols(code)?.get(name)).toBe(offset + 4);
  writeSync(file, code, 0, code.length, at);
  closeSync(file);
  // It would tell the change; sets of CRIU have none.
  rmSync(join(imagesDir, MANIFEST_NAME));
}

function kernelAreas(pid: number): string[] {
  const maps = readFileSync(`/proc/${pid}/maps`, "utf8");
  return [...new Set(maps.match(/\[(vdso|vvar)\]/g))].sort();
}

function criu(action: "dump" | "restore", images: string, args: readonly string[]): void {
  mkdirSync(images, { recursive: true });
  const options = ["-D", images, "-v4", "-o", "criu.log"];
  const { status } = spawnSync(CRIU ?? "", [action, ...options, ...args], { timeout: 20_000 });
  if (status === 0) return;
  const lines = readFileSync(join(images, "criu.log"), "utf8").split("\n");
  throw new Error(lines.filter((line) => line.includes("Error")).join("; "));
}
