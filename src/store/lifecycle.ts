// The life of a named task: started, checkpointed, restored, cloned, ended. Each step leaves records that
// agree with what runs, whatever fails in between.

import { closeSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import type { CheckpointResult } from "../engine/checkpoint.ts";
import type { ProgressListener } from "../engine/progress.ts";
import { RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import {
  beginCheckpoint,
  listCheckpoints,
  removeCheckpoint,
  removeUnfinished,
  type StoredCheckpoint,
} from "./checkpoints.ts";
import { relocateImages } from "./relocate.ts";
import { openLog, startCommand } from "./start-command.ts";
import {
  createTask,
  isAlive,
  lockTask,
  logPath,
  readTask,
  removeAbandoned,
  removeTask,
  startTimeOf,
  writeTask,
  type Placement,
  type TaskRecord,
} from "./tasks.ts";

/** Who gives a name instead of options wants all that a task holds. */
const EVERYTHING = {
  tcp: { established: true },
  fileLocks: true,
  extUnixSk: true,
  linkRemap: "if needed",
  ghostLimit: 256 * 1024 * 1024,
} as const;

/**
 * Starts a command under a name, in a session and namespaces of its own, with its output in the task's log.
 *
 * @throws RepriseError NAME_TAKEN, or BAD_ARGUMENT when the command cannot be started.
 */
export async function runTask(
  name: string,
  command: readonly string[],
  { placement = "pid-namespace" }: { readonly placement?: Placement } = {},
): Promise<TaskRecord> {
  return createTask(name, async () => {
    const started = await startCommand(command, { log: logPath(name), placement });
    return { name, command, ...started, placement, createdAt: new Date().toISOString() };
  });
}

/**
 * Saves a running task as its next checkpoint. A checkpoint that fails leaves nothing but the running task.
 *
 * @throws RepriseError NO_SUCH_NAME, NO_SUCH_PROCESS, and what the engine throws.
 */
export async function checkpointTask(
  name: string,
  options: {
    readonly leaveRunning: boolean;
    readonly strict?: boolean;
    readonly onEvent?: ProgressListener;
  },
): Promise<{ readonly checkpoint: StoredCheckpoint; readonly result: CheckpointResult }> {
  using _lock = await lockTask(name);
  const record = aliveTask(name);
  removeUnfinished(name);
  const { command, pid, placement } = record;
  const createdAt = new Date().toISOString();
  const checkpoint = beginCheckpoint({ task: name, command, pid, placement, createdAt });
  try {
    const engine = await import("../engine/checkpoint.ts");
    const result = await engine.checkpoint({
      pid,
      imagesDir: checkpoint.imagesDir,
      leave: options.leaveRunning ? "running" : "killed",
      strict: options.strict ?? false,
      ...EVERYTHING,
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
  using _lock = await lockTask(checkpoint.task);
  const record = readTask(checkpoint.task);
  refuseRunning(record);
  const placement = options.newPidNamespace ? "pid-namespace" : checkpoint.placement;
  const { task, number } = checkpoint;
  const { checkpointedAs: _ended, ...rest } = record;
  try {
    return await restoreImages(checkpoint.imagesDir, {
      ...options,
      placement,
      tcp: { established: true },
      recordOf: ({ pid, startTime }) => ({
        ...rest,
        pid,
        startTime,
        placement,
        restoredFrom: { task, checkpoint: number },
      }),
    });
  } catch (error) {
    writeTask(record);
    throw error;
  }
}

function refuseRunning(record: TaskRecord): void {
  if (!isAlive(record)) return;
  throw new RepriseError("BAD_ARGUMENT", `${record.name} is running (pid ${record.pid})`, {
    pid: record.pid,
    hint: `To have a second one beside it: reprise clone ${record.name} NEW-NAME`,
  });
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
  options: {
    readonly onEvent?: ProgressListener;
    /** Told of each file that both tasks can write into. */
    readonly onCommonFile?: (path: string) => void;
  } = {},
): Promise<TaskRecord> {
  return createTask(name, async () => {
    closeSync(openLog(logPath(name)));
    const { command } = checkpoint;
    const createdAt = new Date().toISOString();
    const placement = "pid-namespace";
    const own = beginCheckpoint({ task: name, command, pid: checkpoint.pid, placement, createdAt });
    const common = await takeImages(checkpoint, own);
    common.forEach((path) => options.onCommonFile?.(path));
    // A connection has but one owner at each end.
    const { onEvent } = options;
    return restoreImages(own.imagesDir, {
      ...(onEvent === undefined ? {} : { onEvent }),
      placement,
      tcp: { close: true },
      recordOf: ({ pid, startTime }) => ({
        name,
        command,
        pid,
        startTime,
        placement,
        createdAt,
        restoredFrom: { task: checkpoint.task, checkpoint: checkpoint.number },
      }),
    });
  });
}

/** Nobody may remove the first task's images meanwhile. */
async function takeImages(
  from: StoredCheckpoint,
  to: StoredCheckpoint,
): Promise<readonly string[]> {
  using _lock = await lockTask(from.task);
  return relocateImages({
    from: from.imagesDir,
    to: to.imagesDir,
    paths: new Map([[logPath(from.task), logPath(to.task)]]),
  });
}

/** What a checkpoint would save, in lines for people; nothing stays of it. */
export async function explainCheckpoint(name: string): Promise<readonly string[]> {
  using _lock = await lockTask(name);
  const { command, pid, placement } = aliveTask(name);
  const createdAt = new Date().toISOString();
  const scratch = beginCheckpoint({ task: name, command, pid, placement, createdAt });
  try {
    const engine = await import("../engine/checkpoint.ts");
    const result = await engine.checkpoint({
      pid,
      imagesDir: scratch.imagesDir,
      dryRun: true,
      ...EVERYTHING,
    });
    return result.plan ?? [];
  } finally {
    removeCheckpoint(scratch);
  }
}

/**
 * What a restore would do, in lines for people.
 *
 * @throws RepriseError as the restore would, as far as it can be told now.
 */
export async function explainRestore(
  checkpoint: StoredCheckpoint,
  options: { readonly newPidNamespace: boolean },
): Promise<readonly string[]> {
  const { imagesDir } = checkpoint;
  refuseRunning(readTask(checkpoint.task));
  const engine = await import("../engine/restore.ts");
  const isApart = options.newPidNamespace || checkpoint.placement === "pid-namespace";
  const inNew = isApart ? { newPidNamespace: true } : {};
  const tcp = { established: true };
  const { plan } = await engine.restore({
    imagesDir,
    dryRun: true,
    tcp,
    extUnixSk: true,
    ...inNew,
  });
  return plan ?? [];
}

/**
 * Forgets a task with its log and its checkpoints; with `force` it is ended first.
 *
 * @throws RepriseError NO_SUCH_NAME; BAD_ARGUMENT when it runs and may not be ended.
 */
export async function forgetTask(
  name: string,
  options: { readonly force: boolean },
): Promise<void> {
  if (await removeAbandoned(name)) return;
  using _lock = await lockTask(name);
  const record = readTask(name);
  if (isAlive(record) && !options.force) {
    throw new RepriseError("BAD_ARGUMENT", `${name} is running (pid ${record.pid})`, {
      pid: record.pid,
      hint: `To end and remove it: reprise rm --force ${name}`,
    });
  }
  await untilEnded(killTask(record));
  removeTask(name);
}

const END_PATIENCE_MS = 5_000;
const END_POLL_MS = 5;

/** Who was killed may still hold its files and write into them. */
async function untilEnded(pids: readonly number[]): Promise<void> {
  const deadline = performance.now() + END_PATIENCE_MS;
  const lives = (pid: number): boolean =>
    !["Z", "X", undefined].includes(readStatIfAlive(pid)?.state);
  while (pids.some(lives) && performance.now() < deadline) await setTimeout(END_POLL_MS);
}

/** Ends a task and everything that it has started, and tells whom. Nothing happens when it has ended already. */
export function killTask(record: TaskRecord): readonly number[] {
  if (!isAlive(record)) return [];
  // Stopped first, so that nobody makes new ones while they are counted.
  const tree = [record.pid];
  for (const pid of tree) {
    signal(pid, "SIGSTOP");
    tree.push(...(readChildrenIfAlive(pid) ?? []));
  }
  for (const pid of tree) signal(pid, "SIGKILL");
  return tree;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // Ended between the look and the signal.
  }
}

/** @throws RepriseError NO_SUCH_PROCESS when the task has ended. */
export function aliveTask(name: string): TaskRecord {
  const record = readTask(name);
  if (isAlive(record)) return record;
  throw new RepriseError("NO_SUCH_PROCESS", `${name} is not running`, {
    pid: record.pid,
    hint:
      listCheckpoints(name).length === 0
        ? `It has ended, and no checkpoint was made of it; reprise logs ${name} shows what it wrote.`
        : `reprise restore ${name} brings it back from its last checkpoint.`,
  });
}

/** Restores a task and records it before it runs: whoever ends this command, nothing runs that has no record. */
async function restoreImages(
  imagesDir: string,
  options: {
    readonly recordOf: (task: Pick<TaskRecord, "pid" | "startTime">) => TaskRecord;
    readonly placement: Placement;
    /** What becomes of TCP connections. */
    readonly tcp: { readonly established?: boolean; readonly close?: boolean };
    readonly onEvent?: ProgressListener;
  },
): Promise<TaskRecord> {
  const engine = await import("../engine/restore.ts");
  let record: TaskRecord | undefined;
  await engine.restore({
    imagesDir,
    tcp: options.tcp,
    extUnixSk: true,
    hooks: {
      script(action, pid) {
        if (action !== "pre-resume" || pid === undefined) return;
        record = options.recordOf({ pid, startTime: startTimeOf(pid) });
        writeTask(record);
      },
    },
    ...(options.placement === "pid-namespace" ? { newPidNamespace: true } : {}),
    ...(options.onEvent === undefined ? {} : { onEvent: options.onEvent }),
  });
  if (record === undefined) throw new RepriseError("INTERNAL", "a restored task has no record");
  return record;
}
