// Who holds a number: a process id is free for clone3's set_tid only while no process, thread, process group
// or session has it, and a group or session lives on after its leader. One walk over /proc tells; it is a
// moment's view, and zombies count. Numbers are those of the pid namespace that /proc was mounted in.
import { readdirSync } from "node:fs";
import { readStatIfAlive, type TaskStat } from "./stat.ts";
import { readTasksIfAlive } from "./tasks.ts";

/** How a number is held. */
export type PidRole = "process" | "thread" | "process group" | "session";

/** One process that holds a number. */
export interface PidHolder {
  readonly role: PidRole;
  /** The process: itself, the owner of the thread, or a member of the group or session. */
  readonly pid: number;
  readonly comm: string;
}

/**
 * Says which of the numbers are taken now, and by whom: one holder a role, with the lowest pid.
 * A free number is not in the result.
 */
export function readPidUsage(numbers: Iterable<number>): Map<number, PidHolder[]> {
  const wanted = new Set(numbers);
  return wanted.size === 0 ? new Map() : findHolders(wanted, runningProcesses());
}

/** A process as far as numbers go. */
export type PidSource = Pick<TaskStat, "pid" | "comm" | "pgrp" | "session"> & {
  /** All its threads, or none when it has but one. */
  readonly tids: readonly number[];
};

/** The pure part of readPidUsage: who among the processes holds which wanted number. */
export function findHolders(
  wanted: ReadonlySet<number>,
  processes: Iterable<PidSource>,
): Map<number, PidHolder[]> {
  const usage = new Map<number, PidHolder[]>();
  const hold = (number: number, role: PidRole, by: PidSource): void => {
    if (!wanted.has(number)) return;
    const holders = usage.get(number) ?? [];
    if (holders.some((holder) => holder.role === role)) return;
    holders.push({ role, pid: by.pid, comm: by.comm });
    usage.set(number, holders);
  };
  for (const source of [...processes].sort((a, b) => a.pid - b.pid)) {
    hold(source.pid, "process", source);
    for (const tid of source.tids) if (tid !== source.pid) hold(tid, "thread", source);
    hold(source.pgrp, "process group", source);
    hold(source.session, "session", source);
  }
  return usage;
}

function* runningProcesses(): Generator<PidSource> {
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid)) continue;
    const stat = readStatIfAlive(pid);
    if (stat === undefined) continue;
    // Listing threads costs a second call for each process, so only for those that have some.
    const tids = stat.numThreads > 1 ? (readTasksIfAlive(pid) ?? []) : [];
    yield { pid, comm: stat.comm, pgrp: stat.pgrp, session: stat.session, tids };
  }
}
