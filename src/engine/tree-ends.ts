// Tasks that end before the tree is whole: helpers, who kept a session or group until its members were there, and zombies, who
// die again as they died.

import * as sched from "../sys/abi/sched.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { Program } from "../tracee/program.ts";
import { label } from "../tracee/run.ts";
import { endProcess } from "../tracee/seed.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { sendSignal } from "../sys/process.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import type { Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import type { RestorePlan } from "./plan.ts";
import type { TreeNode } from "./plan-tree.ts";

/**
 * When all tasks are in their groups: helpers end and are reaped, zombies die their deaths.
 */
export function settleTree(plan: RestorePlan, growth: Growth): void {
  // Zombies first: a helper may be all that keeps the group that a zombie still has to join.
  const zombies = plan.tree.nodes.filter(({ role }) => role === "zombie");
  const helpers = plan.tree.nodes.filter(
    ({ role, pid }) => role === "helper" && growth.tracees.has(pid),
  );
  for (const node of [...zombies, ...helpers]) {
    const tracee = growth.tracees.get(node.pid) as Tracee;
    if (node.role === "zombie") endZombie(plan, node, tracee);
    else endHelper(plan, growth, node, tracee);
    growth.tracees.delete(node.pid);
  }
}

export function endHelper(plan: RestorePlan, growth: Growth, node: TreeNode, tracee: Tracee): void {
  endProcess(tracee.tid);
  const program = new Program();
  const number = plan.pids.seenBy(node.ppid, node.pid);
  program.call("wait4", [number, 0, sched.WALL, 0], { label: `reap the helper ${node.pid}` });
  const parent = growth.tracees.get(node.ppid);
  if (parent !== undefined && node !== plan.tree.root) runIn(plan, parent, program);
}

/** A zombie ends as the first one did: by exit with its code, or by the signal that killed it. */
function endZombie(plan: RestorePlan, node: TreeNode, tracee: Tracee): void {
  const core = plan.set.tasks.get(node.pid)?.core.tc;
  const code = core?.exit_code ?? 0;
  const signal = code & 0x7f;
  const program = new Program();
  if (node.joinsGroup !== 0)
    program.call("setpgid", [0, plan.pids.seenBy(node.pid, node.joinsGroup)], { mayFail: true });
  program.call("prctl", [sched.PR_SET_NAME, program.string(core?.comm ?? ""), 0, 0, 0]);
  // No core file for a death that has been died before.
  program.call("prlimit64", [0, RLIMIT_CORE, program.data(Buffer.alloc(16)), 0]);
  runIn(plan, tracee, program);
  if (signal === 0) exitWith(plan, tracee, code >> 8);
  else dieBy(tracee, signal);
}

const RLIMIT_CORE = 4;

function exitWith(plan: RestorePlan, tracee: Tracee, code: number): void {
  const regs = tracee.registers();
  regs
    .set("rip", plan.area.code + label("single"))
    .set("rax", SYSCALLS.exit_group.nr)
    .set("rdi", code)
    .set("orig_rax", -1n);
  tracee.setRegisters(regs);
  tracee.resume();
  expectEnd(tracee);
}

function dieBy(tracee: Tracee, signal: number): void {
  tracee.setSignalMask(0n);
  sendSignal(tracee.tid, signal);
  // SIGKILL does not wait for the tracer.
  if (signal !== SIGKILL) tracee.resume();
  expectEnd(tracee);
}

function expectEnd(tracee: Tracee): void {
  for (;;) {
    const status = tracee.wait();
    if (status.kind === "exited" || status.kind === "killed") return;
    tracee.resume(status.kind === "signal" ? { signal: status.signal } : {});
  }
}
