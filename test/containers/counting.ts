// What runs in a container of the tests: it counts, so that a checkpoint which loses or repeats a moment shows.

import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Counts to its standard output; a pids limit may forbid the fork of a sleep now and then. */
export const COUNT =
  "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.2 2>/dev/null || sleep 1; done";

const COUNT_TIMEOUT_MS = 15_000;

/** The lines that were counted into a file so far. */
export function numbers(file: string): number[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, "utf8").split("\n").filter(Boolean).map(Number);
}

/** Waits until a file has at least so many lines. */
export async function counted(file: string, count: number): Promise<void> {
  for (const end = Date.now() + COUNT_TIMEOUT_MS; numbers(file).length < count; await sleep(20))
    if (Date.now() > end)
      throw new Error(`${file} has ${numbers(file).length} lines, and does not come to ${count}`);
}

/** Fails unless the lines are 0, 1, 2, … */
export function expectNoGap(seen: readonly number[]): void {
  const wrong = seen.findIndex((number, index) => number !== index);
  if (wrong >= 0) throw new Error(`${seen[wrong]} stands where ${wrong} should be counted`);
}
