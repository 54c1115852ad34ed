// /proc/PID/status and /proc/PID/task/TID/status: `Name:<tab>value` lines; see proc_pid_status(5) and
// proc_pid_status in fs/proc/array.c. Kernels add lines over time, zombies and kernel threads lack the
// memory lines and the umask, and a kernel without a feature lacks its line: such fields are undefined.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** Real, effective, saved and file system id, as seen from the reader's user namespace. */
export interface IdSet {
  readonly real: number;
  readonly effective: number;
  readonly saved: number;
  readonly fs: number;
}

/** What the status file says. Masks have bit N-1 for signal N, bit N for capability N. */
export interface TaskStatus {
  readonly name: string;
  readonly umask: number | undefined;
  /** One letter, as in stat. */
  readonly state: string;
  readonly tgid: number;
  readonly pid: number;
  readonly ppid: number;
  /** 0 when nobody traces the task. */
  readonly tracerPid: number;
  readonly uid: IdSet;
  readonly gid: IdSet;
  readonly fdSize: number;
  readonly groups: readonly number[];
  /** The ids in each pid namespace, from the reader's inwards. */
  readonly nsTgid: readonly number[];
  readonly nsPid: readonly number[];
  readonly nsPgid: readonly number[];
  readonly nsSid: readonly number[];
  /** Kernel thread; undefined before Linux 6.11. */
  readonly kthread: boolean | undefined;
  readonly threads: number;
  readonly sigQueued: number;
  readonly sigQueueLimit: number;
  readonly sigPnd: bigint;
  readonly shdPnd: bigint;
  readonly sigBlk: bigint;
  readonly sigIgn: bigint;
  readonly sigCgt: bigint;
  readonly capInh: bigint;
  readonly capPrm: bigint;
  readonly capEff: bigint;
  readonly capBnd: bigint;
  readonly capAmb: bigint;
  readonly noNewPrivs: boolean;
  /** 0 none, 1 strict, 2 filter; undefined when the kernel has no seccomp. */
  readonly seccomp: number | undefined;
  readonly seccompFilters: number | undefined;
  /** E.g. "vulnerable", "thread force mitigated". */
  readonly speculationStoreBypass: string | undefined;
  readonly speculationIndirectBranch: string | undefined;
  /** The Vm… and Rss… lines by their names, in kB. */
  readonly memory: TaskMemory;
  readonly coreDumping: boolean | undefined;
  readonly thpEnabled: boolean | undefined;
  readonly cpusAllowedList: string | undefined;
  readonly memsAllowedList: string | undefined;
}

/** Sizes in kB (of 1024 bytes). */
export interface TaskMemory {
  readonly vmPeak: number | undefined;
  readonly vmSize: number | undefined;
  readonly vmLck: number | undefined;
  readonly vmPin: number | undefined;
  readonly vmHwm: number | undefined;
  readonly vmRss: number | undefined;
  readonly rssAnon: number | undefined;
  readonly rssFile: number | undefined;
  readonly rssShmem: number | undefined;
  readonly vmData: number | undefined;
  readonly vmStk: number | undefined;
  readonly vmExe: number | undefined;
  readonly vmLib: number | undefined;
  readonly vmPte: number | undefined;
  readonly vmSwap: number | undefined;
  readonly hugetlbPages: number | undefined;
}

/** Reads the status of a process (of its leader). Throws NO_SUCH_PROCESS or SYSCALL. */
export function readStatus(pid: number): TaskStatus {
  return parseStatus(readShortProcText(pid, "status"));
}

/** Like readStatus; undefined when the process is gone. */
export function readStatusIfAlive(pid: number): TaskStatus | undefined {
  return undefinedIfGone(() => readStatus(pid));
}

/** Reads the status of one thread. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readThreadStatus(pid: number, tid: number): TaskStatus {
  return parseStatus(readShortProcText(pid, `task/${tid}/status`));
}

/** Like readThreadStatus; undefined when the thread is gone. */
export function readThreadStatusIfAlive(pid: number, tid: number): TaskStatus | undefined {
  return undefinedIfGone(() => readThreadStatus(pid, tid));
}

