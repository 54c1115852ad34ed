import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { bringBack } from "./test-cgroups.ts";
import { imagesDirOf, start, testRoom } from "./suite.ts";

testRoom("restart");

test.each(["nanosleep_restart", "futex_restart", "poll_restart"])(
  "%s: what was interrupted before goes on, too",
  async (name) => {
    const program = await start(name);
    const imagesDir = imagesDirOf(program);
    for (const signal of ["SIGSTOP", "SIGCONT"] as const) {
      process.kill(program.pid, signal);
      await sleep(20);
    }
    await checkpoint({ pid: program.pid, imagesDir });
    const back = await bringBack(program, imagesDir);
    expect(await back.ask()).toBe("ok 1");
    expect(await back.finish()).toBe("pass");
  },
);
