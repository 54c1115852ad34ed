// Starting a container that goes on by itself, with its output in a file. A runtime hands its own standard output and error to the
// restored container in the place of the pipes that the first one had. They must be pipes: a file of the host is in none of the
// container's mounts, so the next checkpoint would be refused. Node's own pipes are sockets, so one is made here, and `cat` reads it for as
// long as somebody in the container may write.

import { spawn, spawnSync } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { syscall } from "../sys/ffi.ts";

/**
 * Runs a command of a runtime whose container outlives it.
 *
 * @param words with the option that makes the runtime write its errors into `log`
 * @throws RepriseError CONTAINER_ENGINE when it is missing or fails.
 */
export function runKeepingOutput(
  words: readonly [string, ...string[]],
  { output, log }: { readonly output: string; readonly log: string },
): void {
  const [program, ...args] = words;
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, O_CLOEXEC);
  const [readEnd, writeEnd] = [ends.readInt32LE(0), ends.readInt32LE(4)];
  const file = openSync(output, "a", 0o600);
  try {
    // Its directory is let go of, its session is its own: it is in nobody's way.
    const reader = { stdio: [readEnd, file, "ignore"], cwd: "/", detached: true } as const;
    spawn("cat", [], { ...reader, stdio: [...reader.stdio] }).unref();
    const { status, error } = spawnSync(program, args, { stdio: ["ignore", writeEnd, writeEnd] });
    if (status === 0) return;
    const reason =
      error === undefined
        ? lastLine(readFileSync(log, "utf8"))
        : ((error as NodeJS.ErrnoException).code ?? error.message);
    throw new RepriseError("CONTAINER_ENGINE", `${words.join(" ")}: ${reason}`, {
      hint: `The command ended with ${status}. ${log}, and the restore.log beside the images, tell more.`,
      cause: error,
    });
  } finally {
    for (const fd of [readEnd, writeEnd, file]) closeSync(fd);
  }
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
