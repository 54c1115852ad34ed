// Telling, before a restore is tried, what of a checkpoint does not fit this machine.

import { fitsOf, misfitText } from "../engine/machine.ts";

/** Warns on standard error; the restore is tried all the same. Images in an archive are not looked at. */
export function warnOfMisfits(imagesDir: string | undefined): void {
  if (imagesDir === undefined) return;
  for (const text of fitsOf(imagesDir).map(misfitText))
    if (text !== undefined) process.stderr.write(`reprise: warning: ${text}.\n`);
}
