// First threads that have ended while others of their process live: nobody can be made without one, so each makes its process like any
// other, and ends when all the rest is there (exit(2), which ends a thread alone). It is let go of before: a tracer would be told of the
// end of its process in the parent's stead. From then on the oldest of the others speaks for the process.

import { RepriseError } from "../errors.ts";
import { readThreadStatIfAlive } from "../proc/stat.ts";
import { SIGSET_FULL } from "../sys/abi/signal.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { label } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import type { Growth } from "./growth.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Ends them, while the ground is there on which they make their last call. */
export function endLeaders(plan: RestorePlan, growth: Growth): void {
  const tasks = [...plan.tasks.values()].filter(({ leaderExit }) => leaderExit !== undefined);
  for (const { pid, leaderExit = 0 } of tasks) {
    const tracee = growth.tracees.get(pid) as Tracee;
    const regs = tracee.registers();
    regs
      .set("rip", plan.area.code + label("single"))
      .set("rax", SYSCALLS.exit.nr)
      .set("rdi", leaderExit >> 8)
      .set("orig_rax", -1n);
    tracee.setRegisters(regs);
    tracee.setSignalMask(SIGSET_FULL);
    tracee.detach();
  }
  for (const { pid } of tasks) awaitEnd((growth.tracees.get(pid) as Tracee).tid);
}

/** The threads of a task that live when it is let go. */
export function livingThreads({ threads, leaderExit }: TaskPlan): TaskPlan["threads"] {
  return leaderExit === undefined ? threads : threads.slice(1);
}

/** The thread that speaks for a task then. */
export function speakerOf(growth: Growth, task: TaskPlan): Tracee {
  return growth.tracees.get(livingThreads(task)[0]?.tid ?? task.pid) as Tracee;
}

const PATIENCE_MS = 5000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

function awaitEnd(pid: number): void {
  const end = performance.now() + PATIENCE_MS;
  for (;;) {
    const state = readThreadStatIfAlive(pid, pid)?.state;
    if (state === "Z") return;
    if (state === undefined || performance.now() > end)
      throw new RepriseError(
        "TASK_DIED",
        `cannot restore pid ${pid}: its first thread, which is to end, ${state === undefined ? "is gone" : "does not end"}`,
        { pid },
      );
    Atomics.wait(sleeper, 0, 0, 1);
  }
}
