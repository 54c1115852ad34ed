// The table of descriptors of this process.

import { F_DUPFD_CLOEXEC } from "./abi/fcntl.ts";
import { syscall, trySyscall } from "./ffi.ts";

/** Size of the table of a process with few descriptors. */
export const FIRST_TABLE = 256;

/**
 * Makes room for so many copies of other processes' descriptors: of a process with several threads, such as this one, the kernel waits for
 * all processors (10 ms) each time that its table grows (fs/file.c, expand_fdtable), which it does by doubling.
 */
export function makeRoomForDescriptors(count: number): void {
  if (count <= FIRST_TABLE) return;
  const highest = trySyscall("fcntl", ANY_DESCRIPTOR, F_DUPFD_CLOEXEC, count + FIRST_TABLE - 1);
  // Beyond the limit it will have to grow step by step.
  if (highest >= 0) syscall("close", highest);
}

/** Which one is copied for a moment does not matter: standard error is there. */
const ANY_DESCRIPTOR = 2;
