// Letting a restored tree go: the work area is unmapped as the very last system call of each task, caught at its exit, and
// there the threads get their own registers, extended state and signal masks. Then all are detached together: first nobody
// dies with the engine any more, from which moment on its end would be a release, too (the kernel lets tracees go then). That it is
// one moment for several tasks is the seed's part (guard.ts). In a pid namespace of its own the tree lives or dies with its init,
// whose turn is the last.

import { registersOf, extendedStateOf } from "../objects/task/cpu-state.ts";
import { SIGSET_FULL, SIGSTOP } from "../sys/abi/signal.ts";
import { sendSignal } from "../sys/process.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { ERESTART_RESTARTBLOCK } from "../sys/errno.ts";
import { beginRest } from "../objects/task/rest-of-wait.ts";
import { undecidedRegisters } from "../tracee/arch/x86_64/registers.ts";
import { finishCaughtCall, label, startCaughtCall } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import type { Growth } from "./growth.ts";
import { guardTree } from "./guard.ts";
import { waitUntilStopped } from "./let-go.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";
import { isFirst } from "./sharing.ts";
import { endProcess } from "../tracee/seed.ts";
import { TASK_LEADERLESS, TASK_STOPPED } from "../images/check-task.ts";
import { endLeaders, livingThreads, speakerOf } from "./ended-leaders.ts";

/** Releases all tasks of a tree. */
export function release(
  plan: RestorePlan,
  growth: Growth,
  options: { readonly leaveStopped: boolean },
): void {
  const tasks = [...plan.tasks.values()];
  // Of the tasks in one address space one unmaps the ground that all stand on: the others do not come back to it.
  endLeaders(plan, growth);
  const waiting = beginWaits(plan, growth);
  const leaders = tasks
    .filter(({ pid, sharing }) => isFirst(pid, sharing.memoryOf))
    .map((task) => speakerOf(growth, task));
  leaders.forEach((leader) => startUnmapping(plan, leader));
  leaders.forEach((leader) => finishCaughtCall(leader));
  for (const task of tasks) setStates(growth, task, waiting);
  readyInit(plan, growth);
  for (const task of tasks) stopIfWanted(growth, task, options);
  const threads = tasks.flatMap((task) =>
    livingThreads(task).map(({ tid }) => growth.tracees.get(tid) as Tracee),
  );
  guardTree(plan, growth);
  for (const thread of threads.toReversed()) thread.setOptions(0);
  growth.init?.setOptions(0);
  if (growth.seed !== undefined) endProcess(growth.seed.tid);
  for (const thread of threads) thread.detach();
  for (const task of tasks)
    if (staysStopped(task, options)) waitUntilStopped(speakerOf(growth, task).tid);
  growth.init?.detach();
}

function startUnmapping(plan: RestorePlan, leader: Tracee): void {
  const regs = leader.registers();
  regs
    .set("rip", plan.area.code + label("single"))
    .set("rax", SYSCALLS.munmap.nr)
    .set("orig_rax", -1n);
  regs.set("rdi", plan.area.address).set("rsi", plan.area.size);
  leader.setRegisters(regs);
  leader.setSignalMask(SIGSET_FULL);
  startCaughtCall(leader);
}

/** Threads whose waits the kernel can go on with. */
function beginWaits(plan: RestorePlan, growth: Growth): ReadonlySet<number> {
  const threads = [...plan.tasks.values()].flatMap((task) => livingThreads(task));
  const { code, programs: scratch } = plan.area;
  return new Set(
    threads
      .filter(({ tid, core }) =>
        beginRest(growth.tracees.get(tid) as Tracee, core, { code, scratch }),
      )
      .map(({ tid }) => tid),
  );
}

function setStates(growth: Growth, task: TaskPlan, waiting: ReadonlySet<number>): void {
  for (const { tid, core } of livingThreads(task)) {
    const tracee = growth.tracees.get(tid) as Tracee;
    tracee.setExtendedState(extendedStateOf(core, tracee.extendedState()));
    const { interrupted_with: noted, dispatch } = core.thread_core?.reprise ?? {};
    const error = waiting.has(tid) ? ERESTART_RESTARTBLOCK : noted;
    if (dispatch !== undefined) tracee.setSyscallUserDispatch(dispatch);
    tracee.setRegisters(undecidedRegisters(registersOf(core), error));
    tracee.setSignalMask(
      (tid === task.pid ? task.core.tc?.blk_sigset : core.thread_core?.blk_sigset) ?? 0n,
    );
  }
}

/** The signal waits until the task is detached. */
function stopIfWanted(
  growth: Growth,
  task: TaskPlan,
  options: { readonly leaveStopped: boolean },
): void {
  if (!staysStopped(task, options)) return;
  const leader = growth.tracees.get(task.pid) as Tracee;
  sendSignal(leader.tid, wasStopped(task) ? (task.core.tc?.stop_signo ?? SIGSTOP) : SIGSTOP);
}

function staysStopped(task: TaskPlan, options: { readonly leaveStopped: boolean }): boolean {
  return options.leaveStopped || wasStopped(task);
}

function wasStopped({ core: { tc } }: TaskPlan): boolean {
  const isLeaderless = tc?.task_state === TASK_LEADERLESS;
  return tc?.task_state === TASK_STOPPED || (isLeaderless && (tc.stop_signo ?? 0) !== 0);
}

function readyInit(plan: RestorePlan, growth: Growth): void {
  if (growth.init === undefined) return;
  const regs = growth.init.registers();
  regs
    .set("rip", plan.area.code + label("init"))
    .set("r12", plan.tree.root.pid)
    .set("rsp", plan.area.programs)
    .set("orig_rax", -1n);
  growth.init.setRegisters(regs);
  growth.init.setSignalMask(0n);
}
