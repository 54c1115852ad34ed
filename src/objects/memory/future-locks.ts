// Whether memory that a process maps later is locked (mlockall(2) with MCL_FUTURE). No file in /proc tells, so the process maps a page
// and looks at it: what is locked cannot be given back by madvise(2), and what was not left to its first touch
// (MCL_ONFAULT) is there already.

import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  MCL_FUTURE,
  MCL_ONFAULT,
  PAGE_SIZE,
  PROT_READ,
  PROT_WRITE,
} from "../../sys/abi/mman.ts";
import { EINVAL, errnoName } from "../../sys/errno.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

/** Asks a process for MCL_FUTURE and MCL_ONFAULT; 0 for none. */
export function probeFutureLocks(program: Program): Probe<number> {
  const options = { label: "look how new memory is locked", mayFail: true };
  const isThere = program.output(1);
  const page = program.call(
    "mmap",
    [0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0],
    options,
  );
  program.call("mincore", [page, PAGE_SIZE, isThere], options);
  const given = program.call("madvise", [page, PAGE_SIZE, MADV_DONTNEED], options);
  program.call("munmap", [page, PAGE_SIZE], options);
  return (result) => {
    if (result.value(page) < 0 || result.value(given) !== -EINVAL) return 0;
    const filled = ((result.bytes(isThere, 1)[0] ?? 0) & 1) !== 0;
    return MCL_FUTURE | (filled ? 0 : MCL_ONFAULT);
  };
}

/** Sets them again, when all memory is mapped. Returns a probe of what could not be set, a sentence each. */
export function restoreFutureLocks(program: Program, flags: number): Probe<string[]> {
  if ((flags & MCL_FUTURE) === 0) return () => [];
  const label = "lock memory that is mapped later (mlockall)";
  const locked = program.call("mlockall", [flags & (MCL_FUTURE | MCL_ONFAULT)], {
    label,
    mayFail: true,
  });
  return (result) => {
    const error = result.value(locked);
    return error < 0 ? [`cannot ${label}: ${errnoName(-error)}`] : [];
  };
}
