// The life of a named task: started, checkpointed, restored, cloned, ended. Each step leaves records that
// agree with what runs, whatever fails in between.

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import type { CheckpointResult } from "../engine/checkpoint.ts";
import type { ProgressListener } from "../engine/progress.ts";
import { RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { beginCheckpoint, removeCheckpoint, type StoredCheckpoint } from "./checkpoints.ts";
import { relocateImages } from "./relocate.ts";
import {
  createTask,
  isAlive,
  logPath,
  readTask,
  startTimeOf,
  writeTask,
  type Placement,
  type TaskRecord,
} from "./tasks.ts";

const CALLER_PREFIX = "REPRISE_CALLER_";

/**
 * Starts a command under a name, in a session of its own, with its output in the task's log.
 *
 * @throws RepriseError NAME_TAKEN, or BAD_ARGUMENT when the command cannot be started.
 */
export async function runTask(name: string, command: readonly string[]): Promise<TaskRecord> {
  return createTask(name, async () => {
    const placement = placementOfNewTask();
    const pid = await startCommand(command, logPath(name));
    const createdAt = new Date().toISOString();
    return { name, command, pid, startTime: startTimeOf(pid), placement, createdAt };
  });
}

/**
 * Saves a running task as its next checkpoint. A checkpoint that fails leaves nothing but the running task.
 *
 * @throws RepriseError NO_SUCH_NAME, NO_SUCH_PROCESS, and what the engine throws.
 */
export async function checkpointTask(
  name: string,
  options: { readonly leaveRunning: boolean; readonly onEvent?: ProgressListener },
): Promise<{ readonly checkpoint: StoredCheckpoint; readonly result: CheckpointResult }> {
  const record = aliveTask(name);
  const { command, pid, placement } = record;
  const createdAt = new Date().toISOString();
  const checkpoint = beginCheckpoint({ task: name, command, pid, placement, createdAt });
  try {
    const engine = await import("../engine/checkpoint.ts");
    const result = await engine.checkpoint({
      pid,
      imagesDir: checkpoint.imagesDir,
      leave: options.leaveRunning ? "running" : "killed",
      ...(options.onEvent === undefined ? {} : { onEvent: options.onEvent }),
    });
    if (!options.leaveRunning) writeTask({ ...record, checkpointedAs: checkpoint.number });
    return { checkpoint, result };
  } catch (error) {
    removeCheckpoint(checkpoint);
    throw error;
  }
}

/**
 * Brings a task back from one of its checkpoints, under its own name.
 *
 * @throws RepriseError BAD_ARGUMENT when it still runs, and what the engine throws.
 */
export async function restoreTask(
  checkpoint: StoredCheckpoint,
  options: { readonly newPidNamespace: boolean; readonly onEvent?: ProgressListener },
): Promise<TaskRecord> {
  const record = readTask(checkpoint.task);
  if (isAlive(record)) {
    throw new RepriseError("BAD_ARGUMENT", `${record.name} is running (pid ${record.pid})`, {
      hint: `To have a second one beside it: reprise clone ${record.name} NEW-NAME`,
    });
  }
  const placement = options.newPidNamespace ? "pid-namespace" : checkpoint.placement;
  const pid = await restoreImages(checkpoint.imagesDir, { ...options, placement });
  const { task, number } = checkpoint;
  const { checkpointedAs: _ended, ...rest } = record;
  const restored: TaskRecord = {
    ...rest,
    pid,
    startTime: startTimeOf(pid),
    placement,
    restoredFrom: { task, checkpoint: number },
  };
  writeTask(restored);
  return restored;
}

/**
 * Starts a second task from a checkpoint, under a new name, with a log of its own, in a new pid namespace, so
 * that the first may run on.
 *
 * @throws RepriseError NAME_TAKEN, and what the engine throws.
 */
export async function cloneCheckpoint(
  checkpoint: StoredCheckpoint,
  name: string,
  options: { readonly onEvent?: ProgressListener } = {},
): Promise<TaskRecord> {
  return createTask(name, async () => {
    closeSync(openLog(logPath(name)));
    const { command } = checkpoint;
    const createdAt = new Date().toISOString();
    const placement = "pid-namespace";
    const own = beginCheckpoint({ task: name, command, pid: checkpoint.pid, placement, createdAt });
    relocateImages({
      from: checkpoint.imagesDir,
      to: own.imagesDir,
      paths: new Map([[logPath(checkpoint.task), logPath(name)]]),
    });
    const pid = await restoreImages(own.imagesDir, { ...options, placement });
    return {
      name,
      command,
      pid,
      startTime: startTimeOf(pid),
      placement,
      createdAt,
      restoredFrom: { task: checkpoint.task, checkpoint: checkpoint.number },
    };
  });
}

/** What a checkpoint would save, in lines for people; nothing stays of it. */
export async function explainCheckpoint(name: string): Promise<readonly string[]> {
  const { command, pid, placement } = aliveTask(name);
  const createdAt = new Date().toISOString();
  const scratch = beginCheckpoint({ task: name, command, pid, placement, createdAt });
  try {
    const engine = await import("../engine/checkpoint.ts");
    const result = await engine.checkpoint({ pid, imagesDir: scratch.imagesDir, dryRun: true });
    return result.plan ?? [];
  } finally {
    removeCheckpoint(scratch);
  }
}

/** What a restore would do, in lines for people. */
export async function explainRestore(
  checkpoint: StoredCheckpoint,
  options: { readonly newPidNamespace: boolean },
): Promise<readonly string[]> {
  const { imagesDir } = checkpoint;
  const engine = await import("../engine/restore.ts");
  const inNew = options.newPidNamespace ? { newPidNamespace: true } : {};
  const { plan } = await engine.restore({ imagesDir, dryRun: true, ...inNew });
  return plan ?? [];
}

/** Ends a task and everything that it has started. Nothing happens when it has ended already. */
export function killTask(record: TaskRecord): void {
  if (!isAlive(record)) return;
  const tree = [record.pid];
  for (const pid of tree) tree.push(...(readChildrenIfAlive(pid) ?? []));
  for (const pid of tree) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Ended between the look and the signal.
    }
  }
}