/** What of a status is asked of each of thousands of threads. */
export type BriefStatus = Pick<
  TaskStatus,
  | "name"
  | "umask"
  | "tgid"
  | "pid"
  | "uid"
  | "gid"
  | "groups"
  | "nsPid"
  | "sigQueued"
  | "sigQueueLimit"
  | "sigPnd"
  | "shdPnd"
  | "capInh"
  | "capPrm"
  | "capEff"
  | "capBnd"
  | "capAmb"
  | "noNewPrivs"
  | "seccomp"
>;

/** Reads a part of the status of one thread. Throws as readStatus does. */
export function readBriefStatus(pid: number, tid: number): BriefStatus {
  return parseBriefStatus(readShortProcText(pid, `task/${tid}/status`));
}

/** That part of what parseStatus says; from lines that are those of the thread before nothing is made anew. */
export function parseBriefStatus(text: string): BriefStatus {
  const before = (name: string, from: number): number => {
    const found = text.indexOf(`\n${name}:`, from);
    return found < 0 ? text.length : found + 1;
  };
  const users = before("Uid", 0);
  const inner = before("NStgid", users);
  const signals = before("SigQ", inner);
  const masks = before("SigBlk", signals);
  const rights = before("CapInh", masks);
  const end = before("Speculation_Store_Bypass", rights);
  // No map of all lines: it would be garbage, of which hundreds of threads leave a megabyte.
  const line = (name: string): string | undefined => {
    const at = text.indexOf(`\n${name}:`);
    if (at < 0) return undefined;
    const from = at + name.length + 2;
    return text.slice(from, text.indexOf("\n", from)).trim();
  };
  const umask = line("Umask");
  const pid = Number(line("Pid") ?? "0");
  const identity = sameIdentity(text.slice(users, inner));
  const pending = samePending(text.slice(signals, masks));
  const allowed = sameRights(text.slice(rights, end));
  return {
    // `Name:`, a blank, and the name as it is.
    name: unescapeName(text.slice(NAME_AT, text.indexOf("\n"))),
    umask: umask === undefined ? undefined : Number.parseInt(umask, 8),
    tgid: Number(line("Tgid") ?? "0"),
    pid,
    uid: identity.uid,
    gid: identity.gid,
    groups: identity.groups,
    nsPid: numbers(line("NSpid"), pid),
    sigQueued: pending.sigQueued,
    sigQueueLimit: pending.sigQueueLimit,
    sigPnd: pending.sigPnd,
    shdPnd: pending.shdPnd,
    capInh: allowed.capInh,
    capPrm: allowed.capPrm,
    capEff: allowed.capEff,
    capBnd: allowed.capBnd,
    capAmb: allowed.capAmb,
    noNewPrivs: allowed.noNewPrivs,
    seccomp: allowed.seccomp,
  };
}

const NAME_AT = "Name:\t".length;

const sameIdentity = rememberingLast(parseStatus);
const samePending = rememberingLast(parseStatus);
const sameRights = rememberingLast(parseStatus);

/** Parses a text, but for the same text as the last time. */
function rememberingLast<T>(parse: (text: string) => T): (text: string) => T {
  let last: { readonly text: string; readonly value: T } | undefined;
  return (text) => {
    if (last?.text !== text) last = { text, value: parse(text) };
    return last.value;
  };
}

