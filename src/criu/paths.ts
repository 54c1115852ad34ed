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
  const imagesDir = resolve(options.values["images-dir"] ?? ".");
  const workDir = resolve(options.values["work-dir"] ?? imagesDir);
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
    const errno = errnoOf(error) ?? "unknown error";
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot open ${which} directory ${path}: openat: ${errno}`,
      {
        hint: "Make the directory first; the option is -D for images and -W for logs.",
        cause: error,
      },
    );
  }
}
