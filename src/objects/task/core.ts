// core-N.img: what makes a thread a thread and a process a process. This file only gathers, and knows the order in which
// things must be given back; each part has its own room.

import { constantMessage } from "../../images/codec.ts";
import { TASK_ALIVE, TASK_DEAD, TASK_LEADERLESS, TASK_STOPPED } from "../../images/check-task.ts";
import {
  CoreEntryMarch,
  type CoreEntry,
  type CredsEntry,
  type FsEntry,
  type MmEntry,
  type ReprisePrctl,
  type RepriseSemUndo,
  type RepriseMemoryPolicy,
  type RepriseThreadEntry,
  type RlimitEntry,
  type SaEntry,
  type SeccompFilter,
  type TaskTimersEntry,
  type ThreadCoreEntry,
  type ThreadSasEntry,
  type VmaEntry,
} from "../../images/schema/messages.generated.ts";
import type { BriefStatus, TaskStatus } from "../../proc/status.ts";
import { LOGINUID_UNSET } from "../../proc/loginuid.ts";
import { SIGCHLD } from "../../sys/abi/signal.ts";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { restartError } from "../../tracee/arch/x86_64/registers.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import * as attributes from "./attributes.ts";
import { cpuStateEntry } from "./cpu-state.ts";
import { hasSameCredentials, probeCreds, restoreCreds, restoreNoNewPrivs } from "./creds.ts";
import { collectLimits, restoreLimits } from "./limits.ts";
import { restoreScheduling, type Scheduling } from "./scheduling.ts";
import {
  collectPending,
  drainChildSignals,
  probeAlternateStack,
  probeSignalActions,
  restoreAlternateStack,
  restorePending,
  restoreSignalActions,
  NO_SIGNALS,
} from "./signals.ts";
import { tellKeyrings, tellThreadKeyring } from "./keyrings.ts";
import type { LandlockWatch } from "./landlock.ts";
import { readLabels, writeLabels, type Labels, type OpenedLabel } from "./lsm.ts";
import { probeAreaPolicies, probeThreadPolicy, restoreThreadPolicy } from "../memory/numa.ts";
import { probeFutureLocks, restoreFutureLocks } from "../memory/future-locks.ts";
import { tellNamespaceSettings } from "../namespaces/settings.ts";
import { probeCpuPermissions, restoreCpuPermissions } from "./cpu-permissions.ts";
import { probeLdt, restoreLdt } from "./ldt.ts";
import { hasLongQueue, probeLongQueue, type TakenSignals } from "./long-queues.ts";
import { probeSettings, restoreSettings, restoreUnmerged } from "./prctl-settings.ts";
import { restoreSeccomp } from "./seccomp.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";
import { probeClearTidAddress, restoreRegistrations } from "./thread-registrations.ts";
import type { ThreadLook } from "./thread-look.ts";
import { armTimers, createTimers, firedTimers, probeTimers } from "./timers.ts";

/** What a process told from inside. */
export interface ProcessState {
  readonly sigactions: readonly SaEntry[];
  readonly timers: TaskTimersEntry;
  readonly attributes: attributes.ProcessAttributes;
  /** Policies of NUMA memory, by the addresses of areas. */
  readonly areaPolicies: ReadonlyMap<number, RepriseMemoryPolicy>;
  /** MCL_ flags for memory that is mapped later. */
  readonly futureLocks: number;
  /** Components of registers that it has asked for. */
  readonly cpuPermissions: bigint;
  /** What its end undoes of its operations on semaphores, where that was looked for. */
  readonly semUndo?: readonly RepriseSemUndo[];
  /** Whether it has a local descriptor table; then that table, once it has been read. */
  readonly hasLdt: boolean;
  readonly ldt?: Uint8Array;
}

/** What a thread told from inside. */
export interface ThreadState {
  readonly creds: CredsEntry;
  readonly sas: ThreadSasEntry;
  readonly attributes: attributes.ThreadAttributes;
  /** Word that is cleared when the thread ends; 0 for none. */
  readonly clearTidAddress: bigint;
  readonly settings: readonly ReprisePrctl[];
  readonly memoryPolicy: RepriseMemoryPolicy | undefined;
  readonly personality: number;
  /** Signals of a long queue, of its own or as the leader of its process's. */
  readonly taken: TakenSignals | undefined;
}

