// Making images durable: one syncfs for the whole directory instead of one fsync for each of its files.

import { closeSync, constants, openSync } from "node:fs";
import { syscall } from "../sys/ffi.ts";

/** Flushes everything of the file system that holds the directory. Errors are SYSCALL. */
export function syncDirectory(dir: string): void {
  const fd = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    syscall("syncfs", fd);
  } finally {
    closeSync(fd);
  }
}
