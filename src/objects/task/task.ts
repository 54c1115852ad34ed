// A frozen task as the rooms see it at dump.

import type { RseqEntry } from "../../images/schema/messages.generated.ts";
import type { TaskStat } from "../../proc/stat.ts";
import type { BriefStatus, TaskStatus } from "../../proc/status.ts";
import type { StoppedThread } from "../../tracee/injection.ts";

/** A stopped thread of a frozen task. */
export interface FrozenThread {
  /** Thread id for the engine, and in the root task's pid namespace (the number in the images). */
  readonly tid: number;
  readonly innerTid: number;
  readonly stopped: StoppedThread;
  readonly status: BriefStatus;
  /** Its registration for restartable sequences. */
  readonly rseq: RseqEntry;
}

/** A frozen process, or a zombie (which has no threads). */
export interface FrozenTask {
  /**
   * Process id for the engine, and in the root task's pid namespace (the number in the images). Where the first thread has ended while
   * others live, the former is the number of one of these: it has what the process has, and /proc, ptrace, kcmp and kill take it as well.
   */
  readonly pid: number;
  readonly innerPid: number;
  readonly parent: FrozenTask | undefined;
  readonly state: "alive" | "stopped" | "zombie";
  /** The job control signal of a stopped task, else 0. */
  readonly stopSignal: number;
  readonly stat: TaskStat;
  readonly status: TaskStatus;
  /** The leader first, or who stands for it. */
  readonly threads: readonly FrozenThread[];
  /** Its first thread, where that has ended while others live. */
  readonly endedLeader?: EndedLeader;
}

/** The first thread of a process, which has ended: it keeps its number as long as others live. */
export interface EndedLeader {
  /** The number of the process. */
  readonly pid: number;
  /** As wait(2) tells it. */
  readonly exitCode: number;
}

/** The number of a process for the engine, by which others know it. */
export function processNumber({
  pid,
  endedLeader,
}: Pick<FrozenTask, "pid" | "endedLeader">): number {
  return endedLeader?.pid ?? pid;
}

/** Whether a thread is the first one of its process, and does not only stand for it. */
export function isFirst({ pid, endedLeader }: FrozenTask, { tid }: FrozenThread): boolean {
  return tid === pid && endedLeader === undefined;
}
