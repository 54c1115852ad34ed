// The way into the kernel's memory for what no interface tells, opened once for a dump when a room first needs it.

import { KernelMemory } from "../../sys/kernel-memory.ts";
import type { FilesDump } from "./file-kind.ts";

const views = new WeakMap<FilesDump, KernelMemory>();

/** @throws RepriseError KERNEL_FEATURE where the kernel does not let us. */
export function kernelMemory(dump: FilesDump): KernelMemory {
  let known = views.get(dump);
  if (known === undefined) {
    const memory = new KernelMemory();
    views.set(dump, (known = memory));
    dump.atEnd(() => {
      views.delete(dump);
      memory[Symbol.dispose]();
    });
  }
  return known;
}
