// Seccomp through dump and restore.

import { expect, onTestFinished, test } from "vitest";
import { again, cycle } from "./cycle.ts";
import { killProgram, makeDir, removeDir } from "./programs.ts";

test("strict mode and chains of filters, thread by thread, are there again, twice", async () => {
  const dir = makeDir("seccomps");
  onTestFinished(() => removeDir(dir));
  let program = await cycle("seccomps", dir);
  onTestFinished(() => killProgram(program));
  expect(await program.ask()).toBe("ok 1");
  program = await again(program);
  expect(await program.ask()).toBe("ok 2");
  expect(await program.finish()).toBe("pass");
});
