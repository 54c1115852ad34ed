// Records of named tasks. A task is known by its pid together with its start time, so that a pid that the
// kernel has given to another process is never taken for it.

import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import {
  createTaskDirectory,
  createTasksDirectory,
  namesLockPath,
  nameTaken,
  taskDirectory,
  tasksDirectory,
} from "./home.ts";
import { takeLock, type Lock } from "./lock.ts";
import { readRecord } from "./record.ts";

/** Where a task runs: among the host's processes, or in a pid namespace of its own. */
export type Placement = "host" | "pid-namespace";

export interface TaskRecord {
  readonly name: string;
  readonly command: readonly string[];
  /** Root of the tree in our pid namespace; of the last run when it has ended. */
  readonly pid: number;
  /** Start time of that process in clock ticks since boot. */
  readonly startTime: number;
  readonly placement: Placement;
  /** ISO 8601. */
  readonly createdAt: string;
  /** The checkpoint that it was last restored from. */
  readonly restoredFrom?: { readonly task: string; readonly checkpoint: number };
  /** The checkpoint that ended it, if one did. */
  readonly checkpointedAs?: number;
}

/** `checkpointed`: ended by a checkpoint; `ended`: by itself or a signal. */
export type TaskState = "running" | "stopped" | "checkpointed" | "ended";

export function logPath(name: string): string {
  return join(taskDirectory(name), "log");
}

/**
 * Takes a name for a new task, lets `start` start it, and records it; the name is free again when that fails.
 *
 * @throws RepriseError NAME_TAKEN
 */
export async function createTask(
  name: string,
  start: () => TaskRecord | Promise<TaskRecord>,
): Promise<TaskRecord> {
  const { directory, lock } = await takeName(name);
  using _lock = lock;
  try {
    const record = await start();
    writeTask(record);
    return record;
  } catch (error) {
    rmSync(directory, { recursive: true, force: true });
    throw error;
  }
}

/**
 * The one right to change a task: its record, its checkpoints, its processes.
 *
 * @throws RepriseError BUSY when another command keeps it; NO_SUCH_NAME
 */
export async function lockTask(name: string): Promise<Lock> {
  const lock = existsSync(statePath(name))
    ? await takeLock(lockPath(name), { what: name })
    : undefined;
  // It may have been removed by who had the lock before.
  if (lock !== undefined && existsSync(statePath(name))) return lock;
  lock?.[Symbol.dispose]();
  throw noSuchTask(name);
}

/** Makes the directory of a task and takes its lock, before anybody else can. */
async function takeName(name: string): Promise<{ directory: string; lock: Lock | undefined }> {
  createTasksDirectory();
  using _names = await takeLock(namesLockPath(), { what: "the list of names" });
  await removeAbandoned(name);
  const directory = createTaskDirectory(name);
  return { directory, lock: await takeLock(lockPath(name), { what: name }) };
}

/** Removes a directory without a record that nobody has locked: its maker was killed. */
export async function removeAbandoned(name: string): Promise<boolean> {
  if (!existsSync(taskDirectory(name)) || existsSync(statePath(name))) return false;
  try {
    using _lock = await takeLock(lockPath(name), { what: name, patienceMs: 0 });
    if (existsSync(statePath(name))) return false;
    removeTask(name);
    return true;
  } catch (error) {
    if (!(error instanceof RepriseError && error.code === "BUSY")) throw error;
    return false;
  }
}

/**
 * For who has much to do before the name is taken.
 *
 * @throws RepriseError NAME_TAKEN
 */
export async function refuseTakenName(name: string): Promise<void> {
  if (!existsSync(taskDirectory(name)) || (await removeAbandoned(name))) return;
  throw nameTaken(name);
}

/** Writes a record so that readers see the old one or the new one. */
export function writeTask(record: TaskRecord): void {
  const path = statePath(record.name);
  writeFileSync(`${path}.new`, `${JSON.stringify(record, undefined, 2)}\n`, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

/** @throws RepriseError NO_SUCH_NAME, BAD_IMAGE */
export function readTask(name: string): TaskRecord {
  const path = statePath(name);
  if (!existsSync(path)) throw noSuchTask(name);
  return readRecord(path) as TaskRecord;
}

/** The names of all tasks, sorted. */
export function taskNames(): string[] {
  if (!existsSync(tasksDirectory())) return [];
  return readdirSync(tasksDirectory())
    .toSorted()
    .filter((name) => existsSync(statePath(name)));
}

/** All tasks by name. */
export function listTasks(): TaskRecord[] {
  return taskNames().map((name) => readTask(name));
}

/** Forgets a task, its log and its checkpoints. */
export function removeTask(name: string): void {
  rmSync(taskDirectory(name), { recursive: true, force: true });
}

export function taskState(record: TaskRecord): TaskState {
  const stat = readStatIfAlive(record.pid);
  // It may live on without its first thread.
  const hasEnded = stat?.state === "Z" && stat.numThreads <= 1;
  const alive = stat !== undefined && stat.starttime === record.startTime && !hasEnded;
  if (alive) return stat.state === "T" ? "stopped" : "running";
  return record.checkpointedAs === undefined ? "ended" : "checkpointed";
}

export function isAlive(record: TaskRecord): boolean {
  const state = taskState(record);
  return state === "running" || state === "stopped";
}

/**
 * Start time of a process, for its record.
 *
 * @throws RepriseError TASK_DIED
 */
export function startTimeOf(pid: number): number {
  const stat = readStatIfAlive(pid);
  if (stat === undefined) {
    throw new RepriseError("TASK_DIED", `process ${pid} ended at once`, {
      pid,
      hint: "Run the command by itself to see why.",
    });
  }
  return stat.starttime;
}

function noSuchTask(name: string): RepriseError {
  return new RepriseError("NO_SUCH_NAME", `there is no task ${name}`, {
    hint: "reprise ps lists the names.",
  });
}

function lockPath(name: string): string {
  return join(taskDirectory(name), "lock");
}

function statePath(name: string): string {
  return join(taskDirectory(name), "state.json");
}
