import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { freezeTree, releaseTree } from "../../src/engine/freeze.ts";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { readStatus } from "../../src/proc/status.ts";
import { spawnProgram } from "../../src/sys/ffi.ts";
import { waitFor } from "../../src/sys/process.ts";
import { imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("tree");

test.each([
  { name: "many_tasks", grows: true },
  { name: "counter", grows: false },
])("the growth by pages that fork has shared is told: $name", async ({ name, grows }) => {
  const program = await start(name);
  const imagesDir = imagesDirOf(program);
  const { stats } = await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
  expect(stats.pages_shared_by_fork > 0).toBe(grows);
});

test("a tree that went on before its images were complete goes on when they cannot be completed", async () => {
  const program = await start("counter");
  const imagesDir = imagesDirOf(program);
  const { pid } = program;
  const taken = checkpoint({
    pid,
    imagesDir,
    leave: "running",
    onEvent: ({ kind }) => {
      if (kind === "resumed") rmSync(imagesDir, { recursive: true });
    },
  });
  await expect(taken).rejects.toMatchObject({ code: "SYSCALL" });
  expect(existsSync(imagesDir)).toBe(false);
  expect(await program.ask()).toMatch(/^ok/);
  expect(readStatus(pid).tracerPid).toBe(0);
  await checkpoint({ pid, imagesDir, leave: "running" });
  expect(await program.ask()).toMatch(/^ok/);
});

test("a process that has ended, and waits to be asked how, is no tree", async () => {
  const { dir } = await start("counter");
  const pid = spawnProgram("/bin/true", ["true"]);
  while (readStatIfAlive(pid)?.state !== "Z") await sleep(1);
  const dump = checkpoint({ pid, imagesDir: mkdtempSync(join(dir, "images-")) });
  await expect(dump).rejects.toMatchObject({ code: "NO_SUCH_PROCESS", pid });
  expect(waitFor(pid)).toMatchObject({ pid, status: 0 });
});

test("a stop that a process was sent a moment before is its state, and stays", async () => {
  // On one processor, with the lowest priority: it has not come to its stop when it is looked at.
  const [own] = execFileSync("taskset", ["-p", String(process.pid)], { encoding: "utf8" })
    .trim()
    .split(" ")
    .toReversed();
  onTestFinished(() => void execFileSync("taskset", ["-p", own ?? "3", String(process.pid)]));
  execFileSync("taskset", ["-pc", "0", String(process.pid)]);
  const command = ["-i", "0", "taskset", "-c", "0", "sleep", "1000"];
  const { pid = 0 } = spawn("chrt", command, { stdio: "ignore" });
  onTestFinished(() => void process.kill(pid, "SIGKILL"));
  const becomes = (state: string): Promise<void> =>
    expect.poll(() => readStatIfAlive(pid)?.state, { timeout: 10_000, interval: 5 }).toBe(state);
  await sleep(200);
  for (let round = 0; round < 5; round++) {
    process.kill(pid, "SIGSTOP");
    const tree = freezeTree(pid, { timeoutMs: 5000 });
    expect(tree.tasks[0]?.state).toBe("stopped");
    releaseTree(tree, { leaveStopped: false });
    await sleep(20);
    await becomes("T");
    process.kill(pid, "SIGCONT");
    await becomes("S");
  }
});
