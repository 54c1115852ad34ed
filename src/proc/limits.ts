// /proc/PID/limits: the resource limits, soft and hard, one a line in columns; see proc_pid_limits(5) and
// lnames in fs/proc/base.c. The names hold blanks, so lines are told by the name that they begin with.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** 2^64 - 1: no limit. */
export const UNLIMITED = 0xffff_ffff_ffff_ffffn;

/** One limit; UNLIMITED for none. */
export interface ResourceLimit {
  readonly soft: bigint;
  readonly hard: bigint;
}

/** The limits in the order of their RLIMIT_ numbers (0 is RLIMIT_CPU), by the names in the file. */
const LIMIT_NAMES = {
  RLIMIT_CPU: "Max cpu time",
  RLIMIT_FSIZE: "Max file size",
  RLIMIT_DATA: "Max data size",
  RLIMIT_STACK: "Max stack size",
  RLIMIT_CORE: "Max core file size",
  RLIMIT_RSS: "Max resident set",
  RLIMIT_NPROC: "Max processes",
  RLIMIT_NOFILE: "Max open files",
  RLIMIT_MEMLOCK: "Max locked memory",
  RLIMIT_AS: "Max address space",
  RLIMIT_LOCKS: "Max file locks",
  RLIMIT_SIGPENDING: "Max pending signals",
  RLIMIT_MSGQUEUE: "Max msgqueue size",
  RLIMIT_NICE: "Max nice priority",
  RLIMIT_RTPRIO: "Max realtime priority",
  RLIMIT_RTTIME: "Max realtime timeout",
} as const;

export type LimitName = keyof typeof LIMIT_NAMES;

/** One limit with its number and name. */
export interface NamedLimit extends ResourceLimit {
  /** Number of the resource as setrlimit(2) takes it. */
  readonly resource: number;
  readonly name: LimitName;
}

/** Limits of a process, by number. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readLimits(pid: number): NamedLimit[] {
  return parseLimits(readShortProcText(pid, "limits"));
}

/** Like readLimits; undefined when the process is gone. */
export function readLimitsIfAlive(pid: number): NamedLimit[] | undefined {
  return undefinedIfGone(() => readLimits(pid));
}

/** Parses the text of a limits file; limits that it does not name are left out. */
export function parseLimits(text: string): NamedLimit[] {
  const lines = text.split("\n");
  const limits: NamedLimit[] = [];
  for (const [resource, name] of (Object.keys(LIMIT_NAMES) as LimitName[]).entries()) {
    const title = LIMIT_NAMES[name];
    const line = lines.find((candidate) => candidate.startsWith(`${title} `));
    if (line === undefined) continue;
    const [soft = "", hard = ""] = line.slice(title.length).trim().split(/\s+/);
    limits.push({ resource, name, soft: limitValue(soft), hard: limitValue(hard) });
  }
  return limits;
}

function limitValue(text: string): bigint {
  return text === "unlimited" ? UNLIMITED : BigInt(text);
}
