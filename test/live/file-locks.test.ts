// Locks on files through dump and restore.

import { mkdtempSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { again, cycle } from "./cycle.ts";
import { killProgram, makeDir, removeDir, startProgram } from "./programs.ts";

const WITH_LOCKS = { checkpoint: { fileLocks: true } };

test("POSIX, OFD and flock locks and leases are there again, twice", async () => {
  const dir = makeDir("file_locks");
  onTestFinished(() => removeDir(dir));
  let program = await cycle("file_locks", dir, WITH_LOCKS);
  onTestFinished(() => killProgram(program));
  expect(await program.ask()).toBe("ok 1");
  program = await again(program, WITH_LOCKS);
  expect(await program.ask()).toBe("ok 2");
  expect(await program.finish()).toBe("pass");
});

test("without --file-locks the dump is refused, and the program goes on", async () => {
  const dir = makeDir("file_locks");
  onTestFinished(() => removeDir(dir));
  const program = await startProgram("file_locks", [], { dir });
  onTestFinished(() => killProgram(program));
  await program.waitReady();
  const imagesDir = mkdtempSync(join(dir, "images-"));
  const refused = checkpoint({ pid: program.pid, imagesDir });
  await expect(refused).rejects.toMatchObject({ code: "UNSUPPORTED", pid: program.pid });
  await expect(refused).rejects.toThrow(/fd \d+ of pid \d+ \(.*\/posix\): it holds a file lock/);
  expect(readdirSync(imagesDir)).toEqual([]);
  expect(await program.ask()).toBe("ok 1");
});
