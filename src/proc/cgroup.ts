// /proc/PID/cgroup: the cgroup of a task in each hierarchy, `id:controllers:path` a line; see cgroups(7).
// Id 0 with no controllers is the unified hierarchy (v2). Paths are relative to the reader's cgroup namespace
// (a cgroup outside it begins with /..), and ` (deleted)` follows when a zombie's cgroup is gone.
import { readShortProcText, undefinedIfGone } from "./procfs.ts";

/** One hierarchy that the task is in. */
export interface CgroupEntry {
  /** 0 for v2. */
  readonly hierarchy: number;
  readonly version: 1 | 2;
  /** v1 controllers (`cpu`, `cpuacct`); a named hierarchy gives `name=systemd`; empty for v2. */
  readonly controllers: readonly string[];
  readonly path: string;
}

/** Cgroups of a process (of its leader). Throws NO_SUCH_PROCESS or SYSCALL. */
export function readCgroups(pid: number): CgroupEntry[] {
  return parseCgroups(readShortProcText(pid, "cgroup"));
}

/** Like readCgroups; undefined when the process is gone. */
export function readCgroupsIfAlive(pid: number): CgroupEntry[] | undefined {
  return undefinedIfGone(() => readCgroups(pid));
}

/** Cgroups of one thread (they differ in threaded cgroups and on v1). Throws as readCgroups does. */
export function readThreadCgroups(pid: number, tid: number): CgroupEntry[] {
  return parseCgroups(readShortProcText(pid, `task/${tid}/cgroup`));
}

/** Parses the text of a cgroup file; a path may hold colons. */
export function parseCgroups(text: string): CgroupEntry[] {
  const entries: CgroupEntry[] = [];
  for (const line of text.split("\n")) {
    const first = line.indexOf(":");
    const second = line.indexOf(":", first + 1);
    if (first < 0 || second < 0) continue;
    const hierarchy = Number(line.slice(0, first));
    const names = line.slice(first + 1, second);
    entries.push({
      hierarchy,
      version: hierarchy === 0 && names === "" ? 2 : 1,
      controllers: names === "" ? [] : names.split(","),
      path: line.slice(second + 1),
    });
  }
  return entries;
}
