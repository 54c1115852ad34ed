// One moment in which a tree of several tasks is let go. Each of them dies with the engine until its options are taken away, one
// after the other; an engine that is killed in between would leave some of them. So the seed, which nobody needs any more, watches
// the engine meanwhile, and kills all tasks when that ends. That the seed is killed is the moment: from then on the end of the
// engine is a release, too. A tree in a new pid namespace lives and dies with its init, and one without a seed has no guard.

import { SIGKILL } from "../sys/abi/signal.ts";
import { POLLIN } from "../sys/abi/poll.ts";
import { PR_SET_PDEATHSIG } from "../sys/abi/sched.ts";
import { Program } from "../tracee/program.ts";
import { runUnattended } from "../tracee/run.ts";
import { job, type Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import type { RestorePlan } from "./plan.ts";

/** Has the seed kill all tasks of a tree when the engine ends. It cannot be used for anything else then. */
export function guardTree(plan: RestorePlan, growth: Growth): void {
  const { seed } = growth;
  if (seed === undefined || plan.tasks.size < 2 || plan.namespaces.made("pid") !== undefined)
    return;
  const watching = new Program();
  const engine = watching.call("pidfd_open", [process.pid, 0], { label: "watch the engine" });
  // It must outlive the engine.
  watching.call("prctl", [PR_SET_PDEATHSIG, 0, 0, 0, 0], { label: "watch the engine" });
  const pollfd = Buffer.alloc(8);
  pollfd.writeInt32LE(runIn(plan, seed, watching).value(engine), 0);
  pollfd.writeInt16LE(POLLIN, 4);
  const program = new Program();
  program.call("ppoll", [program.data(pollfd), 1, 0, 0, 0], { expect: 1 });
  for (const { pid } of plan.tasks.values())
    program.call("kill", [growth.outerPid(pid), SIGKILL], { mayFail: true });
  program.call("exit_group", [0]);
  runUnattended(job(plan, seed, program));
}
