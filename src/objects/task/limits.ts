// Resource limits of a process, soft and hard; see setrlimit(2). They hold for root too: limits of address space, file
// size, locked memory or pending signals are set when all that they would hinder is rebuilt. A hard limit is raised only
// with CAP_SYS_RESOURCE in the first user namespace: without it, the soft limit is set as far as our own hard limit goes,
// and what is missing is told.

import { RepriseError } from "../../errors.ts";
import type { RlimitEntry } from "../../images/schema/messages.generated.ts";
import { readLimits, UNLIMITED } from "../../proc/limits.ts";
import { RLIM_NLIMITS, RLIMIT_NAMES } from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import type { Program, Ref } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import { frontPid } from "../../sys/front.ts";

/**
 * The 16 limits of a process in the order of their RLIMIT_ numbers.
 *
 * @throws RepriseError NO_SUCH_PROCESS, NOT_PERMITTED, SYSCALL, KERNEL_FEATURE when the kernel does not tell all.
 */
export function collectLimits(pid: number): RlimitEntry[] {
  const limits = readLimits(pid);
  if (limits.length !== RLIM_NLIMITS) {
    throw new RepriseError(
      "KERNEL_FEATURE",
      `cannot read the limits of pid ${pid}: ${limits.length} of ${RLIM_NLIMITS} are told`,
      { pid, hint: "This kernel writes /proc/PID/limits in a form that Reprise does not know." },
    );
  }
  return limits.map(({ soft, hard }) => ({ cur: soft, max: hard }));
}

export interface RestoreLimitsOptions {
  /** What the process has before (inherited from the seed, hence from us by default). */
  readonly current?: readonly RlimitEntry[];
}

/**
 * Sets the limits that differ from the current ones.
 *
 * @returns a probe of what could not be set in full, a sentence each.
 */
export function restoreLimits(
  program: Program,
  limits: readonly RlimitEntry[],
  options: RestoreLimitsOptions = {},
): Probe<string[]> {
  const current = options.current ?? collectLimits(frontPid());
  const raised: { call: Ref; wanted: RlimitEntry; had: RlimitEntry; resource: number }[] = [];
  limits.forEach((wanted, resource) => {
    const had = current[resource];
    if (had?.cur === wanted.cur && had.max === wanted.max) return;
    if (had === undefined || wanted.max <= had.max) {
      setLimit(program, resource, wanted);
      return;
    }
    // First as far as anyone may, then in full: if that fails, the first stays.
    setLimit(program, resource, { cur: smaller(wanted.cur, had.max), max: had.max });
    const call = setLimit(program, resource, wanted, { mayFail: true });
    raised.push({ call, wanted, had, resource });
  });
  return (result) =>
    raised.flatMap(({ call, wanted, had, resource }) => {
      const error = result.value(call);
      if (error >= 0) return [];
      const limit = `${limitName(resource)} ${shown(wanted.cur)}:${shown(wanted.max)}`;
      return [`cannot set ${limit}, at most ${shown(had.max)}: prlimit64: ${errnoName(-error)}`];
    });
}

function setLimit(
  program: Program,
  resource: number,
  limit: RlimitEntry,
  options: { readonly mayFail?: boolean } = {},
): Ref {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(limit.cur, 0);
  bytes.writeBigUInt64LE(limit.max, 8);
  return program.call("prlimit64", [0, resource, program.data(bytes), 0], {
    label: `set ${limitName(resource)} to ${shown(limit.cur)}:${shown(limit.max)}`,
    ...options,
  });
}

function smaller(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}

function shown(value: bigint): string {
  return value === UNLIMITED ? "unlimited" : value.toString();
}

function limitName(resource: number): string {
  return RLIMIT_NAMES[resource] ?? `limit ${resource}`;
}
