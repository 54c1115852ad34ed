import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { spawnProgram } from "../../src/sys/ffi.ts";
import { waitFor } from "../../src/sys/process.ts";
import { imagesDirOf, start, testRoom } from "./suite.ts";

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

test("a process that has ended, and waits to be asked how, is no tree", async () => {
  const { dir } = await start("counter");
  const pid = spawnProgram("/bin/true", ["true"]);
  while (readStatIfAlive(pid)?.state !== "Z") await sleep(1);
  const dump = checkpoint({ pid, imagesDir: mkdtempSync(join(dir, "images-")) });
  await expect(dump).rejects.toMatchObject({ code: "NO_SUCH_PROCESS", pid });
  expect(waitFor(pid)).toMatchObject({ pid, status: 0 });
});
