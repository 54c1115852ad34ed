// Which Linux this is, for what came with a release and cannot be asked for otherwise.

import { release } from "node:os";

/** Whether the running kernel is of this version or a later one. */
export function isKernelSince(major: number, minor: number): boolean {
  const [ownMajor = 0, ownMinor = 0] = release().split(/[.-]/).map(Number);
  return ownMajor > major || (ownMajor === major && ownMinor >= minor);
}
