// `criu dedup`: gives back the disk space of pages in older sets of a chain that the given one has itself.

import { dedup } from "../engine/dedup.ts";
import { log } from "../log.ts";
import type { Directories } from "./paths.ts";

/** Runs the action. Returns the exit code. */
export function dedupAction({ imagesDir }: Directories): number {
  const bytes = dedup(imagesDir);
  log.info(`gave back ${bytes} bytes`);
  log.info("Deduplicated");
  return 0;
}