/** Parses the text of a status file. */
export function parseStatus(text: string): TaskStatus {
  const lines = splitLines(text);
  const tgid = decimal(lines, "Tgid");
  const pid = decimal(lines, "Pid");
  const sigQ = (lines.get("SigQ") ?? "0/0").split("/");
  return {
    name: nameIn(lines),
    umask: umaskIn(lines),
    state: (lines.get("State") ?? "").slice(0, 1),
    tgid,
    pid,
    ppid: decimal(lines, "PPid"),
    tracerPid: decimal(lines, "TracerPid"),
    uid: ids(lines, "Uid"),
    gid: ids(lines, "Gid"),
    fdSize: decimal(lines, "FDSize"),
    groups: numbers(lines.get("Groups")),
    nsTgid: numbers(lines.get("NStgid"), tgid),
    nsPid: numbers(lines.get("NSpid"), pid),
    nsPgid: numbers(lines.get("NSpgid")),
    nsSid: numbers(lines.get("NSsid")),
    kthread: flag(lines, "Kthread"),
    threads: decimal(lines, "Threads"),
    sigQueued: Number(sigQ[0]),
    sigQueueLimit: Number(sigQ[1]),
    sigPnd: mask(lines, "SigPnd"),
    shdPnd: mask(lines, "ShdPnd"),
    sigBlk: mask(lines, "SigBlk"),
    sigIgn: mask(lines, "SigIgn"),
    sigCgt: mask(lines, "SigCgt"),
    capInh: mask(lines, "CapInh"),
    capPrm: mask(lines, "CapPrm"),
    capEff: mask(lines, "CapEff"),
    capBnd: mask(lines, "CapBnd"),
    capAmb: mask(lines, "CapAmb"),
    noNewPrivs: flag(lines, "NoNewPrivs") ?? false,
    seccomp: optional(lines, "Seccomp", Number),
    seccompFilters: optional(lines, "Seccomp_filters", Number),
    speculationStoreBypass: lines.get("Speculation_Store_Bypass"),
    speculationIndirectBranch: lines.get("SpeculationIndirectBranch"),
    memory: memory(lines),
    coreDumping: flag(lines, "CoreDumping"),
    thpEnabled: flag(lines, "THP_enabled"),
    cpusAllowedList: lines.get("Cpus_allowed_list"),
    memsAllowedList: lines.get("Mems_allowed_list"),
  };
}

type Lines = ReadonlyMap<string, string>;

function splitLines(text: string): Lines {
  const lines = new Map<string, string>();
  let at = 0;
  while (at < text.length) {
    let eol = text.indexOf("\n", at);
    if (eol < 0) eol = text.length;
    const colon = text.indexOf(":", at);
    if (colon > 0 && colon < eol) {
      const name = text.slice(at, colon);
      const value = text.slice(colon + 1, eol);
      // The name of the task may end in blanks that belong to it.
      lines.set(name, name === "Name" ? value.slice(1) : value.trim());
    }
    at = eol + 1;
  }
  return lines;
}

function nameIn(lines: Lines): string {
  return unescapeName(lines.get("Name") ?? "");
}

function umaskIn(lines: Lines): number | undefined {
  return optional(lines, "Umask", (value) => Number.parseInt(value, 8));
}

/** The name is written with `\n` and `\\` for the two bytes that would break the line. */
function unescapeName(name: string): string {
  return name.includes("\\")
    ? name.replace(/\\([n\\])/g, (_, char: string) => (char === "n" ? "\n" : "\\"))
    : name;
}

function decimal(lines: Lines, name: string): number {
  return Number(lines.get(name) ?? "0");
}

function optional<T>(lines: Lines, name: string, parse: (value: string) => T): T | undefined {
  const value = lines.get(name);
  return value === undefined ? undefined : parse(value);
}

function flag(lines: Lines, name: string): boolean | undefined {
  return optional(lines, name, (value) => value === "1");
}

function mask(lines: Lines, name: string): bigint {
  return BigInt(`0x${lines.get(name) ?? "0"}`);
}

/** Numbers between blanks or tabs; without the line, the fallback alone. */
function numbers(value: string | undefined, fallback?: number): readonly number[] {
  if (value === undefined) return fallback === undefined ? [] : [fallback];
  return value === "" ? [] : value.split(/\s+/).map(Number);
}

function ids(lines: Lines, name: string): IdSet {
  const [real = 0, effective = 0, saved = 0, fs = 0] = numbers(lines.get(name));
  return { real, effective, saved, fs };
}

function memory(lines: Lines): TaskMemory {
  const kb = (name: string): number | undefined =>
    optional(lines, name, (value) => Number.parseInt(value, 10));
  return {
    vmPeak: kb("VmPeak"),
    vmSize: kb("VmSize"),
    vmLck: kb("VmLck"),
    vmPin: kb("VmPin"),
    vmHwm: kb("VmHWM"),
    vmRss: kb("VmRSS"),
    rssAnon: kb("RssAnon"),
    rssFile: kb("RssFile"),
    rssShmem: kb("RssShmem"),
    vmData: kb("VmData"),
    vmStk: kb("VmStk"),
    vmExe: kb("VmExe"),
    vmLib: kb("VmLib"),
    vmPte: kb("VmPTE"),
    vmSwap: kb("VmSwap"),
    hugetlbPages: kb("HugetlbPages"),
  };
}
