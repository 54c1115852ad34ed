// A frozen task as the rooms see it at dump.

import type { RseqEntry } from "../../images/schema/messages.generated.ts";
import type { TaskStat } from "../../proc/stat.ts";
import type { TaskStatus } from "../../proc/status.ts";
import type { StoppedThread } from "../../tracee/injection.ts";

/** A stopped thread of a frozen task. */
export interface FrozenThread {
  /** Thread id for the engine, and in the root task's pid namespace (the number in the images). */
  readonly tid: number;
  readonly innerTid: number;
  readonly stopped: StoppedThread;
  readonly status: TaskStatus;
  /** Its registration for restartable sequences. */
  readonly rseq: RseqEntry;
}

/** A frozen process, or a zombie (which has no threads). */
export interface FrozenTask {
  /** Process id for the engine, and in the root task's pid namespace (the number in the images). */
  readonly pid: number;
  readonly innerPid: number;
  readonly parent: FrozenTask | undefined;
  readonly state: "alive" | "stopped" | "zombie";
  /** The job control signal of a stopped task, else 0. */
  readonly stopSignal: number;
  readonly stat: TaskStat;
  readonly status: TaskStatus;
  /** The leader first. */
  readonly threads: readonly FrozenThread[];
}
