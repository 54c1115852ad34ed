// The way back of core-N.img: the order in which things must be given back; each part has its own room.

import {
  type CoreEntry,
  type MmEntry,
  type RlimitEntry,
  type SeccompFilter,
  type TaskTimersEntry,
} from "../../images/schema/messages.generated.ts";
import type { TaskStatus } from "../../proc/status.ts";
import { log } from "../../log.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import * as attributes from "./attributes.ts";
import { restoreCreds, restoreNoNewPrivs } from "./creds.ts";
import { restoreLimits } from "./limits.ts";
import { restoreScheduling } from "./scheduling.ts";
import {
  drainChildSignals,
  restoreAlternateStack,
  restorePending,
  restoreSignalActions,
  NO_SIGNALS,
} from "./signals.ts";
import { writeLabels, type OpenedLabel } from "./lsm.ts";
import { restoreThreadPolicy } from "../memory/numa.ts";
import { restoreFutureLocks } from "../memory/future-locks.ts";
import { restoreCpuPermissions } from "./cpu-permissions.ts";
import { restoreLdt } from "./ldt.ts";
import { restoreSettings, restoreUnmerged } from "./prctl-settings.ts";
import { restoreSeccomp } from "./seccomp.ts";
import { restoreRegistrations } from "./thread-registrations.ts";
import { armTimers, createTimers, firedTimers } from "./timers.ts";

/**
 * First part of a process: what is written through /proc, before the task's root directory is changed, and what comes
 * before the credentials.
 */
export function restoreProcessEarly(
  program: Program,
  core: CoreEntry,
  options: { readonly inheritedLoginuid?: number },
): Probe<string[]> {
  return core.tc === undefined
    ? (): string[] => []
    : attributes.restoreProcessAttributes(program, core.tc, options);
}

export interface ProcessSurroundings {
  readonly mm: MmEntry;
  readonly umask: number;
  /** Limits that the task has from the seed. */
  readonly limits: readonly RlimitEntry[];
  readonly pid: number;
  readonly filters: readonly SeccompFilter[];
  /** Its parent will be gone in a moment, which must not count as the parent's death. */
  readonly parentLeaves: boolean;
  /** See `restoreCreds`. */
  readonly fixedCreds?: TaskStatus | undefined;
  readonly labels: readonly OpenedLabel[];
}

/** Second part of a process, by its leader, when all threads and files are there. It ends with the leader's own part. */
export function restoreProcess(
  program: Program,
  core: CoreEntry,
  around: ProcessSurroundings,
): Probe<string[]> {
  const { mm, umask, limits, pid } = around;
  const tc = core.tc;
  if (tc === undefined) return () => [];
  const timers = tc.timers ?? NO_TIMERS;
  const queues = [tc.signals_s, core.thread_core?.signals_p].filter((queue) => queue !== undefined);
  const fired = firedTimers(timers, queues);
  restoreSignalActions(program, tc.sigactions);
  attributes.restoreThpDisable(program, { isDisabled: mm.thp_disabled ?? false });
  attributes.restoreUmask(program, umask);
  const created = createTimers(program, timers);
  drainChildSignals(program, 2);
  restorePending(program, tc.signals_s ?? NO_SIGNALS, { queue: "process", pid, tid: pid, fired });
  // After the queues: RLIMIT_SIGPENDING holds for root, too. Before the credentials, which take the right to raise limits.
  let limited: Probe<string[]> = () => [];
  let locked: Probe<string[]> = () => [];
  const permitted = restoreCpuPermissions(program, tc.reprise?.cpu_permissions ?? 0n);
  const segments = restoreLdt(program, mm.reprise?.ldt ?? new Uint8Array(0));
  const thread = restoreThread(
    program,
    core,
    {
      pid,
      tid: pid,
      filters: around.filters,
      fired,
      parentLeaves: around.parentLeaves,
      fixedCreds: around.fixedCreds,
      labels: around.labels,
    },
    () => {
      limited = restoreLimits(program, tc.rlimits?.rlimits ?? [], { current: limits });
      locked = restoreFutureLocks(program, mm.reprise?.def_flags_mlock ?? 0);
    },
  );
  restoreUnmerged(program, core.thread_core?.reprise?.settings?.calls ?? [], mm.vmas);
  const dumpable = attributes.restoreDumpable(program, mm.dumpable ?? 1, core.thread_core?.creds);
  attributes.restoreMdwe(program, mm.reprise?.mdwe ?? 0);
  if (core.thread_core?.creds !== undefined) restoreNoNewPrivs(program, core.thread_core.creds);
  armTimers(program, timers, fired);
  return (result) => {
    created(result);
    return [limited, locked, permitted, segments, thread, dumpable].flatMap((probe) =>
      probe(result),
    );
  };
}

