// Growing the tree: the seed makes the root, every task makes its children (and siblings), in the sessions and groups of the
// plan. New processes and threads are traced from their first instant (CLONE_PTRACE), with the options of their creator.

import { closeSync, existsSync, openSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import * as sched from "../sys/abi/sched.ts";
import { AT_FDCWD, CLOSE_RANGE_MAX, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { TASK_SIZE } from "../sys/abi/mman.ts";
import { SIGCHLD, SIGKILL } from "../sys/abi/signal.ts";
import { USERFAULTFD_DEVICE } from "../sys/abi/userfault.ts";
import { Program } from "../tracee/program.ts";
import { label, runPrograms } from "../tracee/run.ts";
import { endProcess, startSeed } from "../tracee/seed.ts";
import { Tracee, type TraceCounters } from "../tracee/tracee.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { sendSignal } from "../sys/process.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import {
  controllingTerminals,
  makeControllingTerminal,
} from "../objects/files/controlling-terminal.ts";
import { payloadNames, type ImageFiles } from "./image-files.ts";
import type { PreparedMounts } from "../objects/mounts/mnt.ts";
import { copyOutsideMounts } from "../objects/mounts/outside.ts";
import {
  cloneFlags,
  enterExisting,
  openExisting,
  mapsFirst,
  settleFirst,
  type ExistingNamespaces,
} from "./namespaces.ts";
import { forgetLoginuid } from "../objects/task/attributes.ts";
import { ZOMBIE_PATIENCE_MS } from "./free-pids.ts";
import { isMadeAlone, joinOuterGroup, makeAlone, mountLate, rootDepth } from "./grow-nested.ts";
import { addClone } from "./clone.ts";
import { firstPoolFd, job, taskJob, type Growth } from "./growth.ts";
import { copyAbove, copyInherited, placeInherited, type InheritedCopies } from "./inherited.ts";
import { isEarly } from "./inherit-memory.ts";
import { addEarlyMemory } from "./memory-steps.ts";
import type { OpenedFiles } from "./open-files.ts";
import { hasUsers, type RestorePlan } from "./plan.ts";
import type { TreeNode } from "./plan-tree.ts";

/**
 * Starts the seed, has it clean its address space, and makes the root task. Where the root is to be a child of the engine's parent,
 * there is no seed: it would be one, too, and the parent would have to wait for it. The engine makes the first task itself then.
 */
export function startRoot(plan: RestorePlan, counters: TraceCounters): Growth {
  const existing = openExisting(plan);
  // Not close-on-exec: the seed inherits it.
  const path = Buffer.from(`${plan.set.reader.dir}\0`);
  const directory = syscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
  const mounts = prepareMounts(plan);
  const payloads = openPayloads(plan);
  const inherited = copyInherited(plan.options.inheritFds ?? new Map(), firstPoolFd(plan));
  // The root of a pid namespace of its own is its init, or gets one at its side.
  const firstPid = plan.namespaces.made("pid") === undefined ? plan.tree.root.pid : INIT_PID;
  const isSibling = plan.options.sibling === true;
  const seed = isSibling
    ? startSibling(plan, counters, { pid: firstPid, existing })
    : startSeed(plan.area, counters);
  const made: number[] = [seed.tid];
  const tracees = new Map<number, Tracee>();
  const helpers = new Set<number>();
  let init: Tracee | undefined;
  let kept: KeptDescriptors;
  try {
    kept = prepareSeed(plan, seed, { directory, existing, inherited, payloads });
    const { root } = plan.tree;
    const first = isSibling ? seed : makeFirst(plan, seed, firstPid);
    if (first !== seed) made.push(first.tid);
    settleFirst(plan, first, { hasMaps: isSibling });
    if (firstPid === root.pid) tracees.set(root.pid, first);
    else {
      init = first;
      const program = new Program();
      addClone(program, { pid: root.pid, flags: 0, what: `process ${root.pid}` });
      run(plan, init, program);
      const tracee = adoptOne(plan, init, root.pid);
      tracees.set(root.pid, tracee);
      made.push(tracee.tid);
      settleInit(plan, init);
    }
  } catch (error) {
    for (const pid of made) endProcess(pid);
    throw error;
  } finally {
    trySyscall("close", directory);
    existing.close();
    for (const fd of payloads.values()) trySyscall("close", fd);
    mounts?.outside.close();
    inherited.close();
  }
  return {
    counters,
    seed: isSibling ? undefined : seed,
    init,
    tracees,
    ...kept,
    rootNamespaceFds: new Map(),
    mounts,
    ends: [],
    lateMounts: [],
    helpers,
    runInChild: (program) => runInChild(plan, tracees.get(plan.tree.root.pid) as Tracee, program),
    outerPid: (pid) => (tracees.get(pid) as Tracee).tid,
    madePids: () => [
      ...helpers,
      ...(isSibling ? [] : [seed.tid]),
      ...(init === undefined ? [] : [init.tid]),
      ...[...tracees.values()].filter(({ tid, leader }) => tid === leader).map(({ tid }) => tid),
    ],
  };
}

function runInChild(plan: RestorePlan, root: Tracee, program: Program): void {
  const making = new Program();
  const made = addClone(making, { flags: 0, what: "a helper" });
  const [result] = runPrograms([job(plan, root, making)]);
  const pid = result?.value(made) ?? 0;
  const child = adoptOne(plan, root, pid);
  try {
    run(plan, child, program);
  } finally {
    endProcess(child.tid);
  }
  const reaping = new Program();
  reaping.call("wait4", [pid, 0, sched.WALL, 0], { label: "reap a helper" });
  run(plan, root, reaping);
}

function prepareMounts(plan: RestorePlan): PreparedMounts | undefined {
  if (plan.mounts === undefined) return undefined;
  const start = firstPoolFd(plan);
  const outside = copyOutsideMounts(plan.mounts, {
    root: plan.options.root ?? "/",
    keep: (fd, what) => copyAbove(fd, what, start),
  });
  return { plan: plan.mounts, outside };
}

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
    run(plan, parent, program);
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

/** What all tasks have open from the seed. */
type KeptDescriptors = Pick<
  Growth,
  "images" | "namespaceFds" | "inheritedFds" | "userfaultDevice" | "proc"
>;

/** The seed gives up all memory but the work area, takes the images directory along and may open many files. */
function prepareSeed(
  plan: RestorePlan,
  seed: Tracee,
  fds: {
    readonly directory: number;
    readonly existing: ExistingNamespaces;
    readonly inherited: InheritedCopies;
    readonly payloads: ReadonlyMap<string, number>;
  },
): KeptDescriptors {
  const { directory, existing, inherited, payloads } = fds;
  const imagesFd = firstPoolFd(plan);
  const program = new Program();
  const { address, size } = plan.area;
  // Soft up to hard: the restore needs a descriptor for every file of the tree at once.
  program.call("prlimit64", [0, sched.RLIMIT_NOFILE, program.data(ownFileLimit()), 0], {
    label: "raise the limit on open files",
  });
  // dup3 refuses a descriptor onto itself, and then it is where it should be.
  if (directory !== imagesFd) {
    program.call("dup3", [directory, imagesFd, 0], {
      label: "keep the images directory open",
      hint: "The limit on open files (ulimit -Hn) is too low for the descriptors of the tree.",
    });
    program.call("close", [directory]);
  }
  if (hasUsers(plan)) forgetLoginuid(program);
  const images = placePayloads(program, payloads, imagesFd);
  const firstPlace = imagesFd + 1 + images.opened.size;
  const inheritedFds = placeInherited(program, inherited, firstPlace);
  const namespaceFds = enterExisting(program, existing, firstPlace + inheritedFds.size);
  program.call("munmap", [0, address], { label: "clean the seed's memory" });
  program.call("munmap", [address + size, TASK_SIZE - address - size], {
    label: "clean the seed's memory",
  });
  run(plan, seed, program);
  const userfaultDevice = images.opened.get(USERFAULTFD_DEVICE);
  const proc = images.opened.get(PROC);
  return { images, namespaceFds, inheritedFds, userfaultDevice, proc };
}

/**
 * Opens the image files, and the device of userfaultfds, that a tree in another user namespace could not open any more, or tasks of
 * one table not without a race. The seed inherits them: where it is the first task itself, it is in the user namespace from its start.
 */
function openPayloads(plan: RestorePlan): Map<string, number> {
  const opened = new Map<string, number>();
  const tables = new Set([...plan.tasks.values()].map(({ ids }) => ids.files_id));
  const isShared = tables.size < plan.tasks.size;
  const open = (name: string, path: string): void => {
    const fd = openSync(path, "r");
    opened.set(name, copyAbove(fd, name, firstPoolFd(plan)));
    closeSync(fd);
  };
  if (plan.labels.size > 0) open(PROC, PROC);
  if (!hasUsers(plan) && !isShared) return opened;
  for (const name of payloadNames(plan.set.reader)) open(name, join(plan.set.reader.dir, name));
  if (plan.options.lazyPages === true && existsSync(USERFAULTFD_DEVICE))
    open(USERFAULTFD_DEVICE, USERFAULTFD_DEVICE);
  return opened;
}

const PROC = "/proc";

/** Adds the calls that put them behind the directory. */
function placePayloads(
  program: Program,
  payloads: ReadonlyMap<string, number>,
  directory: number,
): ImageFiles {
  const opened = new Map<string, number>();
  for (const [name, fd] of payloads) {
    const place = directory + 1 + opened.size;
    program.call("dup3", [fd, place, 0], { label: `keep ${name} open` });
    program.call("close", [fd]);
    opened.set(name, place);
  }
  return { directory, opened };
}

/** struct rlimit with the hard limit in both words. */
function ownFileLimit(): Buffer {
  const limit = Buffer.alloc(16);
  syscall("prlimit64", 0, sched.RLIMIT_NOFILE, 0, limit);
  limit.copy(limit, 0, 8);
  return limit;
}

const INIT_PID = 1;

/**
 * Makes the first task, in the new namespaces: the root, or, in a new pid namespace of which the saved root was not pid 1, an init that
 * reaps orphans and ends with the root task (its code: arch/x86_64/code.ts).
 */
function makeFirst(plan: RestorePlan, seed: Tracee, pid: number): Tracee {
  const program = new Program();
  addClone(program, {
    pid,
    flags: cloneFlags(plan) + sched.CLONE_PARENT,
    what: pid === plan.tree.root.pid ? `process ${pid}` : "the init of a new pid namespace",
  });
  run(plan, seed, program);
  // A child of the engine itself, by CLONE_PARENT.
  return adopt(seed.counters, {
    pid,
    outer: plan.hasInnerPids ? outerChild(process.pid, pid) : pid,
  });
}

/**
 * The first task as a child of our parent. A pid namespace to be entered counts for children only, so the engine's own thread is in
 * it for the moment; all other namespaces the task enters itself.
 */
function startSibling(
  plan: RestorePlan,
  counters: TraceCounters,
  { pid, existing }: { readonly pid: number; readonly existing: ExistingNamespaces },
): Tracee {
  const entered = existing.namespaces.find(
    ({ namespace }) => namespace.kind === "pid" && namespace.role !== "nested",
  );
  const start = (): Tracee =>
    patiently(() =>
      startSeed(plan.area, counters, { pid, flags: cloneFlags(plan), ...mapsFirst(plan) }),
    );
  if (entered === undefined) return start();
  const own = openSync("/proc/self/ns/pid", "r");
  try {
    syscall("setns", entered.fd, sched.CLONE_NEWPID);
    try {
      return start();
    } finally {
      syscall("setns", own, sched.CLONE_NEWPID);
    }
  } finally {
    closeSync(own);
  }
}

/** In a pid namespace that others share, the dead of the tree may not have been reaped yet: their numbers are waited for. */
function patiently(start: () => Tracee): Tracee {
  const deadline = performance.now() + ZOMBIE_PATIENCE_MS;
  for (;;) {
    try {
      return start();
    } catch (error) {
      const isTaken = error instanceof RepriseError && error.errno === "EEXIST";
      if (!isTaken || performance.now() > deadline) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, POLL_MS);
    }
  }
}

const POLL_MS = 10;

/** Once the root is made the init needs nothing of the engine's: no terminal, no directory, no open file. */
function settleInit(plan: RestorePlan, init: Tracee): void {
  const program = new Program();
  program.call("prctl", [sched.PR_SET_NAME, program.string("reprise-init"), 0, 0, 0]);
  program.call("setsid", []);
  program.call("chdir", [program.string("/")]);
  program.call("close_range", [0, CLOSE_RANGE_MAX, 0], { label: "close what the init had open" });
  run(plan, init, program);
}

function run(plan: RestorePlan, tracee: Tracee, program: Program): void {
  runPrograms([job(plan, tracee, program)]);
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
    if (program.length > 0) run(plan, tracee, program);
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

/** Waits for the first stop of a child that `creator` has made. */
function adoptOne(plan: RestorePlan, creator: Tracee, pid: number): Tracee {
  return adopt(creator.counters, {
    pid,
    outer: plan.hasInnerPids ? outerChild(creator.leader, pid) : pid,
  });
}

function adopt(
  counters: TraceCounters,
  { pid, outer }: { pid: number; outer: number | undefined },
): Tracee {
  const tracee = outer === undefined ? undefined : new Tracee(outer, outer, counters);
  if (tracee?.waitInterrupted() === undefined) {
    throw new RepriseError(
      "TASK_DIED",
      `cannot restore pid ${pid}: it ended as soon as it was made`,
      { pid },
    );
  }
  return tracee;
}

/** The number here of a child by its number in the innermost pid namespace. */
function outerChild(parent: number, pid: number): number | undefined {
  return outerChildren(parent).get(pid);
}

/** Children of a process that we trace, by their numbers in a pid namespace: their own, or one at a depth. */
function outerChildren(parent: number, depth = -1): Map<number, number> {
  const found = new Map<number, number>();
  for (const child of readChildrenIfAlive(parent) ?? []) {
    const status = readStatusIfAlive(child);
    const inner = status?.nsPid.at(depth);
    if (status?.tracerPid === process.pid && inner !== undefined && status.nsPid.length > 1)
      found.set(inner, child);
  }
  return found;
}

function endHelper(plan: RestorePlan, growth: Growth, node: TreeNode, tracee: Tracee): void {
  endProcess(tracee.tid);
  const program = new Program();
  const number = plan.pids.seenBy(node.ppid, node.pid);
  program.call("wait4", [number, 0, sched.WALL, 0], { label: `reap the helper ${node.pid}` });
  const parent = growth.tracees.get(node.ppid);
  if (parent !== undefined && node !== plan.tree.root) run(plan, parent, program);
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
  run(plan, tracee, program);
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
