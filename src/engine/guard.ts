// What is to be done when the engine is killed in the middle of a restore, done by the seed, which nobody needs any more: it watches
// the engine, and goes on when that ends. Until then nothing of it happens.

import { SIGKILL } from "../sys/abi/signal.ts";
import { AT_FDCWD } from "../sys/abi/fcntl.ts";
import { POLLIN } from "../sys/abi/poll.ts";
import { PR_SET_PDEATHSIG } from "../sys/abi/sched.ts";
import { pathArgument } from "../objects/files/path.ts";
import { Program, type Argument } from "../tracee/program.ts";
import { runUnattended } from "../tracee/run.ts";
import { RESTORE_OPTIONS } from "../tracee/seed.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { job, type Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import type { RestorePlan } from "./plan.ts";

/**
 * Makes one moment of the release of several tasks. Each of them dies with the engine until its options are taken away, one after the
 * other; an engine that is killed in between would leave some of them, which the seed kills then. That the seed is killed is the
 * moment. A tree in a new pid namespace lives and dies with its init, and one without a seed has no guard.
 */
export function guardTree(plan: RestorePlan, growth: Growth): void {
  const { seed } = growth;
  if (seed === undefined || plan.tasks.size < 2 || plan.namespaces.made("pid") !== undefined)
    return;
  const pids = [...plan.tasks.values()].map(({ pid }) => growth.outerPid(pid));
  guard(plan, seed, {
    ends: [process.pid],
    act: (program) => {
      for (const pid of pids) program.call("kill", [pid, SIGKILL], { mayFail: true });
    },
  });
}

/**
 * Has names removed that the root task makes for a moment, when that has died with the engine.
 *
 * @returns ends the watch
 */
export function guardNames(
  plan: RestorePlan,
  growth: Growth,
  names: readonly string[],
): () => void {
  const { seed } = growth;
  if (seed === undefined || names.length === 0) return () => undefined;
  guard(plan, seed, {
    ends: [process.pid, growth.outerPid(plan.tree.root.pid)],
    act: (program) => {
      for (const name of names) {
        const args = [AT_FDCWD, pathArgument(program, name), 0];
        program.call("unlinkat", args, { mayFail: true });
      }
    },
  });
  return () => takeBack(seed);
}

interface Watch {
  /** Processes that are waited for, one after the other. */
  readonly ends: readonly number[];
  readonly act: (program: Program) => void;
}

function guard(plan: RestorePlan, seed: Tracee, { ends, act }: Watch): void {
  const watching = new Program();
  const pidfds = ends.map((pid) =>
    watching.call("pidfd_open", [pid, 0], { label: `watch process ${pid}` }),
  );
  // It must outlive the engine.
  watching.call("prctl", [PR_SET_PDEATHSIG, 0, 0, 0, 0], { label: "watch the engine" });
  const opened = runIn(plan, seed, watching);
  const program = new Program();
  for (const pidfd of pidfds)
    program.call("ppoll", [pollfd(program, opened.value(pidfd)), 1, 0, 0, 0], { expect: 1 });
  act(program);
  program.call("exit_group", [0]);
  runUnattended(job(plan, seed, program));
}

/** struct pollfd. */
function pollfd(program: Program, fd: number): Argument {
  const bytes = Buffer.alloc(8);
  bytes.writeInt32LE(fd, 0);
  bytes.writeInt16LE(POLLIN, 4);
  return program.data(bytes);
}

/** Stops the seed in its watch; whatever it runs next, it begins from there. */
function takeBack(seed: Tracee): void {
  seed.interrupt();
  if (seed.waitInterrupted() !== undefined) seed.setOptions(RESTORE_OPTIONS);
}
