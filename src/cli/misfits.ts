// Telling, before a restore is tried, what of a checkpoint does not fit this machine.

import { fitsOf } from "../engine/machine.ts";

/** Warns on standard error; the restore is tried all the same. Images in an archive are not looked at. */
export function warnOfMisfits(imagesDir: string | undefined): void {
  if (imagesDir === undefined) return;
  for (const { what, saved, fault } of fitsOf(imagesDir)) {
    if (fault === undefined) continue;
    const from = saved === undefined ? "" : ` (saved: ${saved})`;
    process.stderr.write(`reprise: warning: ${what}${from}: ${fault}.\n`);
  }
}
