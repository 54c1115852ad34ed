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
    const said = wordsOf(lastLine(stderr));
    throw new RepriseError("CONTAINER_ENGINE", `${words.join(" ")}: ${said}`, {
      hint: adviceFor(program, said) ?? `The command ended with ${status}. ${MORE}`,
    });
  }
  return stdout.replace(/\n$/, "");
}

/** Whether a command succeeds. @throws RepriseError CONTAINER_ENGINE when it is missing. */
export function succeeds(words: readonly [string, ...string[]]): boolean {
  const [program, ...args] = words;
  const { status, error } = spawnSync(program, args, { stdio: "ignore" });
  // To say so is what runCommand does.
  if (error !== undefined) runCommand(words);
  return status === 0;
}

const MORE = "Its log, and the dump.log or restore.log that it names, tell more.";

/** Without what is around an error in a log: `time=… level=error msg="…"` of runc, `Error: ` of Podman. */
function wordsOf(line: string): string {
  const inLog = /level=\w+ msg=("(?:[^"\\]|\\.)*")/.exec(line)?.[1];
  if (inLog !== undefined) return String(JSON.parse(inLog.replaceAll(/\\x[0-9a-f]{2}/gi, "?")));
  return line.replace(/^Error: /, "");
}

function adviceFor(program: string, said: string): string | undefined {
  if (
    /does not exist|no such container|no container with|cannot open|No such file or dir/i.test(said)
  )
    return `\`${program} ${program === "podman" ? "ps -a" : "list"}\` tells which containers there are.`;
  if (/not running|is stopped|has stopped|state improper/i.test(said))
    return "Only a container that runs can be saved: start it first.";
  return undefined;
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