/** Adds the questions for the whole process to its leader's program. */
export function probeProcess(
  program: Program,
  task: FrozenTask,
  options: {
    readonly innerTid: (tid: number) => number | undefined;
    /** None when the memory is another task's, too. */
    readonly areas: readonly VmaEntry[];
  },
): Probe<ProcessState> {
  const sigactions = probeSignalActions(program);
  const timers = probeTimers(program, task.pid, { ...options, threads: task.threads.length });
  const attributesOf = attributes.probeProcessAttributes(program);
  const areaPolicies = probeAreaPolicies(program, options.areas);
  const keyrings = tellKeyrings(program, { pid: task.innerPid });
  const settings = tellNamespaceSettings(program, task);
  const futureLocks = probeFutureLocks(program);
  const ldt = probeLdt(program);
  const cpuPermissions = probeCpuPermissions(program);
  return (result) => {
    keyrings(result);
    settings(result);
    return {
      areaPolicies: areaPolicies(result),
      futureLocks: futureLocks(result),
      hasLdt: ldt(result),
      cpuPermissions: cpuPermissions(result),
      sigactions: sigactions(result),
      timers: timers(result),
      attributes: attributesOf(result),
    };
  };
}

/** A program that asks threads, and what reads its answers for one of them. */
export interface ThreadQuestions {
  readonly program: Program;
  readonly state: (result: ProgramResult, thread: FrozenThread) => ThreadState;
}

/** What threads are asked: most threads of a process the same, in one and the same program. */
export class ThreadInquiry {
  readonly #task: FrozenTask;
  readonly #landlock: LandlockWatch;
  /** Those of threads that are not leaders, by what decides on the calls. */
  readonly #known = new Map<string, ThreadQuestions>();

  constructor(task: FrozenTask, landlock: LandlockWatch) {
    this.#task = task;
    this.#landlock = landlock;
  }

