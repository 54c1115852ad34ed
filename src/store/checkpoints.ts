// Checkpoints of a named task, numbered from 1. The inventory is the last image that the engine writes, so a
// checkpoint is whole when it has one.

import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { imageName } from "../images/names.ts";
import { taskDirectory } from "./home.ts";
import { readRecord } from "./record.ts";
import type { Placement } from "./tasks.ts";

export interface CheckpointMeta {
  readonly task: string;
  readonly number: number;
  readonly command: readonly string[];
  /** Root of the tree, as the engine saw it. */
  readonly pid: number;
  readonly placement: Placement;
  /** ISO 8601. */
  readonly createdAt: string;
}

export interface StoredCheckpoint extends CheckpointMeta {
  readonly imagesDir: string;
  /** Sum of the files' sizes. */
  readonly bytes: number;
}

/** Makes the directory of the next checkpoint and writes what it will be. */
export function beginCheckpoint(meta: Omit<CheckpointMeta, "number">): StoredCheckpoint {
  const number = (checkpointNumbers(meta.task).at(-1) ?? 0) + 1;
  const directory = checkpointDirectory(meta.task, number);
  mkdirSync(directory, { mode: 0o700 });
  const imagesDir = join(directory, "images");
  mkdirSync(imagesDir, { mode: 0o700 });
  const full: CheckpointMeta = { ...meta, number };
  writeFileSync(join(directory, "meta.json"), `${JSON.stringify(full, undefined, 2)}\n`, {
    mode: 0o600,
  });
  return { ...full, imagesDir, bytes: 0 };
}

export function removeCheckpoint(checkpoint: Pick<CheckpointMeta, "task" | "number">): void {
  const directory = checkpointDirectory(checkpoint.task, checkpoint.number);
  rmSync(directory, { recursive: true, force: true });
}

/** Removes what checkpoints that were killed have left; the task's lock is held. */
export function removeUnfinished(task: string): void {
  for (const number of checkpointNumbers(task))
    if (!isWhole(task, number)) removeCheckpoint({ task, number });
}

/** The whole checkpoints of a task, oldest first. */
export function listCheckpoints(task: string): StoredCheckpoint[] {
  return checkpointNumbers(task)
    .filter((number) => isWhole(task, number))
    .map((number) => load(task, number));
}

/**
 * A checkpoint by number, or the newest.
 *
 * @throws RepriseError NO_SUCH_NAME
 */
export function findCheckpoint(task: string, number?: number): StoredCheckpoint {
  const found = listCheckpoints(task);
  const checkpoint =
    number === undefined ? found.at(-1) : found.find((candidate) => candidate.number === number);
  if (checkpoint !== undefined) return checkpoint;
  const which = number === undefined ? "a checkpoint" : `checkpoint ${number}`;
  throw new RepriseError("NO_SUCH_NAME", `${task} does not have ${which}`, {
    hint:
      found.length === 0
        ? `Make one: reprise checkpoint ${task}`
        : `It has ${found.map((one) => one.number).join(", ")}: reprise inspect ${task}`,
  });
}

function load(task: string, number: number): StoredCheckpoint {
  const directory = checkpointDirectory(task, number);
  const meta = readRecord(join(directory, "meta.json")) as CheckpointMeta;
  const imagesDir = join(directory, "images");
  const sizes = readdirSync(imagesDir).map((file) => statSync(join(imagesDir, file)).size);
  return { ...meta, imagesDir, bytes: sizes.reduce((sum, size) => sum + size, 0) };
}

function isWhole(task: string, number: number): boolean {
  const directory = checkpointDirectory(task, number);
  return (
    existsSync(join(directory, "meta.json")) &&
    existsSync(join(directory, "images", imageName("inventory")))
  );
}

function checkpointNumbers(task: string): number[] {
  const directory = join(taskDirectory(task), "checkpoints");
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .toSorted((a, b) => a - b);
}

function checkpointDirectory(task: string, number: number): string {
  return join(taskDirectory(task), "checkpoints", String(number));
}
