// reprise logs: what a task has written to standard output and error.

import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { isAlive, logPath, readTask } from "../../store/tasks.ts";

const POLL_MS = 100;
const CHUNK = 64 * 1024;

export async function logs(
  name: string,
  options: { follow?: boolean; lines?: number },
): Promise<void> {
  readTask(name);
  const text = readFileSync(logPath(name));
  process.stdout.write(options.lines === undefined ? text : lastLines(text, options.lines));
  if (options.follow === true) await follow(name, text.length);
}

/** The bytes from the beginning of the `count`th line from the end. */
export function lastLines(text: Buffer, count: number): Buffer {
  if (count === 0) return text.subarray(text.length);
  let at = text.at(-1) === NEWLINE ? text.length - 1 : text.length;
  for (let left = count; left > 0 && at > 0; left--) at = text.lastIndexOf(NEWLINE, at - 1);
  return text.subarray(at <= 0 && text[0] !== NEWLINE ? 0 : at + 1);
}

const NEWLINE = 10;

/** Ends when the task has ended and all is read; a task that is checkpointed has ended. */
async function follow(name: string, from: number): Promise<void> {
  const fd = openSync(logPath(name), "r");
  const chunk = Buffer.alloc(CHUNK);
  let position = from;
  try {
    for (;;) {
      const alive = isAlive(readTask(name));
      const count = readSync(fd, chunk, 0, chunk.length, position);
      position += count;
      if (count > 0) process.stdout.write(Buffer.from(chunk.subarray(0, count)));
      else if (alive) await setTimeout(POLL_MS);
      else return;
    }
  } finally {
    closeSync(fd);
  }
}
