// Running the command of a container engine. What it says when it fails is the reason that the user needs.

import { spawnSync } from "node:child_process";
import { RepriseError } from "../errors.ts";

/**
 * Runs a command to its end; its standard output without the last newline.
 *
 * @throws RepriseError CONTAINER_ENGINE when it is missing or fails.
 */
export function runCommand(words: readonly [string, ...string[]]): string {
  const [program, ...args] = words;
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    maxBuffer: 64 * 1024 * 1024,
  });
  if (error !== undefined) {
    throw new RepriseError(
      "CONTAINER_ENGINE",
      `cannot run ${program}: ${(error as NodeJS.ErrnoException).code ?? error.message}`,
      { hint: `Is ${program} installed and in PATH?`, cause: error },
    );
  }
  if (status !== 0) {
    throw new RepriseError("CONTAINER_ENGINE", `${words.join(" ")}: ${lastLine(stderr)}`, {
      hint: `The command ended with ${status}. Its log, and the dump.log or restore.log that it names, tell more.`,
    });
  }
  return stdout.replace(/\n$/, "");
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
