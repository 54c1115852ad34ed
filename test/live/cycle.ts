// A program through dump and restore: the cycle that the live suites of every object use.

import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { checkpoint, type CheckpointOptions } from "../../src/engine/checkpoint.ts";
import type { DumpStats, RestoreStats } from "../../src/engine/progress.ts";
import { restore, type RestoreOptions } from "../../src/engine/restore.ts";
import { attachProgram, startProgram, type RunningProgram } from "./programs.ts";

export interface CycleOptions {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly checkpoint?: Partial<CheckpointOptions>;
  readonly restore?: Partial<RestoreOptions>;
  /** Called after each cycle. */
  readonly onStats?: (stats: CycleStats) => void;
}

export interface CycleStats {
  readonly dump: DumpStats;
  readonly restore: RestoreStats;
}

/** Starts a program of test/programs in `dir`, saves and ends it, brings it back, and gives the restored one. */
export async function cycle(
  name: string,
  dir: string,
  options: CycleOptions = {},
): Promise<RunningProgram> {
  const program = await startProgram(name, options.args ?? [], {
    dir,
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  await program.waitReady();
  return again(program, options);
}

/** Saves, ends and brings back a running program. */
export async function again(
  program: RunningProgram,
  options: CycleOptions = {},
): Promise<RunningProgram> {
  const imagesDir = mkdtempSync(join(program.dir, "images-"));
  const saved = await checkpoint({ pid: program.pid, imagesDir, ...options.checkpoint });
  const { pid, stats } = await restore({ imagesDir, ...options.restore });
  options.onStats?.({ dump: saved.stats, restore: stats });
  return attachProgram(program.name, pid, program.dir);
}
