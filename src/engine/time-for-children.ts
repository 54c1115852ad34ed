// Time namespaces that a task has made for its children and is not in itself (unshare(2), as unshare -T --fork does). Nobody can give a
// task such a one but the task itself, by making it; others enter it by its link in /proc. The clocks are set before the first does.

import { furtherOffsets, makeTimeNamespace, setOffsets } from "../objects/namespaces/time.ts";
import type { PlannedNamespace } from "../objects/namespaces/plan.ts";
import { PR_SET_DUMPABLE } from "../sys/abi/sched.ts";
import { Program } from "../tracee/program.ts";
import type { Tracee } from "../tracee/tracee.ts";
import type { EnteredKinds, Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import { enterNested } from "./namespaces.ts";
import type { RestorePlan } from "./plan.ts";

type ForChildren = PlannedNamespace & { readonly maker: number };

/** Those of a tree, with their makers. */
export function timesForChildren({ namespaces }: Pick<RestorePlan, "namespaces">): ForChildren[] {
  return namespaces.all.filter(
    (namespace): namespace is ForChildren => namespace.maker !== undefined,
  );
}

/** Has their makers make them, when all tasks are there and none is in its namespaces yet. */
export function makeTimesForChildren(plan: RestorePlan, growth: Growth): void {
  const rootPid = growth.outerPid(plan.tree.root.pid);
  const order = [...plan.tasks.keys()];
  // A maker may live in one that another has made, who is before it in the tree.
  const wanted = timesForChildren(plan).sort(
    (a, b) => order.indexOf(a.maker) - order.indexOf(b.maker),
  );
  // The root task may be one of the makers, whose link then shows other clocks.
  const offsets = wanted.map(({ id }) => furtherOffsets({ set: plan.set, rootPid }, id));
  for (const [index, { maker: pid, owner }] of wanted.entries()) {
    const tracee = growth.tracees.get(pid) as Tracee;
    const program = new Program();
    // It belongs to the user namespace in which it is made.
    const first: readonly EnteredKinds[] =
      owner === undefined ? ["others"] : ["others", "mounts", "user"];
    for (const which of first) enterNested(program, plan, growth, { pid, which });
    growth.entered.set(pid, new Set(first));
    if (owner !== undefined)
      program.call("prctl", [PR_SET_DUMPABLE, 1, 0, 0, 0], { label: "be dumpable" });
    makeTimeNamespace(program);
    runIn(plan, tracee, program);
    const mine = offsets[index];
    if (mine !== undefined) setOffsets(tracee.tid, mine);
  }
}
