// What prctl(2), personality(2), umask(2) and small files in /proc keep for a process or a thread. Some can only be asked
// for by the task itself (probes), some are read from /proc (collected). Files in /proc/self are written by the restored
// task itself, and only if the value is not the one that it inherited from us.
//
// Order at restore: /proc files, name, personality, subreaper before the credentials, which take files and rights away;
// then "dumpable" and the parent death signal, which a change of credentials resets; MDWE when all memory is mapped.

import { readFileSync } from "node:fs";
import type {
  CredsEntry,
  TaskCoreEntry,
  ThreadCoreEntry,
} from "../../images/schema/messages.generated.ts";
import { readAutogroup } from "../../proc/autogroup.ts";
import { readCoredumpFilter } from "../../proc/coredump-filter.ts";
import { LOGINUID_UNSET, readLoginuid } from "../../proc/loginuid.ts";
import { readOomScoreAdj } from "../../proc/oom.ts";
import { readPersonality } from "../../proc/personality.ts";
import { readProcBytes } from "../../proc/procfs.ts";
import { AT_FDCWD, O_CLOEXEC, O_WRONLY } from "../../sys/abi/fcntl.ts";
import {
  MEMBARRIER_CMD_GET_REGISTRATIONS,
  PR_GET_CHILD_SUBREAPER,
  PR_GET_DUMPABLE,
  PR_GET_MDWE,
  PR_GET_PDEATHSIG,
  PR_GET_THP_DISABLE,
  PR_GET_TIMERSLACK,
  PR_SET_CHILD_SUBREAPER,
  PR_SET_DUMPABLE,
  PR_SET_MDWE,
  PR_SET_NAME,
  PR_SET_PDEATHSIG,
  PR_SET_THP_DISABLE,
} from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import { frontPid } from "../../sys/front.ts";

/** Longest name of a task in bytes, without the zero at its end (TASK_COMM_LEN - 1). */
const COMM_LENGTH = 15;
/** Dumpable for root alone: given by the kernel after a change of credentials, never by prctl. */
const SUID_DUMP_ROOT = 2;

/** What only the process itself can tell. */
export interface ProcessAttributes {
  /** End of the heap. */
  readonly brk: number;
  /** 0, 1, or 2 (for root alone). */
  readonly dumpable: number;
  readonly thpDisabled: boolean;
  readonly childSubreaper: boolean;
  /** MEMBARRIER_CMD_REGISTER_ bits. */
  readonly membarriers: number;
  /** PR_MDWE_ bits: "memory deny write execute". */
  readonly mdwe: number;
}

/** Asks the leader for the attributes of its process. */
export function probeProcessAttributes(program: Program): Probe<ProcessAttributes> {
  const subreaper = program.output(4, 4);
  program.call("prctl", [PR_GET_CHILD_SUBREAPER, subreaper, 0, 0, 0], {
    label: "read the subreaper flag",
  });
  const dumpable = program.call("prctl", [PR_GET_DUMPABLE, 0, 0, 0, 0], {
    label: "read the dumpable flag",
  });
  const thp = program.call("prctl", [PR_GET_THP_DISABLE, 0, 0, 0, 0], {
    label: "read the huge page flag",
  });
  const brk = program.call("brk", [0], { label: "read the end of the heap" });
  // From Linux 6.3 and 6.4 on; without them nothing is set, or nothing is known.
  const mdwe = program.call("prctl", [PR_GET_MDWE, 0, 0, 0, 0], {
    label: "read the MDWE bits",
    mayFail: true,
  });
  const membarriers = program.call("membarrier", [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0], {
    label: "read the membarrier registrations",
    mayFail: true,
  });
  return (result) => {
    return {
      brk: result.value(brk),
      dumpable: result.value(dumpable),
      thpDisabled: result.value(thp) !== 0,
      childSubreaper: result.bytes(subreaper, 4).readInt32LE(0) !== 0,
      membarriers: Math.max(result.value(membarriers), 0),
      mdwe: Math.max(result.value(mdwe), 0),
    };
  };
}

/** What only a thread itself can tell. */
export interface ThreadAttributes {
  /** 0 for none. */
  readonly parentDeathSignal: number;
  /** Nanoseconds by which timers may be late; 0 for real-time threads. */
  readonly timerSlack: bigint;
}

/** Asks a thread for its attributes. */
export function probeThreadAttributes(program: Program): Probe<ThreadAttributes> {
  const signal = program.output(4, 4);
  program.call("prctl", [PR_GET_PDEATHSIG, signal, 0, 0, 0], {
    label: "read the parent death signal",
  });
  const slack = program.call("prctl", [PR_GET_TIMERSLACK, 0, 0, 0, 0], {
    label: "read the timer slack",
  });
  return (result) => ({
    timerSlack: BigInt(result.value(slack)),
    parentDeathSignal: result.bytes(signal, 4).readInt32LE(0),
  });
}

/** What /proc tells of a process, in the form of the images; `reprise` is to be merged with our other fields. */
export type CollectedProcessAttributes = Pick<
  TaskCoreEntry,
  "personality" | "loginuid" | "oom_score_adj"
