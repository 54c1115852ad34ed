import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
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
