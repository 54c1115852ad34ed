// Putting the tasks of a restored tree into their cgroups. The root enters first, before it has memory, so that all it makes is
// born and charged there; the others move where they were elsewhere.

import type { CgroupRestore } from "../objects/cgroups/restore.ts";
import { goBack, openOwn } from "../objects/namespaces/nested.ts";
import { F_DUPFD } from "../sys/abi/fcntl.ts";
import { CLONE_NEWCGROUP } from "../sys/abi/sched.ts";
import { Program } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { firstPoolFd, job, type Growth } from "./growth.ts";
import type { RestorePlan } from "./plan.ts";

/** Moves the root task, and the init above it. */
export function enterCgroups(plan: RestorePlan, growth: Growth, cgroups: CgroupRestore): void {
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const isAtNamespaceRoot = cgroups.enterNamespaceRoot(root.tid);
  if (!isAtNamespaceRoot) cgroups.enterRoot(root.tid);
  if (plan.namespaces.made("cgroup") !== undefined) {
    // The cgroups of this moment become the root of the namespace (cgroup_namespaces(7)).
    const program = new Program();
    program.call("unshare", [CLONE_NEWCGROUP], { label: "make a cgroup namespace" });
    runPrograms([job(plan, root, program)]);
  }
  const isElsewhere = makeNested(plan, growth, cgroups);
  if (isAtNamespaceRoot || isElsewhere) cgroups.enterRoot(root.tid);
  if (growth.init !== undefined) cgroups.enterRoot(growth.init.tid);
}

/** The cgroup namespaces of other tasks, each made while the root task is at its root; gives whether it was moved. */
function makeNested(plan: RestorePlan, growth: Growth, cgroups: CgroupRestore): boolean {
  const nested = plan.namespaces.all.filter(
    ({ kind, role, origin }) => kind === "cgroup" && role === "nested" && origin.how === "new",
  );
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  for (const namespace of nested) {
    cgroups.enterNested(root.tid, namespace.id);
    const program = new Program();
    const own = openOwn(program, "cgroup");
    const label = `make cgroup namespace ${namespace.id}`;
    program.call("unshare", [CLONE_NEWCGROUP], { label });
    const made = openOwn(program, "cgroup");
    const kept = program.call("fcntl", [made, F_DUPFD, firstPoolFd(plan)], { label });
    program.call("close", [made]);
    goBack(program, "cgroup", own);
    const [result] = runPrograms([job(plan, root, program)]);
    growth.namespaceFds.set(namespace, result?.value(kept) ?? -1);
  }
  return nested.length > 0;
}

/** Moves the other tasks, before they have memory. */
export function spreadTasks(plan: RestorePlan, growth: Growth, cgroups: CgroupRestore): void {
  const born = setOf(plan, plan.tree.root.pid);
  for (const { pid } of plan.tasks.values()) {
    if (pid === plan.tree.root.pid) continue;
    const id = growth.outerPid(pid);
    cgroups.enter({ id, leader: id, set: setOf(plan, pid), born });
  }
}

/** Moves the threads that were in other cgroups than their process. */
export function spreadThreads(plan: RestorePlan, growth: Growth, cgroups: CgroupRestore): void {
  for (const { pid, threads } of plan.tasks.values()) {
    const born = setOf(plan, pid);
    for (const { tid, core } of threads.slice(1)) {
      const id = (growth.tracees.get(tid) as Tracee).tid;
      cgroups.enter({ id, leader: growth.outerPid(pid), set: core.thread_core?.cg_set, born });
    }
  }
}

/** Cgroup set of a process: its leading thread's; old images have it with the process. */
function setOf(plan: RestorePlan, pid: number): number | undefined {
  const core = plan.tasks.get(pid)?.core;
  return core?.thread_core?.cg_set ?? core?.tc?.cg_set;
}
