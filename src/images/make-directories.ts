// Directories with all that lead to them. Node's own `recursive` tries for ever where a directory exists and takes no new one
// (ENOENT in /proc and /sys).

import { existsSync, mkdirSync } from "node:fs";
import { dirname } from "node:path";

/** Makes a directory, and those above it, that are not there yet. System errors are thrown as they are. */
export function makeDirectories(path: string, mode: number): void {
  const missing: string[] = [];
  for (let at = path; !existsSync(at) && dirname(at) !== at; at = dirname(at)) missing.push(at);
  for (const directory of missing.toReversed()) {
    try {
      mkdirSync(directory, { mode });
    } catch (error) {
      // Somebody else has made it meanwhile.
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
  }
}
