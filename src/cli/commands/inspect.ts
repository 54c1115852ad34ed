// reprise inspect: what is in a checkpoint.

import { findCheckpoint, listCheckpoints, type StoredCheckpoint } from "../../store/checkpoints.ts";
import { imageCount, summarize, type TaskSummary } from "../../store/summary.ts";
import { readTask } from "../../store/tasks.ts";
import { ageText, bytesText, commandText, table, visible } from "../text.ts";

export function inspect(name: string, options: { checkpoint?: number; json?: boolean }): void {
  readTask(name);
  const checkpoint = findCheckpoint(name, options.checkpoint);
  const tasks = summarize(checkpoint.imagesDir);
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify({ ...checkpoint, tasks }, undefined, 2)}\n`);
    return;
  }
  process.stdout.write(`${checkpointsText(name)}\n`);
  process.stdout.write(
    `Checkpoint ${checkpoint.number} of ${name}: ${commandText(checkpoint.command)}\n`,
  );
  process.stdout.write(`${checkpoint.imagesDir}: ${imageCount(checkpoint.imagesDir)} images\n\n`);
  process.stdout.write(treeText(tasks));
  for (const task of tasks) process.stdout.write(filesText(task));
}

function checkpointsText(name: string): string {
  const rows = listCheckpoints(name).map((checkpoint: StoredCheckpoint) => [
    String(checkpoint.number),
    `${ageText(checkpoint.createdAt)} ago`,
    bytesText(checkpoint.bytes),
    String(checkpoint.pid),
  ]);
  return table(["CHECKPOINT", "MADE", "SIZE", "PID"], rows);
}

function treeText(tasks: readonly TaskSummary[]): string {
  const parents = new Map(tasks.map((task) => [task.pid, task.ppid]));
  const depthOf = (pid: number): number => {
    const parent = parents.get(pid);
    return parent === undefined || !parents.has(parent) || parent === pid ? 0 : depthOf(parent) + 1;
  };
  const rows = tasks.map((task) => [
    String(task.pid),
    `${"  ".repeat(depthOf(task.pid))}${task.comm}`,
    String(task.threads),
    bytesText(task.mappedBytes),
    bytesText(task.savedBytes),
    String(task.files.length),
  ]);
  return table(["PID", "PROCESS", "THREADS", "MAPPED", "SAVED", "FILES"], rows);
}

function filesText(task: TaskSummary): string {
  if (task.files.length === 0) return "";
  const rows = task.files.map(({ fd, kind, name, position }) => [
    String(fd),
    kind,
    position === undefined ? "-" : String(position),
    name,
  ]);
  return `\nOpen files of ${task.pid} (${visible(task.comm)})\n${table(["FD", "KIND", "POSITION", "NAME"], rows)}`;
}
