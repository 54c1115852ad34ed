// Growing the tree: every task makes its children (and siblings), in the sessions and groups of the plan. New processes and
// threads are traced from their first instant (CLONE_PTRACE), with the options of their creator.

import * as sched from "../sys/abi/sched.ts";
import { SIGCHLD } from "../sys/abi/signal.ts";
import { Program } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import {
  controllingTerminals,
  makeControllingTerminal,
} from "../objects/files/controlling-terminal.ts";
import { adopt, outerChildren } from "./adopt.ts";
import { addClone } from "../tracee/clone.ts";
import { isMadeAlone, joinOuterGroup, makeAlone, mountLate, rootDepth } from "./grow-nested.ts";
import { taskJob, type Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import { isEarly } from "./inherit-memory.ts";
import { addEarlyMemory } from "./memory-steps.ts";
import type { OpenedFiles } from "./open-files.ts";
import type { RestorePlan } from "./plan.ts";
import type { TreeNode } from "./plan-tree.ts";
import { endHelper } from "./tree-ends.ts";

/** Makes all other processes, level by level, each level at the same time. */
export function growTree(plan: RestorePlan, growth: Growth, files: OpenedFiles): void {
  let level: readonly TreeNode[] = [plan.tree.root];
  while (level.length > 0) {
    const busy = level.filter(needsStep);
    const [apart, together] = partition(busy, (node) =>
      [...node.early, ...node.late].some((child) => isMadeAlone(plan, child)),
    );
    runPrograms(
      together.map((node) => {
        const program = branchProgram(plan, node, { growth, files });
        return taskJob(plan, growth, { pid: node.pid, program });
      }),
    );
    for (const node of apart) branchOneByOne(plan, node, { growth, files });
    const next = level.flatMap((node) => [...node.early, ...node.late]);
    const outer = outerNumbers(plan, growth, next);
    for (const { pid } of next)
      if (!growth.tracees.has(pid))
        growth.tracees.set(pid, adopt(growth.counters, { pid, outer: outer(pid) }));
    if (plan.pids.isNested) for (const child of next) joinOuterGroup(plan, growth, child);
    level = next;
  }
  mountLate(plan, growth);
  for (const { helper, orphan } of plan.tree.orphanages) leaveOrphan(plan, growth, helper, orphan);
}

function partition<T>(all: readonly T[], test: (one: T) => boolean): [T[], T[]] {
  return [all.filter(test), all.filter((one) => !test(one))];
}

/** The orphan's parent adopts it: that one is a subreaper for the moment, as nobody else in the tree is one yet. */
function leaveOrphan(plan: RestorePlan, growth: Growth, helper: TreeNode, orphan: TreeNode): void {
  const parent = growth.tracees.get(orphan.ppid) as Tracee;
  const adopts = (subreaper: number): void => {
    const program = new Program();
    program.call("prctl", [sched.PR_SET_CHILD_SUBREAPER, subreaper, 0, 0, 0], {
      label: `let pid ${orphan.ppid} adopt pid ${orphan.pid}`,
    });
    runIn(plan, parent, program);
  };
  adopts(1);
  endHelper(plan, growth, helper, growth.tracees.get(helper.pid) as Tracee);
  growth.tracees.delete(helper.pid);
  adopts(0);
}

/** Numbers here of new tasks: each parent's children are looked through once. */
function outerNumbers(
  plan: RestorePlan,
  growth: Growth,
  nodes: readonly TreeNode[],
): (pid: number) => number | undefined {
  if (!plan.hasInnerPids) return (pid) => pid;
  const depth = rootDepth(plan, growth);
  const parents = new Set(nodes.map(({ ppid, viaOrphanage }) => viaOrphanage?.pid ?? ppid));
  const found = new Map(
    [...parents].flatMap((ppid) => {
      const parent = growth.tracees.get(ppid);
      return parent === undefined ? [] : [...outerChildren(parent.leader, depth)];
    }),
  );
  return (pid) => found.get(pid);
}

function needsStep(node: TreeNode): boolean {
  return node.early.length + node.late.length > 0 || node.leadsSession || node.leadsGroup;
}

/** What a task does to its part of the tree: the memory that its children inherit, old session's children, own session, the other children. */
function branchProgram(plan: RestorePlan, node: TreeNode, around: BranchSurroundings): Program {
  const program = new Program();
  addOpening(program, plan, node, around);
  const make = (child: TreeNode): void => {
    const { numbers, isFirst } = plan.pids.birth(child.pid);
    addClone(program, {
      pid: numbers.toReversed(),
      flags: branchFlags(plan, child) | (isFirst ? sched.CLONE_NEWPID : 0),
      what: `process ${child.pid}`,
      exitSignal: exitSignalOf(plan, child),
    });
  };
  node.early.forEach(make);
  addLeading(program, plan, node, around);
  node.late.forEach(make);
  return program;
}

/** The same where the kernel chooses numbers of children, or these are born elsewhere. */
function branchOneByOne(plan: RestorePlan, node: TreeNode, around: BranchSurroundings): void {
  const tracee = around.growth.tracees.get(node.pid) as Tracee;
  const step = (add: typeof addOpening): void => {
    const program = new Program();
    add(program, plan, node, around);
    if (program.length > 0) runIn(plan, tracee, program);
  };
  const make = (child: TreeNode): void =>
    makeAlone(plan, around.growth, {
      node,
      child,
      flags: branchFlags(plan, child),
      exitSignal: exitSignalOf(plan, child),
    });
  step(addOpening);
  node.early.forEach(make);
  step(addLeading);
  node.late.forEach(make);
}

interface BranchSurroundings {
  readonly growth: Growth;
  readonly files: OpenedFiles;
}

/** What a task does before it makes others: the memory that they inherit. */
function addOpening(
  program: Program,
  plan: RestorePlan,
  node: TreeNode,
  { growth, files }: BranchSurroundings,
): void {
  const task = plan.tasks.get(node.pid);
  if (task !== undefined && isEarly(task.memory, node)) {
    const around = { files, images: growth.images, imagesDir: plan.set.reader.dir };
    addEarlyMemory(program, task, around);
  }
}

/** Its own session or group. */
function addLeading(
  program: Program,
  plan: RestorePlan,
  node: TreeNode,
  { files }: BranchSurroundings,
): void {
  if (node.leadsSession) {
    program.call("setsid", [], { label: `make session ${node.pid}` });
    const terminal = controllingTerminals(plan.set, {
      orphans: plan.options.orphanMaster !== undefined,
    }).get(node.pid);
    if (terminal !== undefined)
      makeControllingTerminal(program, files.fd(terminal.fileId), { end: terminal.end });
  } else if (node.leadsGroup)
    program.call("setpgid", [0, 0], { label: `make process group ${node.pid}` });
}

function exitSignalOf(plan: RestorePlan, { pid }: TreeNode): number {
  return plan.tasks.get(pid)?.core.tc?.reprise?.child_exit_signal ?? SIGCHLD;
}

function branchFlags(plan: RestorePlan, child: TreeNode): number {
  const sibling = child.viaSibling ? sched.CLONE_PARENT : 0;
  return sibling | (plan.tasks.get(child.pid)?.sharing.cloneFlags ?? 0);
}
