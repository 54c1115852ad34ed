// Growing the tree: the seed makes the root, every task makes its children (and siblings), in the sessions and groups of the
// plan. New processes and threads are traced from their first instant (CLONE_PTRACE), with the options of their creator.

import { readdirSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import * as sched from "../sys/abi/sched.ts";
import { AT_FDCWD, CLOSE_RANGE_MAX, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { TASK_SIZE } from "../sys/abi/mman.ts";
import { SIGCHLD, SIGKILL } from "../sys/abi/signal.ts";
import { writeU64 } from "../sys/memory.ts";
import { Program, type Ref } from "../tracee/program.ts";
import { label, runPrograms } from "../tracee/run.ts";
import { endProcess, startSeed } from "../tracee/seed.ts";
import { Tracee, taskDied, type TraceCounters } from "../tracee/tracee.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { sendSignal } from "../sys/process.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import {
  controllingTerminals,
  makeControllingTerminal,
} from "../objects/files/controlling-terminal.ts";
import { mountFreshProc } from "../objects/namespaces/proc-mount.ts";
import type { OpenedFiles } from "./open-files.ts";
import type { RestorePlan } from "./plan.ts";
import type { TreeNode } from "./plan-tree.ts";

/** What exists so far of a tree that is being restored. */
export interface Growth {
  readonly counters: TraceCounters;
  readonly seed: Tracee;
  /** pid 1 of a new pid namespace, if that is not the root task. */
  readonly init: Tracee | undefined;
  /** Leaders and threads by their number in the images. */
  readonly tracees: Map<number, Tracee>;
  /** Descriptor of the images directory in every task. */
  readonly imagesFd: number;
  /** Number in the engine's pid namespace of a pid in the images. */
  outerPid(pid: number): number;
  /** Every process made, in the engine's numbers. */
  madePids(): number[];
}

/** Room between the descriptors of the tasks and those of the restore. */
const FD_MARGIN = 16;

/** First number for descriptors of the restore itself. */
export function firstPoolFd(plan: RestorePlan): number {
  return plan.firstFreeFd + FD_MARGIN;
}

/** Starts the seed, has it clean its address space, and makes the root task. */
export function startRoot(plan: RestorePlan, counters: TraceCounters): Growth {
  // Not close-on-exec: the seed inherits it.
  const path = Buffer.from(`${plan.set.reader.dir}\0`);
  const directory = syscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
  const seed = startSeed(plan.area, counters);
  const made: number[] = [seed.tid];
  const tracees = new Map<number, Tracee>();
  const imagesFd = firstPoolFd(plan);
  let init: Tracee | undefined;
  try {
    prepareSeed(plan, seed, directory, imagesFd);
    if (plan.newPidNamespace) {
      init = makeInit(plan, seed);
      made.push(init.tid);
    }
    const { root } = plan.tree;
    if (init !== undefined && root.pid === INIT_PID) {
      // The saved root is the init of its namespace itself.
      tracees.set(root.pid, init);
      init = undefined;
    } else {
      const creator = init ?? seed;
      const program = new Program();
      addClone(program, {
        pid: root.pid,
        flags: init === undefined ? sched.CLONE_PARENT : 0,
        what: `process ${root.pid}`,
      });
      run(plan, creator, program);
      const tracee = adopt(plan, creator, root.pid, undefined);
      tracees.set(root.pid, tracee);
      made.push(tracee.tid);
      if (init !== undefined) settleInit(plan, init);
    }
  } catch (error) {
    for (const pid of made) endProcess(pid);
    throw error;
  } finally {
    trySyscall("close", directory);
  }
  return {
    counters,
    seed,
    init,
    tracees,
    imagesFd,
    outerPid: (pid) => (tracees.get(pid) as Tracee).tid,
    madePids: () => [
      seed.tid,
      ...(init === undefined ? [] : [init.tid]),
      ...[...tracees.values()].filter(({ tid, leader }) => tid === leader).map(({ tid }) => tid),
    ],
  };
}

/** Makes all other processes, level by level, each level at the same time. */
export function growTree(plan: RestorePlan, growth: Growth, files: OpenedFiles): void {
  let level: readonly TreeNode[] = [plan.tree.root];
  while (level.length > 0) {
    const busy = level.filter(needsStep);
    const jobs = busy.map((node) => ({ node, program: branchProgram(plan, node, files) }));
    runPrograms(
      jobs.map(({ node, program }) => job(plan, growth.tracees.get(node.pid) as Tracee, program)),
    );
    const next = level.flatMap((node) => [...node.early, ...node.late]);
    for (const node of level) {
      const creator = growth.tracees.get(node.pid) as Tracee;
      for (const child of [...node.early, ...node.late]) {
        growth.tracees.set(
          child.pid,
          adopt(plan, creator, child.pid, child.viaSibling ? child.ppid : undefined),
        );
      }
    }
    level = next;
  }
}

/**
 * When all tasks are in their groups: helpers end and are reaped, zombies die their deaths.
 */
export function settleTree(plan: RestorePlan, growth: Growth): void {
  // Zombies first: a helper may be all that keeps the group that a zombie still has to join.
  const zombies = plan.tree.nodes.filter(({ role }) => role === "zombie");
  const helpers = plan.tree.nodes.filter(({ role }) => role === "helper");
  for (const node of [...zombies, ...helpers]) {
    const tracee = growth.tracees.get(node.pid) as Tracee;
    if (node.role === "zombie") endZombie(plan, node, tracee);
    else endHelper(plan, growth, node, tracee);
    growth.tracees.delete(node.pid);
  }
}

/** A job for a task: the program at the start of the common work area. */
export function job(
  plan: RestorePlan,
  tracee: Tracee,
  program: Program,
): Parameters<typeof runPrograms>[0][number] {
  return { tracee, program, code: plan.area.code, base: plan.area.programs, frame: 0 };
}

/** Adds a clone3 with a wanted pid; the child is traced from the start. */
export function addClone(
  program: Program,
  child: { pid: number; flags: number; what: string; exitSignal?: number },
): Ref {
  const pid = Buffer.alloc(4);
  pid.writeInt32LE(child.pid);
  const setTid = program.data(pid);
  const args = Buffer.alloc(sched.CLONE_ARGS_SIZE);
  writeU64(args, 0, child.flags | sched.CLONE_PTRACE);
  // With CLONE_PARENT the exit signal is the creator's own (clone(2)).
  writeU64(
    args,
    CLONE_EXIT_SIGNAL,
    (child.flags & (sched.CLONE_PARENT | sched.CLONE_THREAD)) === 0
      ? (child.exitSignal ?? SIGCHLD)
      : 0,
  );
  writeU64(args, CLONE_SET_TID_SIZE, 1);
  return program.call(
    "clone3",
    [program.structure(args, { [CLONE_SET_TID]: setTid }), sched.CLONE_ARGS_SIZE],
    {
      label: `make ${child.what}`,
      hint: "The pid may have been taken a moment ago, or a limit on processes (RLIMIT_NPROC, pids.max) is reached.",
    },
  );
}

/** Offsets in struct clone_args. */
const CLONE_EXIT_SIGNAL = 32;
const CLONE_SET_TID = 64;
const CLONE_SET_TID_SIZE = 72;

/** The seed gives up all memory but the work area, takes the images directory along and may open many files. */
function prepareSeed(plan: RestorePlan, seed: Tracee, directory: number, imagesFd: number): void {
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
  program.call("munmap", [0, address], { label: "clean the seed's memory" });
  program.call("munmap", [address + size, TASK_SIZE - address - size], {
    label: "clean the seed's memory",
  });
  run(plan, seed, program);
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
 * pid 1 of a new pid namespace, with a mount namespace for the new /proc. Unless the saved root was pid 1 itself, it reaps
 * orphans and ends with the root task (its code: arch/x86_64/code.ts).
 */
function makeInit(plan: RestorePlan, seed: Tracee): Tracee {
  const program = new Program();
  addClone(program, {
    pid: INIT_PID,
    flags: sched.CLONE_NEWPID | sched.CLONE_NEWNS | sched.CLONE_PARENT,
    what: "the init of a new pid namespace",
  });
  run(plan, seed, program);
  const init = adopt(plan, seed, INIT_PID, undefined);
  const mounts = new Program();
  mountFreshProc(mounts);
  try {
    run(plan, init, mounts);
  } catch (error) {
    // A security module may forbid mounts. The tree then lives with the /proc of outside.
    if (!(error instanceof RepriseError && error.code === "REMOTE_CALL")) throw error;
    log.warn(`the restored tree sees the /proc of outside: ${error.message}`);
  }
  return init;
}

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

/** What a task does to its part of the tree: old session's children, own session, the other children. */
function branchProgram(plan: RestorePlan, node: TreeNode, files: OpenedFiles): Program {
  const program = new Program();
  const make = (child: TreeNode): void => {
    const sibling = child.viaSibling ? sched.CLONE_PARENT : 0;
    const flags = sibling | (sharesFiles(plan, node, child) ? sched.CLONE_FILES : 0);
    addClone(program, { pid: child.pid, flags, what: `process ${child.pid}` });
  };
  node.early.forEach(make);
  if (node.leadsSession) {
    program.call("setsid", [], { label: `make session ${node.pid}` });
    const terminal = controllingTerminals(plan.set).get(node.pid);
    if (terminal !== undefined)
      makeControllingTerminal(program, files.fd(terminal.fileId), { end: terminal.end });
  } else if (node.leadsGroup)
    program.call("setpgid", [0, 0], { label: `make process group ${node.pid}` });
  node.late.forEach(make);
  return program;
}

/** Whether two tasks have one table of descriptors (CLONE_FILES). */
function sharesFiles(plan: RestorePlan, creator: TreeNode, child: TreeNode): boolean {
  const own = plan.tasks.get(creator.pid)?.ids.files_id;
  return own !== undefined && own === plan.tasks.get(child.pid)?.ids.files_id;
}

/**
 * Waits for the first stop of a new process. In a new pid namespace its number here is found among the children.
 */
function adopt(
  plan: RestorePlan,
  creator: Tracee,
  pid: number,
  siblingOf: number | undefined,
): Tracee {
  const outer = plan.newPidNamespace ? findOuter(creator, pid) : pid;
  const tracee = new Tracee(outer, outer, creator.counters);
  if (tracee.waitInterrupted() === undefined) {
    throw new RepriseError(
      "TASK_DIED",
      `cannot restore pid ${pid}: it ended as soon as it was made${siblingOf === undefined ? "" : " (by a sibling)"}`,
      { pid },
    );
  }
  return tracee;
}

/** Looks through all processes for the one whose innermost pid is `pid` and whose tracer we are. */
function findOuter(creator: Tracee, pid: number): number {
  for (const name of readdirSync("/proc")) {
    if (!/^[1-9]/.test(name)) continue;
    const status = readStatusIfAlive(Number(name));
    if (
      status !== undefined &&
      status.tracerPid === process.pid &&
      status.nsPid.length > 1 &&
      status.nsPid.at(-1) === pid
    ) {
      return Number(name);
    }
  }
  throw taskDied(creator, `made pid ${pid}, which is gone`);
}

function endHelper(plan: RestorePlan, growth: Growth, node: TreeNode, tracee: Tracee): void {
  endProcess(tracee.tid);
  const program = new Program();
  program.call("wait4", [node.pid, 0, sched.WALL, 0], { label: `reap the helper ${node.pid}` });
  const parent = growth.tracees.get(node.ppid);
  if (parent !== undefined && node !== plan.tree.root) run(plan, parent, program);
}

/** A zombie ends as the first one did: by exit with its code, or by the signal that killed it. */
function endZombie(plan: RestorePlan, node: TreeNode, tracee: Tracee): void {
  const core = plan.set.tasks.get(node.pid)?.core.tc;
  const code = core?.exit_code ?? 0;
  const signal = code & 0x7f;
  const program = new Program();
  if (node.joinsGroup !== 0) program.call("setpgid", [0, node.joinsGroup], { mayFail: true });
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