> &
  Required<Pick<TaskCoreEntry, "reprise">>;

/** Reads attributes of a process from /proc. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function collectProcessAttributes(pid: number): CollectedProcessAttributes {
  const filter = readCoredumpFilter(pid);
  const autogroup = readAutogroup(pid);
  return {
    personality: readPersonality(pid),
    loginuid: readLoginuid(pid) ?? LOGINUID_UNSET,
    oom_score_adj: readOomScoreAdj(pid),
    reprise: {
      ...(filter === undefined ? {} : { coredump_filter: filter }),
      ...(autogroup === undefined ? {} : { autogroup_nice: autogroup.nice }),
      personality_set: true,
    },
  };
}

/**
 * Sets what of a process comes before its credentials: personality (where the image says that it is meant), subreaper,
 * membarrier registrations and the files in /proc.
 *
 * @returns a probe of what could not be set, a sentence each.
 */
export function restoreProcessAttributes(
  program: Program,
  core: TaskCoreEntry,
  { inheritedLoginuid }: { readonly inheritedLoginuid?: number } = {},
): Probe<string[]> {
  const { reprise } = core;
  if (reprise?.personality_set === true) restorePersonality(program, core.personality);
  restoreChildSubreaper(program, { isSubreaper: core.child_subreaper === true });
  restoreMembarriers(program, core.membarrier_registration_mask ?? 0);
  const { oom_score_adj: oom, loginuid } = core;
  const filter = reprise?.coredump_filter;
  const nice = reprise?.autogroup_nice;
  const files = [
    ...(oom === undefined ? [] : [restoreOomScoreAdj(program, oom)]),
    ...(loginuid === undefined ? [] : [restoreLoginuid(program, loginuid, inheritedLoginuid)]),
    ...(filter === undefined ? [] : [restoreCoredumpFilter(program, filter)]),
    ...(nice === undefined ? [] : [restoreAutogroupNice(program, nice)]),
  ];
  return (result) => files.flatMap((problems) => problems(result));
}

/** A name that is not UTF-8 (U+FFFD stands for it) as it is: a field of the images that is a string can have no such bytes. */
export function collectCommBytes({
  pid,
  tid,
  comm,
}: {
  readonly pid: number;
  readonly tid: number;
  readonly comm: string;
}): { comm_bytes?: Uint8Array } {
  if (!comm.includes("\ufffd")) return {};
  // The kernel ends it with a newline.
  return { comm_bytes: Uint8Array.from(readProcBytes(pid, `task/${tid}/comm`).subarray(0, -1)) };
}

/** Sets what of a thread comes after its credentials: name and parent death signal. */
export function restoreThreadAttributes(
  program: Program,
  core: Pick<ThreadCoreEntry, "pdeath_sig"> & { readonly comm: string | Uint8Array | undefined },
): void {
  if (core.comm !== undefined) restoreComm(program, core.comm);
  restoreParentDeathSignal(program, core.pdeath_sig ?? 0);
}

/** Asks a thread for its personality: each has its own. */
export function probePersonality(program: Program): Probe<number> {
  const asked = program.call("personality", [ASK_PERSONALITY], { label: "read the personality" });
  return (result) => result.value(asked);
}

const ASK_PERSONALITY = 0xffff_ffff;

/** Sets the execution domain: after the memory is mapped, since READ_IMPLIES_EXEC changes what mmap does. */
export function restorePersonality(program: Program, personality: number): void {
  program.call("personality", [personality], {
    label: `set the personality 0x${personality.toString(16)}`,
  });
}

/** Names the thread that runs the program; what is longer than 15 bytes is cut off. */
export function restoreComm(program: Program, comm: string | Uint8Array): void {
  const bytes = Buffer.alloc(COMM_LENGTH + 1);
  const name = typeof comm === "string" ? Buffer.from(comm) : comm;
  bytes.set(name.subarray(0, COMM_LENGTH));
  program.call("prctl", [PR_SET_NAME, program.data(bytes), 0, 0, 0], {
    label: `name the thread ${typeof comm === "string" ? comm : Buffer.from(comm).toString()}`,
  });
}

/** Sets the parent death signal of the thread that runs the program, also none (0). After the credentials. */
export function restoreParentDeathSignal(program: Program, signal: number): void {
  program.call("prctl", [PR_SET_PDEATHSIG, signal, 0, 0, 0], {
    label: "set the parent death signal",
  });
}

/** Makes the process a subreaper, or not. */
function restoreChildSubreaper(
  program: Program,
  { isSubreaper }: { readonly isSubreaper: boolean },
): void {
  program.call("prctl", [PR_SET_CHILD_SUBREAPER, Number(isSubreaper), 0, 0, 0], {
    label: "set the subreaper flag",
  });
}

/** Switches transparent huge pages off for the process, or on. */
export function restoreThpDisable(
  program: Program,
  { isDisabled }: { readonly isDisabled: boolean },
): void {
  program.call("prctl", [PR_SET_THP_DISABLE, Number(isDisabled), 0, 0, 0], {
    label: "set the huge page flag",
  });
}

