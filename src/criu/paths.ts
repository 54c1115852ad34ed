// The directories of a run. CRIU opens the images directory first and then changes to the work directory,
// so that log file, pidfile and statistics with relative names lie there.

import { closeSync, constants, openSync } from "node:fs";
import { resolve } from "node:path";
import { RepriseError } from "../errors.ts";
import { errnoOf } from "../proc/procfs.ts";
import type { CriuOptions } from "./options.ts";

export interface Directories {
  readonly imagesDir: string;
  readonly workDir: string;
  /** Kept open: scripts reach the images through it. */
  readonly imagesDirFd: number;
  /** Where the command was started. */
  readonly startDir: string;
}

/**
 * Opens the images directory and changes to the work directory.
 *
 * @throws RepriseError BAD_ARGUMENT when one of them cannot be used.
 */
export function enterDirectories(options: CriuOptions): Directories {
  const { "images-dir": images = ".", "work-dir": work = images } = options.values;
  // An empty name is no directory, as for the kernel: a script's variable may not have been set.
  for (const [which, path] of Object.entries({ images, work }))
    if (path === "") throw noDirectory(`${which} directory ''`, "ENOENT");
  const [imagesDir, workDir] = [resolve(images), resolve(work)];
  const imagesDirFd = openDirectory(imagesDir, "images");
  closeSync(openDirectory(workDir, "work"));
  const startDir = process.cwd();
  process.chdir(workDir);
  return { imagesDir, workDir, imagesDirFd, startDir };
}

function openDirectory(path: string, which: string): number {
  try {
    return openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  } catch (error) {
    throw noDirectory(`${which} directory ${path}`, errnoOf(error) ?? "unknown error", error);
  }
}

function noDirectory(which: string, errno: string, cause?: unknown): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `cannot open ${which}: openat: ${errno}`, {
    hint: "Make the directory first; the option is -D for images and -W for logs.",
    cause,
  });
}
