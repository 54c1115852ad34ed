// core-N.img: what makes a thread a thread and a process a process. This file only gathers; each part has its own room. What is asked
// from inside is in inquiry.ts, the way back in core-restore.ts.

import { constantMessage } from "../../images/codec.ts";
import { TASK_ALIVE, TASK_DEAD, TASK_LEADERLESS, TASK_STOPPED } from "../../images/check-task.ts";
import {
  CoreEntryMarch,
  type CoreEntry,
  type CredsEntry,
  type FsEntry,
  type RepriseThreadEntry,
  type ThreadCoreEntry,
} from "../../images/schema/messages.generated.ts";
import { LOGINUID_UNSET } from "../../proc/loginuid.ts";
import { SIGCHLD } from "../../sys/abi/signal.ts";
import { RepriseError } from "../../errors.ts";
import { restartError } from "../../tracee/arch/x86_64/registers.ts";
import * as attributes from "./attributes.ts";
import { cpuStateEntry } from "./cpu-state.ts";
import { collectLimits } from "./limits.ts";
import { type Scheduling } from "./scheduling.ts";
import { collectPending, NO_SIGNALS } from "./signals.ts";
import { readLabels, type Labels } from "./lsm.ts";
import { isFirst, type FrozenTask, type FrozenThread } from "./task.ts";
import type { ThreadLook } from "./thread-look.ts";
import type { ProcessState, ThreadState } from "./inquiry.ts";

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

/** Our own fields. Most threads have none but those that follow from their scheduling and the call that they stand in. */
function ownPart(
  task: FrozenTask,
  thread: FrozenThread,
  {
    thread: { settings, personality, memoryPolicy, restOfWait },
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
    restOfWait === undefined &&
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
    ...(restOfWait === undefined ? {} : { rest_of_wait: restOfWait }),
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
