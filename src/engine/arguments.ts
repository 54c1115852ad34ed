// What callers of the engine may get wrong without a compiler's help.

import { RepriseError } from "../errors.ts";

/** @throws RepriseError BAD_ARGUMENT */
export function checkArguments({
  pid,
  imagesDir,
}: {
  readonly pid?: number;
  readonly imagesDir: string;
}): void {
  if (pid !== undefined && !(Number.isInteger(pid) && pid > 0))
    throw new RepriseError("BAD_ARGUMENT", `the pid ${String(pid)} is no whole number from 1 on`);
  if (typeof imagesDir !== "string" || imagesDir === "" || imagesDir.includes("\0"))
    throw new RepriseError("BAD_ARGUMENT", `the images directory ${imagesDir} is no path`);
}
