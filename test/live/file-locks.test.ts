// Locks on files through dump and restore.

import { mkdtempSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { killProgram, makeDir, removeDir, startProgram } from "./programs.ts";
import { reapOrphansHere, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("locks");

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