/** @throws RepriseError NO_SUCH_PROCESS when the task has ended. */
export function aliveTask(name: string): TaskRecord {
  const record = readTask(name);
  if (isAlive(record)) return record;
  throw new RepriseError("NO_SUCH_PROCESS", `${name} is not running`, {
    pid: record.pid,
    hint: `reprise restore ${name} brings it back from its last checkpoint.`,
  });
}

/** The one place that decides where a new command runs. */
function placementOfNewTask(): Placement {
  return "host";
}

async function restoreImages(
  imagesDir: string,
  options: { readonly placement: Placement; readonly onEvent?: ProgressListener },
): Promise<number> {
  const engine = await import("../engine/restore.ts");
  const { pid } = await engine.restore({
    imagesDir,
    ...(options.placement === "pid-namespace" ? { newPidNamespace: true } : {}),
    ...(options.onEvent === undefined ? {} : { onEvent: options.onEvent }),
  });
  return pid;
}

/** The log is opened for appending: who restores need not care what was written meanwhile. */
function openLog(path: string): number {
  return openSync(path, "a", 0o600);
}

async function startCommand(command: readonly string[], log: string): Promise<number> {
  const [program = "", ...args] = command;
  const output = openLog(log);
  try {
    const child = spawn(program, args, {
      detached: true,
      stdio: ["ignore", output, output],
      env: callerEnvironment(process.env),
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", reject);
    });
    child.unref();
    return child.pid ?? 0;
  } catch (error) {
    throw new RepriseError("BAD_ARGUMENT", `cannot start ${program}: ${describe(error)}`, {
      hint: "The command must be in PATH or be a path.",
      cause: error,
    });
  } finally {
    closeSync(output);
  }
}

/** The launcher keeps Node's variables from our Node; the command gets them as its caller set them. */
function callerEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const pairs = Object.entries(env).map(([name, value]) => [
    name.startsWith(CALLER_PREFIX) ? name.slice(CALLER_PREFIX.length) : name,
    value,
  ]);
  return Object.fromEntries(pairs) as NodeJS.ProcessEnv;
}

function describe(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