/**
 * Sets the dumpable flag, after the credentials. Value 2 cannot be set, but a change of the effective ids to others than
 * root's gives it where fs.suid_dumpable is 2; in all other cases it becomes 0, which gives nobody more rights.
 *
 * @returns a probe of what could not be set.
 */
export function restoreDumpable(
  program: Program,
  dumpable: number,
  creds: CredsEntry | undefined,
): Probe<string[]> {
  if (dumpable === SUID_DUMP_ROOT && isGivenByKernel(creds)) {
    const now = program.call("prctl", [PR_GET_DUMPABLE, 0, 0, 0, 0], {
      label: "read the dumpable flag",
    });
    return (result) =>
      result.value(now) === SUID_DUMP_ROOT
        ? []
        : [`cannot set dumpable to 2: it is ${result.value(now)}`];
  }
  program.call("prctl", [PR_SET_DUMPABLE, dumpable === 1 ? 1 : 0, 0, 0, 0], {
    label: "set the dumpable flag",
  });
  return () => (dumpable > 1 ? [`cannot set dumpable to ${dumpable}: it is 0, as is safe`] : []);
}

/** Forbids the process to make memory executable, as it had itself forbidden: nothing can be undone afterwards. */
export function restoreMdwe(program: Program, mdwe: number): void {
  if (mdwe === 0) return;
  program.call("prctl", [PR_SET_MDWE, mdwe, 0, 0, 0], { label: "set the MDWE bits" });
}

/** Registers the process for the membarrier(2) commands of a mask of MEMBARRIER_CMD_REGISTER_ bits. */
function restoreMembarriers(program: Program, mask: number): void {
  for (let bit = 0; bit < 31; bit += 1) {
    if ((mask & (1 << bit)) === 0) continue;
    program.call("membarrier", [1 << bit, 0, 0], {
      label: `register for membarrier command ${1 << bit}`,
    });
  }
}

/** Sets the file mode creation mask. */
export function restoreUmask(program: Program, umask: number): void {
  program.call("umask", [umask], { label: "set the umask" });
}

/** Sets oom_score_adj; lowering it needs CAP_SYS_RESOURCE. Returns a probe of what could not be set. */
export function restoreOomScoreAdj(program: Program, value: number): Probe<string[]> {
  if (value === readOomScoreAdj(frontPid())) return () => [];
  return writeProcFile(program, "oom_score_adj", value.toString());
}

/** Sets which memory a core dump holds. Returns a probe of what could not be set. */
function restoreCoredumpFilter(program: Program, mask: number): Probe<string[]> {
  if (mask === readCoredumpFilter(frontPid())) return () => [];
  return writeProcFile(program, "coredump_filter", `0x${mask.toString(16)}`);
}

/**
 * Sets the audit login uid. One that is set may be changed only with CAP_AUDIT_CONTROL, and not at all where audit is told
 * to keep it. Returns a probe of what could not be set.
 */
export function restoreLoginuid(
  program: Program,
  uid: number,
  inherited?: number,
): Probe<string[]> {
  const own = readLoginuid(frontPid());
  if (own === undefined || (inherited ?? own) === uid) return () => [];
  return writeProcFile(program, "loginuid", uid.toString());
}

/** Takes the login uid away, so that tasks in a user namespace, who may not change one, can set their own. */
export function forgetLoginuid(program: Program): void {
  restoreLoginuid(program, LOGINUID_UNSET);
}

/** Sets the nice value of the session's autogroup: by its leader. Returns a probe of what could not be set. */
function restoreAutogroupNice(program: Program, nice: number): Probe<string[]> {
  if (nice === (readAutogroup(frontPid())?.nice ?? 0)) return () => [];
  return writeProcFile(program, "autogroup", nice.toString());
}

/** Writes a file of /proc/self in one write, as these files want it. */
function writeProcFile(program: Program, name: string, text: string): Probe<string[]> {
  const path = program.string(`/proc/self/${name}`);
  const label = `set ${name} to ${text}`;
  const fd = program.call("openat", [AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0], {
    label,
    mayFail: true,
  });
  const written = program.call("write", [fd, program.string(text), text.length], {
    label,
    mayFail: true,
  });
  program.call("close", [fd], { label, mayFail: true });
  return (result) => {
    const opened = result.value(fd);
    const error = opened < 0 ? opened : result.value(written);
    const call = opened < 0 ? "openat" : "write";
    return error < 0 ? [`cannot ${label}: ${call}: ${errnoName(-error)}`] : [];
  };
}

/** Whether the kernel sets dumpable to 2 by itself when the seed, which is root, takes on these credentials. */
function isGivenByKernel(creds: CredsEntry | undefined): boolean {
  if (creds === undefined) return false;
  const { euid, egid, fsuid, fsgid } = creds;
  const changed = [euid, egid, fsuid, fsgid].some((id) => id !== 0);
  return changed && readFileSync("/proc/sys/fs/suid_dumpable", "latin1").trim() === "2";
}
