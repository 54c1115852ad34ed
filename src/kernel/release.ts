// Which Linux this is, for what came with a release and cannot be asked for otherwise.

import { readKernelRelease } from "../proc/self.ts";

/** Whether the running kernel is of this version or a later one. */
export function isKernelSince(major: number, minor: number): boolean {
  const [ownMajor = 0, ownMinor = 0] = readKernelRelease().split(/[.-]/).map(Number);
  return ownMajor > major || (ownMajor === major && ownMinor >= minor);
}
