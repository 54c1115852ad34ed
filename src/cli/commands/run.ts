// reprise run: a command under a name.

import { basename } from "node:path";
import { runTask } from "../../store/lifecycle.ts";
import { listTasks } from "../../store/tasks.ts";

export async function run(command: readonly string[], options: { name?: string }): Promise<void> {
  const name = options.name ?? freeName(command[0] ?? "task");
  const { pid } = await runTask(name, command);
  process.stdout.write(`${name} runs as pid ${pid}\n`);
}

/** The program's name, with a number behind it when it is taken. */
function freeName(program: string): string {
  const taken = new Set(listTasks().map((task) => task.name));
  const stem =
    basename(program)
      .replaceAll(/[^A-Za-z0-9_.-]/g, "-")
      .replace(/^[^A-Za-z0-9]+/, "") || "task";
  let name = stem;
  for (let number = 2; taken.has(name); number++) name = `${stem}-${number}`;
  return name;
}
