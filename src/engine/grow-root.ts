// The first tasks of a tree: the seed, which the engine starts and which has the descriptors that all tasks inherit, and the root
// task, with its init where it has one. With `sibling` the engine makes the root task itself.

import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import * as sched from "../sys/abi/sched.ts";
import { AT_FDCWD, CLOSE_RANGE_MAX, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { TASK_SIZE } from "../sys/abi/mman.ts";
import { USERFAULTFD_DEVICE } from "../sys/abi/userfault.ts";
import { Program } from "../tracee/program.ts";
import { endProcess, startSeed } from "../tracee/seed.ts";
import { fileLimit } from "../tracee/spawn-elsewhere.ts";
import type { Tracee, TraceCounters } from "../tracee/tracee.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { frontPid, isStandIn } from "../sys/front.ts";
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
import { adopt, adoptChild, outerChild } from "./adopt.ts";
import { ZOMBIE_PATIENCE_MS } from "./free-pids.ts";
import { addClone } from "../tracee/clone.ts";
import { firstPoolFd, type Growth } from "./growth.ts";
import { runIn } from "./helpers.ts";
import { copyAbove, copyInherited, placeInherited, type InheritedCopies } from "./inherited.ts";
import { hasUsers, type RestorePlan } from "./plan.ts";
import { timesForChildren } from "./time-for-children.ts";

/**
 * Starts the seed, has it clean its address space, and makes the root task. Where the root is to be a child of the engine's parent,
 * there is no seed: it would be one, too, and the parent would have to wait for it. The engine makes the first task itself then.
 */
export function startRoot(plan: RestorePlan, counters: TraceCounters): Growth {
  const given = openGiven(plan);
  const { existing, mounts } = given;
  // The root of a pid namespace of its own is its init, or gets one at its side.
  const firstPid = plan.namespaces.made("pid") === undefined ? plan.tree.root.pid : INIT_PID;
  const isSibling = plan.options.sibling === true;
  const made: number[] = [];
  const tracees = new Map<number, Tracee>();
  const helpers = new Set<number>();
  let seed: Tracee;
  let init: Tracee | undefined;
  let kept: KeptDescriptors;
  try {
    seed = isSibling
      ? startSibling(plan, counters, { pid: firstPid, existing })
      : startSeed(plan.area, counters, isStandIn() ? { flags: 0 } : undefined);
    made.push(seed.tid);
    kept = prepareSeed(plan, seed, given);
    const { root } = plan.tree;
    const first = isSibling ? seed : makeFirst(plan, seed, firstPid);
    if (first !== seed) made.push(first.tid);
    settleFirst(plan, first, { hasMaps: isSibling });
    if (firstPid === root.pid) tracees.set(root.pid, first);
    else {
      init = first;
      const program = new Program();
      addClone(program, { pid: root.pid, flags: 0, what: `process ${root.pid}` });
      runIn(plan, init, program);
      const tracee = adoptChild(plan, init, root.pid);
      tracees.set(root.pid, tracee);
      made.push(tracee.tid);
      settleInit(plan, init);
    }
  } catch (error) {
    for (const pid of made) endProcess(pid);
    throw error;
  } finally {
    given.close();
  }
  return {
    counters,
    seed: isSibling ? undefined : seed,
    init,
    tracees,
    ...kept,
    rootNamespaceFds: new Map(),
    entered: new Map(),
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
  const pid = runIn(plan, root, making).value(made);
  const child = adoptChild(plan, root, pid);
  try {
    runIn(plan, child, program);
  } finally {
    endProcess(child.tid);
  }
  const reaping = new Program();
  reaping.call("wait4", [pid, 0, sched.WALL, 0], { label: "reap a helper" });
  runIn(plan, root, reaping);
}

/** What the seed inherits. */
interface Given {
  readonly existing: ExistingNamespaces;
  readonly directory: number;
  readonly mounts: PreparedMounts | undefined;
  readonly payloads: ReadonlyMap<string, number>;
  readonly inherited: InheritedCopies;
  /** Closes the engine's own. */
  close(): void;
}

function openGiven(plan: RestorePlan): Given {
  const open: (() => void)[] = [];
  const close = (): void => {
    for (const one of open.splice(0).toReversed()) one();
  };
  try {
    const existing = openExisting(plan);
    open.push(() => existing.close());
    // Not close-on-exec: the seed inherits it.
    const path = Buffer.from(`${plan.set.reader.dir}\0`);
    const directory = syscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    open.push(() => void trySyscall("close", directory));
    const mounts = prepareMounts(plan);
    open.push(() => mounts?.outside.close());
    const payloads = openPayloads(plan);
    open.push(() => payloads.forEach((fd) => void trySyscall("close", fd)));
    const inherited = copyInherited(plan.options.inheritFds ?? new Map(), firstPoolFd(plan));
    open.push(() => inherited.close());
    return { existing, directory, mounts, payloads, inherited, close };
  } catch (error) {
    close();
    throw error;
  }
}

function prepareMounts(plan: RestorePlan): PreparedMounts | undefined {
  if (plan.mounts === undefined) return undefined;
  const start = firstPoolFd(plan);
  const outside = copyOutsideMounts(plan.mounts, {
    root: plan.options.root ?? "/",
    isOwn: (kind) => plan.namespaces.made(kind) !== undefined,
    keep: (fd, what) => copyAbove(fd, what, start),
  });
  return { plan: plan.mounts, outside };
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
  { directory, existing, inherited, payloads }: Given,
): KeptDescriptors {
  const imagesFd = firstPoolFd(plan);
  const program = new Program();
  const { address, size } = plan.area;
  // Soft up to hard: the restore needs a descriptor for every file of the tree at once.
  const limit = fileLimit(frontPid());
  const label = "raise the limit on open files";
  program.call("prlimit64", [0, sched.RLIMIT_NOFILE, program.data(limit), 0], { label });
  const mounts = plan.mounts?.namespaces.reduce((sum, one) => sum + one.mounts.length, 0) ?? 0;
  const needed = firstPoolFd(plan) + DESCRIPTORS_A_FILE * plan.set.files.size + 2 * mounts;
  if (limit.readBigUInt64LE(0) < BigInt(needed)) {
    // Further only with CAP_SYS_RESOURCE, and never above fs.nr_open. Every task gets its own limit again (fill.ts).
    const most = Buffer.alloc(16);
    const all = BigInt(readFileSync(NR_OPEN, "latin1").trim());
    most.writeBigUInt64LE(all, 0);
    most.writeBigUInt64LE(all, 8);
    program.call("prlimit64", [0, sched.RLIMIT_NOFILE, program.data(most), 0], {
      label,
      mayFail: true,
    });
  }
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
  runIn(plan, seed, program);
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
  if (plan.labels.size > 0 || timesForChildren(plan).length > 0) open(PROC, PROC);
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

const NR_OPEN = "/proc/sys/fs/nr_open";

/** A file is open under a number of the restore's own, and may have helpers: the other end of a pipe, a carrier of messages. */
const DESCRIPTORS_A_FILE = 4;

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
  runIn(plan, seed, program);
  // A child of the engine itself (or of the process in whose place it works), by CLONE_PARENT.
  return adopt(seed.counters, {
    pid,
    outer: plan.hasInnerPids ? outerChild(frontPid(), pid) : pid,
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
  runIn(plan, init, program);
}
