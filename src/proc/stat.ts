// /proc/PID/stat and /proc/PID/task/TID/stat: one line of numbers; see proc_pid_stat(5) and do_task_stat
// in fs/proc/array.c. The second field is the name in brackets, which may hold blanks and brackets itself,
// so the last closing bracket ends it. Addresses and the exit code are 0 for readers without ptrace access.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";
import { RepriseError } from "../errors.ts";

/** Every field of the stat line, in its order. Times are in clock ticks, unless said otherwise. */
export interface TaskStat {
  readonly pid: number;
  readonly comm: string;
  /** One letter: R, S, D, T (stopped), t (tracing stop), Z (zombie), X (dead), I (idle), P. */
  readonly state: string;
  readonly ppid: number;
  readonly pgrp: number;
  readonly session: number;
  /** Controlling terminal as an encoded device number; 0 for none. */
  readonly ttyNr: number;
  /** Foreground process group of that terminal; -1 for none. */
  readonly tpgid: number;
  /** The kernel's PF_ flags. */
  readonly flags: number;
  readonly minflt: number;
  readonly cminflt: number;
  readonly majflt: number;
  readonly cmajflt: number;
  readonly utime: number;
  readonly stime: number;
  readonly cutime: number;
  readonly cstime: number;
  readonly priority: number;
  readonly nice: number;
  readonly numThreads: number;
  readonly itrealvalue: number;
  /** Start after boot. */
  readonly starttime: number;
  /** Bytes. */
  readonly vsize: number;
  /** Pages. */
  readonly rss: number;
  /** Bytes; 2^64 - 1 for no limit. */
  readonly rsslim: bigint;
  readonly startCode: number;
  readonly endCode: number;
  readonly startStack: number;
  readonly kstkesp: number;
  readonly kstkeip: number;
  /** The four signal masks hold the first 31 signals alone; status has them whole. */
  readonly signal: number;
  readonly blocked: number;
  readonly sigignore: number;
  readonly sigcatch: number;
  readonly wchan: number;
  readonly nswap: number;
  readonly cnswap: number;
  readonly exitSignal: number;
  readonly processor: number;
  readonly rtPriority: number;
  /** Scheduling policy (SCHED_…). */
  readonly policy: number;
  readonly delayacctBlkioTicks: number;
  readonly guestTime: number;
  readonly cguestTime: number;
  readonly startData: number;
  readonly endData: number;
  readonly startBrk: number;
  readonly argStart: number;
  readonly argEnd: number;
  readonly envStart: number;
  readonly envEnd: number;
  /** As wait(2) gives it. */
  readonly exitCode: number;
}

/** Reads the stat line of a process. Throws NO_SUCH_PROCESS or SYSCALL. */
export function readStat(pid: number): TaskStat {
  return parseStat(readShortProcText(pid, "stat"));
}

/** Like readStat; undefined when the process is gone. */
export function readStatIfAlive(pid: number): TaskStat | undefined {
  return undefinedIfGone(() => readStat(pid));
}

/** Reads the stat line of one thread (times, state, policy are the thread's own). Throws as readStat does. */
export function readThreadStat(pid: number, tid: number): TaskStat {
  return parseStat(readShortProcText(pid, `task/${tid}/stat`));
}

/** Like readThreadStat; undefined when the thread is gone. */
export function readThreadStatIfAlive(pid: number, tid: number): TaskStat | undefined {
  return undefinedIfGone(() => readThreadStat(pid, tid));
}

/** What a thread is about: its state, one letter, and its PF_ flags; undefined when it is gone. Throws as readStat does. */
export function readThreadStateIfAlive(
  pid: number,
  tid: number,
): Pick<TaskStat, "state" | "flags"> | undefined {
  const text = undefinedIfGone(() => readShortProcText(pid, `task/${tid}/stat`));
  if (text === undefined) return undefined;
  // Of thousands of threads: state is the first field behind the name, and the flags are six further.
  const close = text.lastIndexOf(")");
  const fields = text.slice(close + 2, close + 2 + MOST_TO_FLAGS).split(" ", 7);
  return { state: fields[0] ?? "", flags: Number(fields[6]) };
}

/** A letter, and six numbers of 32 bits with their signs and blanks. */
const MOST_TO_FLAGS = 96;

/** Parses a stat line; throws INTERNAL when it is not one. */
export function parseStat(text: string): TaskStat {
  const open = text.indexOf("(");
  const close = text.lastIndexOf(")");
  const fields = text.slice(close + 2).split(" ");
  if (open < 0 || close < open || fields.length < 50) {
    throw new RepriseError("INTERNAL", `cannot parse a stat line: ${JSON.stringify(text)}`, {
      hint: "This kernel writes /proc/PID/stat in a form that Reprise does not know. Please report it.",
    });
  }
  // Fields are counted from 3 on in the manual page; `state` is the first behind the name.
  const at = (field: number): number => Number(fields[field - 3]);
  return {
    pid: Number.parseInt(text, 10),
    comm: text.slice(open + 1, close),
    state: fields[0] ?? "",
    ppid: at(4),
    pgrp: at(5),
    session: at(6),
    ttyNr: at(7),
    tpgid: at(8),
    flags: at(9),
    minflt: at(10),
    cminflt: at(11),
    majflt: at(12),
    cmajflt: at(13),
    utime: at(14),
    stime: at(15),
    cutime: at(16),
    cstime: at(17),
    priority: at(18),
    nice: at(19),
    numThreads: at(20),
    itrealvalue: at(21),
    starttime: at(22),
    vsize: at(23),
    rss: at(24),
    rsslim: BigInt(fields[22] ?? "0"),
    startCode: at(26),
    endCode: at(27),
    startStack: at(28),
    kstkesp: at(29),
    kstkeip: at(30),
    signal: at(31),
    blocked: at(32),
    sigignore: at(33),
    sigcatch: at(34),
    wchan: at(35),
    nswap: at(36),
    cnswap: at(37),
    exitSignal: at(38),
    processor: at(39),
    rtPriority: at(40),
    policy: at(41),
    delayacctBlkioTicks: at(42),
    guestTime: at(43),
    cguestTime: at(44),
    startData: at(45),
    endData: at(46),
    startBrk: at(47),
    argStart: at(48),
    argEnd: at(49),
    envStart: at(50),
    envEnd: at(51),
    exitCode: at(52),
  };
}
