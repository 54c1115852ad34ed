// reprise ps: the tasks and what they are doing.

import { listCheckpoints } from "../../store/checkpoints.ts";
import { isAlive, readTask, taskNames, taskState, type TaskRecord } from "../../store/tasks.ts";
import { ageText, commandText, table } from "../text.ts";

const COMMAND_WIDTH = 60;

export function ps(options: { json?: boolean }): void {
  const records: TaskRecord[] = [];
  const damaged: unknown[] = [];
  for (const name of taskNames()) {
    try {
      records.push(readTask(name));
    } catch (error) {
      damaged.push(error);
    }
  }
  show(records, options);
  // The others are shown all the same.
  if (damaged.length > 0) throw damaged[0];
}

function show(records: readonly TaskRecord[], options: { json?: boolean }): void {
  const tasks = records.map((task) => ({
    ...task,
    state: taskState(task),
    checkpoints: listCheckpoints(task.name).length,
  }));
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(tasks, undefined, 2)}\n`);
    return;
  }
  const rows = tasks.map((task) => [
    task.name,
    isAlive(task) ? String(task.pid) : "-",
    task.state,
    ageText(task.createdAt),
    String(task.checkpoints),
    shortened(commandText(task.command)),
  ]);
  process.stdout.write(table(["NAME", "PID", "STATE", "AGE", "CHECKPOINTS", "COMMAND"], rows));
}

function shortened(text: string): string {
  return text.length <= COMMAND_WIDTH ? text : `${text.slice(0, COMMAND_WIDTH - 1)}…`;
}
