// Reprise as a library: what is imported, and the events by which it tells how far it is.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import {
  checkpoint,
  restore,
  RepriseError,
  type CheckpointOptions,
  type ProgressEvent,
  type ProgressListener,
} from "../../src/index.ts";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const ROOT = join(import.meta.dirname, "../..");

/** Takes note of events. */
function listener(): { seen: ProgressEvent[]; onEvent: ProgressListener } {
  const seen: ProgressEvent[] = [];
  return { seen, onEvent: (event) => void seen.push(event) };
}

test("events tell the steps of a dump and of a restore, in order", async () => {
  const program = await start("threads");
  const dump = listener();
  const imagesDir = imagesDirOf(program);
  const { stats } = await checkpoint({ pid: program.pid, imagesDir, onEvent: dump.onEvent });
  expect(dump.seen.map(({ kind }) => kind)).toEqual([
    "frozen",
    "collected",
    "memory",
    "committed",
    "killed",
  ]);
  expect(dump.seen[0]).toMatchObject({ tasks: 1, threads: stats.threads });
  expect(dump.seen[2]).toMatchObject({ pages: stats.pages_written });
  const made = listener();
  const { pid } = await restore({ imagesDir, onEvent: made.onEvent });
  expect(made.seen.map(({ kind }) => kind)).toEqual(["planned", "tree", "restored"]);
  expect(made.seen[0]).toMatchObject({ tasks: 1 });
  expect(made.seen[2]).toMatchObject({ pid });
  for (const { seen } of [dump, made]) {
    const times = seen.map(({ ms }) => ms);
    expect(times).toEqual(times.toSorted((a, b) => a - b));
  }
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await restored.finish()).toBe("pass");
});

test.each(["running", "stopped"] as const)("a tree that is left %s is let go", async (leave) => {
  const program = await start("counter");
  const { seen, onEvent } = listener();
  await checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program), leave, onEvent });
  expect(seen.map(({ kind }) => kind)).toEqual(["frozen", "collected", "memory", "resumed"]);
});

test("a child that Node has started is told as killed, and the restored one with its number is another", async () => {
  const child = spawn("sleep", ["60"], { detached: true, stdio: "ignore" });
  const exit = once(child, "exit");
  const { dir } = await start("counter");
  const imagesDir = mkdtempSync(join(dir, "images-"));
  await checkpoint({ pid: child.pid as number, imagesDir });
  expect(await exit).toEqual([null, "SIGKILL"]);
  const restored = await restore({ imagesDir });
  expect(restored.pid).toBe(child.pid);
  process.kill(restored.pid, "SIGTERM");
  expect(await restored.wait()).toBe(128 + constants.signals.SIGTERM);
  await expect(restored.wait()).rejects.toMatchObject({ code: "NO_SUCH_PROCESS" });
});

test.each([0, -1, 1.5, Number.NaN])("there is no pid %s", async (pid) => {
  const dump = checkpoint({ pid, imagesDir: "/nowhere" });
  await expect(dump).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
});

test.each([
  { imagesDir: "/nowhere" },
  { pid: 1, imagesDir: "/nowhere", leave: "alone" },
  undefined,
])("options of a caller without types: %j", async (options) => {
  const dump = checkpoint(options as unknown as CheckpointOptions);
  await expect(dump).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
});

test("what may not be stopped is refused for that", async () => {
  const imagesDir = mkdtempSync(join(tmpdir(), "reprise-refused-"));
  onTestFinished(() => rmSync(imagesDir, { recursive: true }));
  // The engine's own tree, or one that only the kernel may stop: it depends on where the tests run.
  const dump = checkpoint({ pid: 1, imagesDir });
  await expect(dump).rejects.toMatchObject({
    message: expect.stringMatching(/^cannot (dump|stop) pid 1/) as string,
  });
});

test.each(["", "a\0b"])("%j is no directory", async (imagesDir) => {
  await expect(restore({ imagesDir })).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
});

test("errors have a code, and say what to do", async () => {
  const program = await start("counter");
  const failing = restore({ imagesDir: imagesDirOf(program) });
  await expect(failing).rejects.toBeInstanceOf(RepriseError);
  await expect(failing).rejects.toMatchObject({ code: "IMAGE_MISSING", hint: expect.any(String) });
});

// Made by `npm run build`, as the package has it.
test.runIf(existsSync(join(ROOT, "dist/lib/index.js")))("the package can be imported", () => {
  const script = `import * as it from "reprise"; console.log(Object.keys(it).sort().join())`;
  const node = [process.execPath, ["--input-type=module", "-e", script]] as const;
  const names = execFileSync(...node, { cwd: ROOT, encoding: "utf8" }).trim();
  expect(names).toBe("ERROR_CODES,RepriseError,checkpoint,restore");
});

test.runIf(existsSync(join(ROOT, "dist/lib/index.js")))(
  "the example of the docs does what it says",
  () => {
    const page = readFileSync(join(ROOT, "docs/library.md"), "utf8");
    const script = /```js\n([^]*?)```/.exec(page)?.[1] ?? "";
    const node = [process.execPath, ["--input-type=module", "-e", script]] as const;
    const lines = execFileSync(...node, { cwd: ROOT, encoding: "utf8" }).split("\n");
    const steps = lines.slice(0, 4).map((line) => line.replace(/ after \d+ ms$/, ""));
    expect(steps).toEqual(["frozen", "collected", "memory", "resumed"]);
    expect(lines[4]).toMatch(/^1 task, \d+ pages, frozen for \d+ microseconds$/);
    expect(lines[5]).toMatch(/^the clone runs as \d+$/);
    expect(lines[6]).toBe(`the clone ended with ${128 + constants.signals.SIGTERM}`);
    expect(lines[7]).toMatch(/^PID_TAKEN: /);
    expect(lines[8]).toMatch(/./);
  },
);
