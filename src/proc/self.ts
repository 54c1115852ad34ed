// What /proc tells about the running system and the reader's own namespaces, not about one process: see
// proc_sys_kernel(5), proc_uptime(5) and pid_namespaces(7).
import { readFileSync } from "node:fs";
import { errnoOf } from "./procfs.ts";
import { RepriseError } from "../errors.ts";

/** First number that no pid of this pid namespace reaches. */
export function readPidMax(): number {
  return Number(readSystemText("/proc/sys/kernel/pid_max"));
}

/** Pid given last in the reader's pid namespace; undefined without CONFIG_CHECKPOINT_RESTORE. */
export function readNsLastPid(): number | undefined {
  const text = readSystemTextIfThere("/proc/sys/kernel/ns_last_pid");
  return text === undefined ? undefined : Number(text);
}

/** Number of the last capability that this kernel knows. */
export function readCapLastCap(): number {
  return Number(readSystemText("/proc/sys/kernel/cap_last_cap"));
}

/** Id of this boot, a UUID: two equal ones are the same run of the same machine. */
export function readBootId(): string {
  bootId ??= readSystemText("/proc/sys/kernel/random/boot_id").trim();
  return bootId;
}

let bootId: string | undefined;

/** Release of the running kernel, as uname(2) has it. (Node's `os` has it, too, and takes half a millisecond to load.) */
export function readKernelRelease(): string {
  kernelRelease ??= readSystemText("/proc/sys/kernel/osrelease").trimEnd();
  return kernelRelease;
}

let kernelRelease: string | undefined;

export interface Uptime {
  /** Seconds since boot (in the reader's time namespace), to a hundredth. */
  readonly up: number;
  /** Seconds that all CPUs together were idle. */
  readonly idle: number;
}

/** How long the system runs. */
export function readUptime(): Uptime {
  return parseUptime(readSystemText("/proc/uptime"));
}

/** Parses the text of /proc/uptime. */
export function parseUptime(text: string): Uptime {
  const [up = 0, idle = 0] = text.trim().split(" ").map(Number);
  return { up, idle };
}

/** Whether a file system type is known to this kernel (as built in or loaded), from /proc/filesystems. */
export function parseFilesystems(text: string): ReadonlySet<string> {
  return new Set(
    text
      .split("\n")
      .map((line) => line.slice(line.indexOf("\t") + 1))
      .filter((name) => name !== ""),
  );
}

/** File system types that this kernel knows. */
export function readFilesystems(): ReadonlySet<string> {
  return parseFilesystems(readSystemText("/proc/filesystems"));
}

function readSystemText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    const errno = errnoOf(cause) ?? "unknown error";
    throw new RepriseError("SYSCALL", `cannot read ${path}: read: ${errno}`, {
      syscall: "read",
      errno,
      cause,
      hint: "Reprise needs /proc mounted. Check that it is, and that it is the one of this pid namespace.",
    });
  }
}

function readSystemTextIfThere(path: string): string | undefined {
  try {
    return readSystemText(path);
  } catch (error) {
    if (error instanceof RepriseError && error.errno === "ENOENT") return undefined;
    throw error;
  }
}
