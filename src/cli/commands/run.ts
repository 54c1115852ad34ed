// reprise run: a command under a name.

import { basename } from "node:path";
import { runTask } from "../../store/lifecycle.ts";
import { RepriseError } from "../../errors.ts";
import { taskNames } from "../../store/tasks.ts";

export async function run(
  command: readonly string[],
  options: { name?: string; host?: boolean },
): Promise<void> {
  const placement = options.host === true ? "host" : "pid-namespace";
  const tried = new Set<string>();
  for (;;) {
    const name = options.name ?? freeName(command[0] ?? "task", tried);
    try {
      const { pid } = await runTask(name, command, { placement });
      process.stdout.write(`${name} runs as pid ${pid}\n`);
      return;
    } catch (error) {
      // Another command has just taken it, and is not done yet.
      const isTaken = error instanceof RepriseError && error.code === "NAME_TAKEN";
      if (!isTaken || options.name !== undefined) throw error;
      tried.add(name);
    }
  }
}

const STEM_LENGTH = 50;

/** The program's name, with a number behind it when it is taken. */
function freeName(program: string, tried: ReadonlySet<string>): string {
  const taken = new Set([...taskNames(), ...tried]);
  const stem =
    basename(program)
      .replaceAll(/[^A-Za-z0-9_.-]/g, "-")
      .replace(/^[^A-Za-z0-9]+/, "")
      .slice(0, STEM_LENGTH) || "task";
  let name = stem;
  for (let number = 2; taken.has(name); number++) name = `${stem}-${number}`;
  return name;
}