  /** The questions for a thread; those for the leader are added to its process's. */
  of(thread: FrozenThread, leaders?: Program): ThreadQuestions {
    const target = this.#landlock.targetOf(thread);
    if (leaders !== undefined || hasLongQueue(this.#task, thread))
      return this.#ask(thread, { target, program: leaders ?? new Program() });
    const key = `${thread.status.groups.length} ${target}`;
    const known = this.#known.get(key) ?? this.#ask(thread, { target, program: new Program() });
    this.#known.set(key, known);
    return known;
  }

  #ask(
    like: FrozenThread,
    { target, program }: { readonly target: number | undefined; readonly program: Program },
  ): ThreadQuestions {
    // Who stands for a first thread that has ended is asked for what is the process's.
    const isLeader = like.tid === this.#task.pid;
    // What each thread answers differently comes first.
    const sas = probeAlternateStack(program);
    const clearTidAddress = probeClearTidAddress(program);
    const domain = this.#landlock.probe(program, target);
    const mark = program.mark;
    const creds = probeCreds(program, like.status);
    const attributesOf = attributes.probeThreadAttributes(program);
    const settings = probeSettings(program, { isLeader });
    const memoryPolicy = probeThreadPolicy(program);
    const personality = attributes.probePersonality(program);
    const keyring = isFirst(this.#task, like) ? undefined : tellThreadKeyring(program);
    const taken = probeLongQueue(program, this.#task, like);
    const answers = new Map<string, CommonState[]>();
    const common = (result: ProgramResult, { status }: FrozenThread): CommonState => {
      const answer = result.since(mark);
      const known = answers.get(answer) ?? [];
      const same = known.find((other) => hasSameCredentials(other.status, status));
      if (same !== undefined) return same;
      const state = {
        status,
        creds: constantMessage(creds(result, status)),
        attributes: attributesOf(result),
        settings: settings(result),
        memoryPolicy: memoryPolicy(result),
        personality: personality(result),
      };
      known.push(state);
      answers.set(answer, known);
      return state;
    };
    const state = (result: ProgramResult, thread: FrozenThread): ThreadState => {
      domain(result, thread);
      keyring?.(result, thread.innerTid);
      return {
        ...common(result, thread),
        sas: sas(result),
        clearTidAddress: clearTidAddress(result),
        taken: taken(result),
      };
    };
    return { program, state };
  }
}

/** What most threads of a process have in common: it is read from the answers once. */
type CommonState = Omit<ThreadState, "sas" | "clearTidAddress" | "taken"> & {
  /** The status of the first thread that answered so. */
  readonly status: BriefStatus;
};

export interface LeaderParts {
  readonly process: ProcessState;
  readonly thread: ThreadState;
  readonly look: ThreadLook;
  /** Undefined when cgroups are left alone. */
  readonly cgroupSet: number | undefined;
  /** The number of a user in the tree's user namespace. */
  readonly uidInside: (uid: number) => number;
  readonly seccomp: Pick<ThreadCoreEntry, "seccomp_mode" | "seccomp_filter">;
}

type FollowerParts = Omit<LeaderParts, "process" | "uidInside"> & {
  /** Where the thread has directories and a umask of its own. */
  readonly fs?: FsEntry | undefined;
  /** Its leader's personality, with which it is made. */
  readonly usualPersonality?: number;
};

/** The core image of a live task: its process and its leading thread. */
export function leaderCore(task: FrozenTask, leader: FrozenThread, parts: LeaderParts): CoreEntry {
  const { process, thread, look, cgroupSet, seccomp, uidInside } = parts;
  const collected = attributes.collectProcessAttributes(task.pid);
  const { childSubreaper, membarriers } = process.attributes;
  return {
    ...leaderPart(task, leader, { thread, look, cgroupSet, seccomp }),
    tc: {
      task_state: stateOf(task),
      exit_code: task.endedLeader?.exitCode ?? 0,
      flags: task.stat.flags,
      blk_sigset: leader.stopped.mask,
      comm: task.stat.comm,
      timers: process.timers,
      rlimits: { rlimits: collectLimits(task.pid) },
      ...(cgroupSet === undefined ? {} : { cg_set: cgroupSet }),
      signals_s: collectPending(leader.stopped.tracee, "process", thread.taken),
      sigactions: process.sigactions,
      ...(childSubreaper ? { child_subreaper: true } : {}),
      ...(membarriers === 0 ? {} : { membarrier_registration_mask: membarriers }),
      ...(task.state === "stopped" ? { stop_signo: task.stopSignal } : {}),
      ...collected,
      reprise: {
        ...collected.reprise,
        ...(process.cpuPermissions === 0n ? {} : { cpu_permissions: process.cpuPermissions }),
        ...(process.semUndo === undefined ? {} : { sem_undo: { sets: process.semUndo } }),
        ...(task.stat.exitSignal === SIGCHLD ? {} : { child_exit_signal: task.stat.exitSignal }),
      },
      loginuid: uidInside(collected.loginuid ?? LOGINUID_UNSET),
    },
  };
}

function stateOf({ state, endedLeader }: FrozenTask): number {
  if (endedLeader !== undefined) return TASK_LEADERLESS;
  return state === "stopped" ? TASK_STOPPED : TASK_ALIVE;
}

/**
 * The first thread of a process. One that has ended is made from what another one is, but has told the kernel of nothing in the memory
 * that its end would change once more, and waits for nothing.
 */
function leaderPart(
  task: FrozenTask,
  leader: FrozenThread,
  parts: Omit<FollowerParts, "fs">,
): CoreEntry {
  const part = threadPart(task, leader, parts);
  const { endedLeader } = task;
  if (endedLeader === undefined) return part;
  const { thread_core, thread_info, mtype } = part;
  if (thread_core === undefined || thread_info === undefined) return part;
  const { creds, sched_nice, sched_policy, sched_prio, cg_set, reprise } = thread_core;
  const { pid } = endedLeader;
  const { comm } = task.stat;
  return {
    mtype,
    thread_info: { ...thread_info, clear_tid_addr: 0n },
    thread_core: {
      futex_rla: 0n,
      futex_rla_len: 0,
      creds,
      sched_nice,
      sched_policy,
      sched_prio,
      comm,
      cg_set,
      reprise: {
        // What calls of the first thread set for the whole process.
        ...(reprise?.settings === undefined ? {} : { settings: reprise.settings }),
        ...attributes.collectCommBytes({ pid, tid: pid, comm }),
      },
    },
  };
}

/** The core image of a thread that is not the leader. */
export function followerCore(
  task: FrozenTask,
  thread: FrozenThread,
  parts: FollowerParts,
): CoreEntry {
  return threadPart(task, thread, parts);
}

/** The core image of a zombie: how it died. */
export function zombieCore(task: FrozenTask): CoreEntry {
  return {
    mtype: CoreEntryMarch.X86_64,
    tc: {
      task_state: TASK_DEAD,
      exit_code: task.stat.exitCode,
      personality: 0,
      flags: task.stat.flags,
      blk_sigset: 0n,
      comm: task.stat.comm,
      sigactions: [],
    },
  };
}

function threadPart(task: FrozenTask, thread: FrozenThread, parts: FollowerParts): CoreEntry {
  const { stopped, tid } = thread;
  const { thread: state, look, cgroupSet, seccomp } = parts;
  const isLeader = isFirst(task, thread);
  const { scheduling, robustList, hasPending } = look.at(thread, { task, ...state.attributes });
  const { parentDeathSignal } = state.attributes;
  if (parentDeathSignal !== 0) refuseDeathSignal(task, parentDeathSignal);
  // Written out, and with fields that are undefined: all threads have one form, and V8 is quick.
  return {
    mtype: CoreEntryMarch.X86_64,
    thread_info: cpuStateEntry(stopped, stopped.regs, state.clearTidAddress),
    thread_core: {
      futex_rla: robustList.futex_rla,
      futex_rla_len: robustList.futex_rla_len,
      sched_nice: scheduling.sched_nice,
      sched_policy: scheduling.sched_policy,
      sched_prio: scheduling.sched_prio,
      reprise: ownPart(task, thread, { ...parts, scheduling }),
      blk_sigset: isLeader ? undefined : stopped.mask,
      sas: state.sas,
      pdeath_sig: parentDeathSignal === 0 ? undefined : parentDeathSignal,
      signals_p:
        hasPending || state.taken !== undefined
          ? collectPending(stopped.tracee, "thread", state.taken)
          : NO_SIGNALS,
      creds: withLabels(state.creds, readLabels({ pid: task.pid, tid })),
      seccomp_mode: seccomp.seccomp_mode,
      seccomp_filter: seccomp.seccomp_filter,
      comm: commOf(task, thread),
      rseq_entry: thread.rseq.rseq_abi_pointer === 0n ? undefined : thread.rseq,
      cg_set: cgroupSet,
    },
  };
}

function commOf(task: FrozenTask, thread: FrozenThread): string {
  return isFirst(task, thread) ? task.stat.comm : thread.status.name;
}

/** Whether a thread is the first one of its process, and does not only stand for it. */
function isFirst({ pid, endedLeader }: FrozenTask, { tid }: FrozenThread): boolean {
  return tid === pid && endedLeader === undefined;
}

/** Our own fields. Most threads have none but those that follow from their scheduling and the call that they stand in. */
function ownPart(
  task: FrozenTask,
  thread: FrozenThread,
  {
    thread: { settings, personality, memoryPolicy },
    scheduling,
    fs,
    usualPersonality = personality,
  }: FollowerParts & { readonly scheduling: Scheduling },
): RepriseThreadEntry {
  const { tid } = thread;
  const { dispatch } = thread.stopped;
  const interrupted_with = restartError(thread.stopped.regs);
  const comm = attributes.collectCommBytes({ pid: task.pid, tid, comm: commOf(task, thread) });
  const isUsual =
    settings.length === 0 &&
    fs === undefined &&
    comm.comm_bytes === undefined &&
    personality === usualPersonality &&
    memoryPolicy === undefined &&
    dispatch === undefined;
  if (isUsual) return usualOwnPart(scheduling, interrupted_with);
  return {
    ...scheduling.reprise,
    ...(settings.length === 0 ? {} : { settings: { calls: settings } }),
    ...(fs === undefined ? {} : { fs }),
    ...comm,
    ...(interrupted_with === undefined ? {} : { interrupted_with }),
    ...(personality === usualPersonality ? {} : { personality }),
    ...(memoryPolicy === undefined ? {} : { memory_policy: memoryPolicy }),
    ...(dispatch === undefined ? {} : { dispatch }),
  };
}

/** Made and encoded once for all threads that have the same. */
function usualOwnPart(
  scheduling: Scheduling,
  interrupted_with: number | undefined,
): RepriseThreadEntry {
  const known = usualOwnParts.get(scheduling) ?? new Map<number | undefined, RepriseThreadEntry>();
  usualOwnParts.set(scheduling, known);
  const part =
    known.get(interrupted_with) ??
    constantMessage({
      ...scheduling.reprise,
      ...(interrupted_with === undefined ? {} : { interrupted_with }),
    });
  known.set(interrupted_with, part);
  return part;
}

const usualOwnParts = new WeakMap<Scheduling, Map<number | undefined, RepriseThreadEntry>>();

/** Most threads have none. */
function withLabels(creds: CredsEntry, labels: Labels): CredsEntry {
  return Object.keys(labels).length === 0 ? creds : { ...creds, ...labels };
}

/** Who is to be told of its parent's end was made by the first thread there, and would be told of that thread's. */
function refuseDeathSignal({ pid, parent, stat }: FrozenTask, signal: number): void {
  if (parent?.endedLeader === undefined) return;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump pid ${pid} (${stat.comm}): it wants signal ${signal} at its parent's death (PR_SET_PDEATHSIG), and the parent's main thread has ended while others live`,
    {
      pid,
      hint: "Its restore would send the signal. Let the process set it to 0 before the dump.",
    },
  );
}

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
      : restoreCreds(program, part.creds, { fixed: ids.fixedCreds });
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
