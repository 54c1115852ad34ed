// A daemon that works on a host of the tests' own: containerd, dockerd. What it says goes into a log in the host's directory.

import { spawn } from "node:child_process";
import { openSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { lastLines, type Host } from "./host.ts";

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 15_000;

export interface Daemon {
  /** Waits until it answers. Throws when it ends before, or takes too long. */
  waitUntil(answers: () => boolean): Promise<void>;
  /** What it said last. */
  lastLines(): string;
  /** Ends it, if it has not ended yet. */
  stop(): Promise<void>;
}

/** Starts one. */
export function startDaemon(
  { dir, enter, env }: Host,
  command: string,
  args: readonly string[],
): Daemon {
  const path = join(dir, `${command}.log`);
  const log = openSync(path, "a");
  const child = spawn("nsenter", [...enter, command, ...args], {
    stdio: ["ignore", log, log],
    detached: true,
    env,
  });
  return {
    lastLines: () => lastLines(path),
    async waitUntil(answers) {
      for (const end = Date.now() + START_TIMEOUT_MS; !answers(); await sleep(100)) {
        if (child.exitCode !== null || Date.now() > end)
          throw new Error(`${command} does not come up:\n${lastLines(path)}`);
      }
    },
    async stop() {
      if (child.exitCode !== null) return;
      const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
      child.kill("SIGTERM");
      await Promise.race([ended, sleep(STOP_TIMEOUT_MS).then(() => child.kill("SIGKILL"))]);
    },
  };
}
