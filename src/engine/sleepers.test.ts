// A sleeping process, and one that sleeps again and again in one and the same call.
import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { Sleeper } from "./sleepers.ts";

/** Starts a shell script; its shell waits for the commands in it. */
function startScript(script: string): number {
  const child = spawn("sh", ["-c", script], { stdio: "ignore", detached: true });
  onTestFinished(() => {
    try {
      process.kill(-(child.pid ?? 0), "SIGKILL");
    } catch {
      // It has ended by itself.
    }
  });
  return child.pid ?? 0;
}

/** The process, watched from a moment on when it sleeps. */
async function watch(pid: number): Promise<Sleeper> {
  for (const end = Date.now() + 10_000; Date.now() < end; await sleep(3)) {
    const sleeper = Sleeper.of(pid);
    if (sleeper === undefined) continue;
    onTestFinished(() => sleeper.close());
    return sleeper;
  }
  throw new Error(`pid ${pid} does not sleep`);
}

test("a process that sleeps on is found asleep", async () => {
  const pid = startScript("sleep 30; :");
  await sleep(100);
  const sleeper = await watch(pid);
  expect(sleeper.calls).toHaveLength(1);
  await sleep(100);
  expect(sleeper.sleepsStill()).toBe(true);
});

test("one that woke up and sleeps in the same call again is not", async () => {
  const sleeper = await watch(startScript("while :; do sleep 0.02; done"));
  await sleep(300);
  expect(sleeper.sleepsStill()).toBe(false);
});

test("one that is gone is not", async () => {
  const pid = startScript("sleep 0.3; :");
  const sleeper = await watch(pid);
  await sleep(600);
  expect(sleeper.sleepsStill()).toBe(false);
  expect(Sleeper.of(pid)).toBeUndefined();
});