export interface ThreadIds {
  readonly pid: number;
  readonly tid: number;
  /** Those of seccomp.img. */
  readonly filters: readonly SeccompFilter[];
  readonly fired?: ReadonlySet<number>;
  readonly parentLeaves?: boolean;
  /** See `restoreCreds`. */
  readonly fixedCreds?: TaskStatus | undefined;
  readonly knownCreds?: TaskStatus | undefined;
  /** Labels of security modules, and where they are written to. */
  readonly labels: readonly OpenedLabel[];
}

/**
 * Everything that a thread has for itself, but its registers and its mask. `beforeCreds` adds what else has to be done
 * while the thread is still root.
 */
export function restoreThread(
  program: Program,
  core: CoreEntry,
  ids: ThreadIds,
  beforeCreds: () => void = () => undefined,
): Probe<string[]> {
  const part = core.thread_core;
  if (part === undefined) return () => [];
  const { pid, tid, fired } = ids;
  restorePending(program, part.signals_p ?? NO_SIGNALS, {
    queue: "thread",
    pid,
    tid,
    ...(fired === undefined ? {} : { fired }),
  });
  restoreRegistrations(program, part, core.thread_info?.clear_tid_addr ?? 0n);
  if (part.sas !== undefined) restoreAlternateStack(program, part.sas);
  const scheduled = restoreScheduling(program, part);
  const { personality } = part.reprise ?? {};
  if (personality !== undefined) attributes.restorePersonality(program, personality);
  const set = restoreSettings(program, part.reprise?.settings?.calls);
  const placed = restoreThreadPolicy(program, part.reprise);
  beforeCreds();
  restoreSeccomp(program, part, ids);
  const checkCreds =
    part.creds === undefined
      ? (): void => undefined
      : restoreCreds(program, part.creds, { fixed: ids.fixedCreds, known: ids.knownCreds });
  writeLabels(program, ids.labels);
  attributes.restoreThreadAttributes(program, {
    comm: part.reprise?.comm_bytes ?? part.comm ?? core.tc?.comm,
    pdeath_sig: deathSignal(part.pdeath_sig ?? 0, ids),
  });
  if (pid !== tid && part.creds !== undefined) restoreNoNewPrivs(program, part.creds);
  return (result) => {
    checkCreds(result);
    return [...scheduled(result), ...set(result), ...placed(result)];
  };
}

/** The root's parent is the engine, whose own end would send the signal at once. */
function deathSignal(signal: number, ids: ThreadIds): number {
  if (signal === 0 || ids.parentLeaves !== true) return signal;
  log.warn(
    `pid ${ids.pid} wanted signal ${signal} at its parent's death; its parent is not part of the tree, so it is not set`,
  );
  return 0;
}

const NO_ITIMER = { isec: 0n, iusec: 0n, vsec: 0n, vusec: 0n };
const NO_TIMERS: TaskTimersEntry = { real: NO_ITIMER, virt: NO_ITIMER, prof: NO_ITIMER, posix: [] };
