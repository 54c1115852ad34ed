// What callers of the engine may get wrong without a compiler's help.

import { RepriseError } from "../errors.ts";

/** @throws RepriseError BAD_ARGUMENT */
export function checkDumpArguments(options: {
  readonly pid: number;
  readonly imagesDir: string;
  readonly leave?: string;
}): void {
  checkImagesDir(options);
  const { pid, leave = "killed" } = options;
  if (!(Number.isInteger(pid) && pid > 0))
    throw new RepriseError("BAD_ARGUMENT", `the pid ${String(pid)} is no whole number from 1 on`);
  // Any other word would end the tree.
  if (!["killed", "running", "stopped"].includes(leave)) {
    throw new RepriseError("BAD_ARGUMENT", `cannot leave the tasks ${JSON.stringify(leave)}`, {
      hint: 'It is "killed", "running" or "stopped".',
    });
  }
}

/** @throws RepriseError BAD_ARGUMENT */
export function checkImagesDir(options: { readonly imagesDir: string }): void {
  if (typeof options !== "object" || options === null)
    throw new RepriseError("BAD_ARGUMENT", `there are no options, but ${String(options)}`);
  const { imagesDir } = options;
  if (typeof imagesDir !== "string" || imagesDir === "" || imagesDir.includes("\0"))
    throw new RepriseError("BAD_ARGUMENT", `the images directory ${imagesDir} is no path`);
}
