// reprise rm: forgets tasks.

import { RepriseError } from "../../errors.ts";
import { killTask } from "../../store/lifecycle.ts";
import { isAlive, readTask, removeTask } from "../../store/tasks.ts";

export function remove(names: readonly string[], options: { force?: boolean }): void {
  for (const name of names) {
    const task = readTask(name);
    if (isAlive(task) && options.force !== true) {
      throw new RepriseError("BAD_ARGUMENT", `${name} is running (pid ${task.pid})`, {
        pid: task.pid,
        hint: `To end and remove it: reprise rm --force ${name}`,
      });
    }
    killTask(task);
    removeTask(name);
    process.stdout.write(`${name} removed\n`);
  }
}
