import { readFileSync } from "node:fs";
import { expect, onTestFinished, test } from "vitest";
import { cycle } from "./cycle.ts";
import { makeDir, removeDir } from "./programs.ts";
import { endWithTest, testRoom } from "./suite.ts";

testRoom("memory");

test("pages that tasks share since a fork take their memory once, as before", async () => {
  const dir = makeDir("cow_fork");
  onTestFinished(() => removeDir(dir));
  let shared = 0;
  const onStats = ({ restore }: { restore: { pages_skipped_cow: number } }): void => {
    shared = restore.pages_skipped_cow;
  };
  const program = endWithTest(await cycle("cow_fork", dir, { onStats }));
  expect(shared).toBeGreaterThan(100);
  // Of shared pages only a part counts for each of those who share them.
  const sizes = readFileSync(`/proc/${program.pid}/smaps_rollup`, "utf8");
  const size = (name: string): number =>
    Number(new RegExp(`^${name}: +(\\d+)`, "m").exec(sizes)?.[1]);
  expect(size("Anonymous") - size("Pss_Anon")).toBeGreaterThan(200);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});
