// `criu pre-dump`: the memory of a tree that goes on running, as the parent of a later dump.

import { preDump } from "../engine/pre-dump.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { dumpStatsText } from "./dump.ts";
import { numberValue, type CriuOptions } from "./options.ts";
import { printOut } from "./output.ts";
import { pageServerPlace } from "./page-options.ts";
import type { Directories } from "./paths.ts";
import { scriptRunner } from "./scripts.ts";

const SECOND = 1000;

/** Runs the action. Returns the exit code. */
export async function preDumpAction(
  options: CriuOptions,
  directories: Directories,
): Promise<number> {
  const pid = numberValue(options, "tree", 1);
  if (pid === undefined) {
    throw new RepriseError("BAD_ARGUMENT", "pid not specified", {
      hint: "Give the root of the tree: -t PID.",
    });
  }
  const timeout = numberValue(options, "timeout", 0);
  const parentDir = options.values["prev-images-dir"];
  const pageServer = await pageServerPlace(options);
  const { stats } = await preDump({
    pid,
    imagesDir: directories.imagesDir,
    workDir: directories.workDir,
    ...(options.flags.has("auto-dedup") ? { autoDedup: true } : {}),
    hooks: scriptRunner({
      scripts: options.lists["action-script"] ?? [],
      imagesDirFd: directories.imagesDirFd,
    }),
    ...(pageServer === undefined ? {} : { pageServer }),
    ...(options.values["freeze-cgroup"] === undefined
      ? {}
      : { freezeCgroup: options.values["freeze-cgroup"] }),
    ...(parentDir === undefined ? {} : { parentDir }),
    ...(timeout === undefined ? {} : { timeoutMs: timeout * SECOND }),
  });
  if (options.flags.has("display-stats")) printOut(dumpStatsText(stats));
  log.info("Pre-dumping finished successfully");
  return 0;
}
