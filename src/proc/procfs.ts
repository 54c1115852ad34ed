// How files below /proc are read: at once, synchronously, and with one rule for processes that go away.
// The kernel answers ENOENT when the directory of a task is gone and ESRCH when the task died after the
// open; ENOENT also means that this kernel has no such file, so the directory decides which one it was.
// See proc(5). Text is taken as UTF-8: names that are not valid UTF-8 come out with U+FFFD.
import { existsSync, readdirSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { errnoName } from "../sys/errno.ts";
import {
  readBytes,
  readLink,
  readShortText,
  readStat,
  readText,
  type PlainStat,
} from "../sys/files.ts";

/** Something below /proc/PID: the process and the rest of the path, e.g. `task/12/stat`. */
export type ProcName = string;

/** Path of a file below /proc/PID. */
export function procPath(pid: number, name: ProcName): string {
  return `/proc/${pid}/${name}`;
}

/**
 * Reads /proc/PID/NAME as text.
 * @throws RepriseError NO_SUCH_PROCESS, NOT_PERMITTED, KERNEL_FEATURE (no such file on this kernel) or SYSCALL
 */
export function readProcText(pid: number, name: ProcName): string {
  const text = readText(procPath(pid, name));
  if (typeof text === "string") return text;
  throw explain({ pid, name, verb: "read", call: "read" }, text);
}

/** Like readProcText, for what is one record or has short ones: see readShortText. */
export function readShortProcText(pid: number, name: ProcName): string {
  const text = readShortText(procPath(pid, name));
  if (typeof text === "string") return text;
  throw explain({ pid, name, verb: "read", call: "read" }, text);
}

/** Like readProcText, but undefined when the process is gone. */
export function readProcTextIfAlive(pid: number, name: ProcName): string | undefined {
  return undefinedIfGone(() => readProcText(pid, name));
}

/** Like readProcText, but undefined when this kernel has no such file; a dead process still throws. */
export function readProcTextIfSupported(pid: number, name: ProcName): string | undefined {
  return undefinedIfUnsupported(() => readProcText(pid, name));
}

/** Like readShortProcText, but undefined when this kernel has no such file; a dead process still throws. */
export function readShortProcTextIfSupported(pid: number, name: ProcName): string | undefined {
  return undefinedIfUnsupported(() => readShortProcText(pid, name));
}

/** Reads /proc/PID/NAME as bytes. Throws as readProcText does. */
export function readProcBytes(pid: number, name: ProcName): Uint8Array {
  const bytes = readBytes(procPath(pid, name));
  if (typeof bytes !== "number") return bytes;
  throw explain({ pid, name, verb: "read", call: "read" }, bytes);
}

/** Entries of the directory /proc/PID/NAME, in the kernel's order. Throws as readProcText does. */
export function readProcDir(pid: number, name: ProcName): string[] {
  return attempt({ pid, name, verb: "list", call: "getdents64" }, () =>
    readdirSync(procPath(pid, name)),
  );
}

/** Target of the symbolic link /proc/PID/NAME. Throws as readProcText does. */
export function readProcLink(pid: number, name: ProcName): string {
  const target = readLink(procPath(pid, name));
  if (typeof target === "string") return target;
  throw explain({ pid, name, verb: "read link", call: "readlink" }, target);
}

/** Stat of what /proc/PID/NAME leads to. Throws as readProcText does. */
export function readProcStat(pid: number, name: ProcName): PlainStat {
  const stat = readStat(procPath(pid, name));
  if (typeof stat !== "number") return stat;
  throw explain({ pid, name, verb: "examine", call: "stat" }, stat);
}

/** Runs a reader; undefined instead of NO_SUCH_PROCESS. */
export function undefinedIfGone<T>(read: () => T): T | undefined {
  return undefinedIfCode("NO_SUCH_PROCESS", read);
}

/** Runs a reader; undefined instead of KERNEL_FEATURE (the file or link is not there). */
export function undefinedIfUnsupported<T>(read: () => T): T | undefined {
  return undefinedIfCode("KERNEL_FEATURE", read);
}

/** What an attempt is about; for the error text. */
export interface Attempt {
  readonly pid: number;
  readonly name: ProcName;
  /** What is being done to the file: "read", "list". */
  readonly verb: string;
  /** The system call named in the error. */
  readonly call: string;
}

/** Runs a call on /proc/PID/NAME and turns the errors of node:fs into RepriseErrors. */
export function attempt<T>(what: Attempt, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    throw explain(what, cause);
  }
}

/** Error number name of an error of node:fs, e.g. "ENOENT". */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const code = (error as NodeJS.ErrnoException).code;
  return typeof code === "string" ? code : undefined;
}

function undefinedIfCode<T>(code: RepriseError["code"], read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof RepriseError && error.code === code) return undefined;
    throw error;
  }
}

/** The error for a failed call: an error of node:fs, or a negative error number. */
function explain(what: Attempt, cause: unknown): unknown {
  const errno = typeof cause === "number" ? errnoName(-cause) : errnoOf(cause);
  if (errno === undefined) return cause;
  const { pid } = what;
  const message = `cannot ${what.verb} ${procPath(pid, what.name)}: ${what.call}: ${errno}`;
  const details = {
    pid,
    syscall: what.call,
    errno,
    ...(typeof cause === "number" ? {} : { cause }),
  };
  // Every process has a stat: without it this one went, even if its number is another's already.
  if (errno === "ESRCH" || (errno === "ENOENT" && (what.name === "stat" || isGone(what)))) {
    return new RepriseError("NO_SUCH_PROCESS", message, {
      ...details,
      hint: `Process ${pid} is not there (any more). Check the pid, and that it is one of this pid namespace.`,
    });
  }
  if (errno === "ENOENT") {
    return new RepriseError("KERNEL_FEATURE", message, {
      ...details,
      hint: "The process lives but has no such entry: it is not set, or this kernel was built without it.",
    });
  }
  if (errno === "EACCES" || errno === "EPERM") {
    return new RepriseError("NOT_PERMITTED", message, {
      ...details,
      hint: "Run as root, or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE over this process.",
    });
  }
  return new RepriseError("SYSCALL", message, details);
}

/** A thread may go while its process stays: for task/TID/… the directory of the thread counts. */
function isGone({ pid, name }: Attempt): boolean {
  if (!existsSync(`/proc/${pid}`)) return true;
  const thread = /^task\/\d+/.exec(name);
  return thread !== null && !existsSync(procPath(pid, thread[0]));
}
