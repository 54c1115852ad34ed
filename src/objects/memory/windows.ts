// Buffers for much memory on its way to a disk or from it. They lie in huge pages where the kernel gives some: what is together in
// physical memory is one piece of a request instead of one for each page, and the disk of a virtual machine takes a third of the
// time for it. See Documentation/admin-guide/mm/transhuge.rst.

import * as mm from "../../sys/abi/mman.ts";
import { memoryAt, syscall, trySyscall } from "../../sys/ffi.ts";

/** Bytes of a window: a huge page. */
export const WINDOW = 2 * 1024 * 1024;
/** Threads of libuv's pool: so many requests are on their way at a time. */
export const POOL_THREADS = 4;
/** How many windows there are: as many may have come and wait. */
export const WINDOWS = 2 * POOL_THREADS;

/** All windows, one behind the other. They stay, and take memory when they are used first. */
export interface Windows {
  readonly address: number;
  readonly bytes: Uint8Array;
}

let windows: Windows | undefined;

export function ioWindows(): Windows {
  windows ??= makeWindows();
  return windows;
}

function makeWindows(): Windows {
  const length = WINDOW * WINDOWS;
  const flags = mm.MAP_PRIVATE | mm.MAP_ANONYMOUS;
  const access = mm.PROT_READ | mm.PROT_WRITE;
  const mapped = syscall("mmap", 0, length + WINDOW, access, flags, -1, 0);
  const address = Math.ceil(mapped / WINDOW) * WINDOW;
  trySyscall("madvise", address, length, mm.MADV_HUGEPAGE); // a kernel without huge pages is as right, and slower
  return { address, bytes: memoryAt(address, length) };
}
