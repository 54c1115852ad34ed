// What is done before the tree is frozen: memory that is written, files that are looked at. It is kept when the program slept, and
// done once more when it did not.

import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  unlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, onTestFinished, test } from "vitest";
import { LogLevel, setLogSink } from "../../src/log.ts";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { freezeTree, releaseTree } from "../../src/engine/freeze.ts";
import { LookAhead, runningTasks } from "../../src/engine/look-ahead.ts";
import { restore } from "../../src/engine/restore.ts";
import { SpacesAhead } from "../../src/engine/spaces-ahead.ts";
import { WrittenAhead } from "../../src/engine/write-ahead.ts";
import { ImageSetWriter } from "../../src/images/image-set.ts";
import { ImageFile, readEntries } from "../../src/images/image-file.ts";
import { attachProgram, removeDir } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const SLEPT = "was written while it slept";
const WOKE_UP = "is written again: it woke up";
const AT_WORK = "was written while it ran";

afterEach(() => setLogSink(undefined));

/** Dumps a program that goes on running; says what became of its memory. */
async function dump(pid: number, imagesDir: string, leave: "running" | "killed"): Promise<string> {
  const lines: string[] = [];
  setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
  mkdirSync(imagesDir);
  await checkpoint({ pid, imagesDir, leave });
  return lines.find((line) => line.startsWith("the memory of pid ")) ?? "nothing ahead";
}

test.each([
  { name: "big_heap", args: ["96"], often: undefined },
  { name: "heap_at_work", args: ["96", "1"], often: WOKE_UP },
  { name: "heap_at_work", args: ["96", "10"], often: AT_WORK },
  { name: "heap_at_work", args: ["96", "60"], often: undefined },
  { name: "heap_upheaval", args: ["96", "5"], often: WOKE_UP },
  { name: "heap_upheaval", args: ["96", "300"], often: undefined },
  // Memory of a program that sleeps is written by another one.
  { name: "heap_upheaval", args: ["96", "2", "writer"], often: WOKE_UP },
])("$name $args", async ({ name, args, often }) => {
  const program = await start(name, args);
  const seen: string[] = [];
  for (let round = 1; round <= 3; round += 1) {
    const imagesDir = join(imagesDirOf(program), `running-${round}`);
    seen.push(await dump(program.pid, imagesDir, "running"));
    expect(await program.ask()).toBe(`ok ${round}`);
  }
  if (name === "big_heap") expect(seen.some((line) => line.includes(SLEPT))).toBe(true);
  // A machine that is busy may let it sleep through one of them.
  if (often !== undefined) expect(seen.every((line) => line.includes(SLEPT))).toBe(false);
  if (often === AT_WORK) expect(seen.join("\n")).toContain(AT_WORK);

  const imagesDir = join(imagesDirOf(program), "last");
  await dump(program.pid, imagesDir, "killed");
  const lines: string[] = [];
  setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
  const { pid } = await restore({ imagesDir });
  expect(lines.some((line) => line.endsWith("are copied by the engine"))).toBe(true);
  expect(lines.filter((line) => line.includes("has no userfaultfd"))).toEqual([]);
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await restored.ask()).toMatch(/^ok /);
  expect(await restored.finish()).toBe("pass");
});

test("a program that ends while its memory is written ahead does not fail the dump of its tree", async () => {
  const { pid } = await start("heap_at_work", ["256", "1"]);
  const images = new ImageSetWriter(mkdtempSync(join(tmpdir(), "reprise-ahead-")), {
    sync: "none",
  });
  onTestFinished(() => removeDir(images.dir));
  let isKilled = false;
  // Its pages file is there as soon as the first pages are on their way.
  const timer = setInterval(() => {
    if (isKilled || !existsSync(images.path("pages-1.img"))) return;
    isKilled = true;
    process.kill(pid, "SIGKILL");
  }, 1);
  onTestFinished(() => clearInterval(timer));
  using ahead = await WrittenAhead.of([pid], images, { timeoutMs: 10_000 });
  expect(isKilled).toBe(true);
  expect(ahead.isEmpty).toBe(true);
  expect(existsSync(images.path("pages-1.img"))).toBe(false);
});

const LOOKED_AGAIN = "the open files are looked at again: a task woke up";

test.each([
  { name: "many_fds", args: ["600"] },
  { name: "shared_offsets", args: ["1"] },
  { name: "shared_offsets", args: ["50"] },
])("files of $name $args", async ({ name, args }) => {
  const program = await start(name, args);
  const lines: string[] = [];
  setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
  for (let round = 1; round <= 3; round += 1) {
    const imagesDir = join(imagesDirOf(program), `running-${round}`);
    await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
  }
  if (name === "many_fds") expect(lines).not.toContain(LOOKED_AGAIN);
  const imagesDir = join(imagesDirOf(program), "last");
  await checkpoint({ pid: program.pid, imagesDir });
  const { pid } = await restore({ imagesDir });
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
});

/** Looks at a program's files while it sleeps, lets something happen to them, and stops it; gives the sizes in files.img. */
async function lookAround(change: (dir: string) => void): Promise<number[] | "again"> {
  const { pid, dir } = await start("shared_offsets", ["100000"]);
  const images = new ImageSetWriter(mkdtempSync(join(tmpdir(), "reprise-look-")), { sync: "none" });
  onTestFinished(() => removeDir(images.dir));
  const tasks = runningTasks([pid]);
  const spaces = SpacesAhead.of(tasks, images, { cgroups: { mode: "ignore" } });
  if (spaces === undefined) throw new Error("its namespaces cannot be looked at");
  const written = WrittenAhead.nothing(images);
  const options = { linkRemap: false, ghostLimit: 0, shellJob: false, spaces, written };
  const look = (): LookAhead | undefined => LookAhead.of(tasks, images, options);
  let ahead = look();
  for (let round = 0; ahead === undefined && round < 100; round += 1) {
    await sleep(10);
    ahead = look();
  }
  if (ahead === undefined) throw new Error("the program does not sleep");
  change(dir);
  const tree = freezeTree(pid, { timeoutMs: 10_000, freezeCgroup: undefined });
  try {
    if (!ahead.holds(tree)) return "again";
    ahead.files.finish();
    using file = new ImageFile(join(images.dir, "files.img"), "files.img");
    return readEntries(file, "files").flatMap(({ value }) =>
      value.reg?.name.includes("/shared-0") === true ? [value.reg.size ?? 0] : [],
    );
  } finally {
    releaseTree(tree, { leaveStopped: false });
    ahead.discard();
    spaces.discard();
  }
}

test("a file that others write to while its holder sleeps has the size of the last moment", async () => {
  const sizes = await lookAround((dir) => appendFileSync(join(dir, "shared-0"), "more"));
  expect(sizes).not.toBe("again");
  expect(new Set(sizes as number[])).toEqual(new Set([16 * 1024 * 1024 + 4]));
});

test.each<{ what: string; change: (dir: string) => void }>([
  { what: "no name", change: (dir) => unlinkSync(join(dir, "shared-0")) },
  { what: "another name", change: (dir) => renameSync(join(dir, "shared-0"), join(dir, "other")) },
  {
    what: "a directory with another name",
    change: (dir) => {
      renameSync(dir, `${dir}-moved`);
      onTestFinished(() => removeDir(`${dir}-moved`));
    },
  },
])("a file that has $what by then is looked at again", async ({ change }) => {
  expect(await lookAround(change)).toBe("again");
});
