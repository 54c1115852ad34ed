// Stopping a whole tree: seize and interrupt every thread of every process, again and again until no new one shows up.
// Nothing here changes a task: when the engine dies in this phase, the kernel lets all of them go on.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { CgroupFreezer } from "../objects/cgroups/freezer.ts";
import { checkWorker } from "../objects/io-uring/ring-memory.ts";
import { processNumber, type FrozenTask, type FrozenThread } from "../objects/task/task.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import {
  readStatIfAlive,
  readThreadStatIfAlive,
  readThreadStateIfAlive,
  type TaskStat,
} from "../proc/stat.ts";
import {
  readBriefStatus,
  readStatus,
  readStatusIfAlive,
  readThreadStatus,
  type TaskStatus,
} from "../proc/status.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { PF_IO_WORKER, PF_KTHREAD } from "../sys/abi/sched.ts";
import { PTRACE_O_TRACESYSGOOD } from "../sys/abi/ptrace.ts";
import { SIGSTOP, signalName } from "../sys/abi/signal.ts";
import { ownPids } from "../sys/front.ts";
import { sendSignal, waitFor } from "../sys/process.ts";
import { LeftCode } from "../tracee/injection.ts";
import { Tracee, type TraceCounters } from "../tracee/tracee.ts";
import { retryAfterVfork, type EarlyStop } from "./after-vfork.ts";
import { Bystanders } from "./bystanders.ts";
import { detachLater, detachThreads, stopsAtLast, waitUntilStopped } from "./let-go.ts";
import { isInVfork, UNINTERRUPTIBLE, VforkWait, waitForVfork } from "./vfork-wait.ts";
import { stoppedThread } from "./stopped-thread.ts";

/** A tree in which no thread runs. */
export interface FrozenTree {
  /** Parents before children, the root first. */
  readonly tasks: readonly FrozenTask[];
  readonly counters: TraceCounters;
  /** The cgroups that were frozen or thawed meanwhile. */
  readonly freezer: CgroupFreezer;
  /** Who stands still with it, because a cgroup of the tree was frozen with them in it. */
  readonly bystanders: Bystanders;
}

export interface FreezeOptions {
  readonly timeoutMs: number;
  /** cgroup directory that is frozen while its tasks are seized. */
  readonly freezeCgroup?: string | undefined;
  /** The processes of the tree but the root, as far as they are known. */
  readonly others?: readonly number[] | undefined;
  /** Is called when all stand still, before anything is found out about them. */
  readonly whenStopped?: (() => void) | undefined;
  /** Counts on from before, where the tree is stopped several times. */
  readonly counters?: TraceCounters | undefined;
}

/** Rounds without an end mean that the tree forks faster than it can be stopped. */
const MAX_ROUNDS = 1000;

/**
 * Stops the tree of `root`. On failure everything is let go again.
 *
 * @throws RepriseError NO_SUCH_PROCESS, NOT_PERMITTED, FREEZE_TIMEOUT, UNSUPPORTED
 */
export function freezeTree(root: number, options: FreezeOptions): FrozenTree {
  refuseOwnTree(root);
  const counters = options.counters ?? noStops();
  return retryAfterVfork(counters, (early) => {
    const cgroup = CgroupFreezer.of(root, { named: options.freezeCgroup, others: options.others });
    const freezer = new Freezer(options.timeoutMs, { cgroup, counters, early });
    try {
      freezer.freeze(root);
      options.whenStopped?.();
      const { bystanders } = freezer;
      const tasks = freezer.look(root);
      if (tasks[0]?.state === "zombie") throw hasEnded(root);
      return { tasks, counters, freezer: cgroup, bystanders };
    } catch (error) {
      freezer.letGo(error instanceof VforkWait ? error.tracee : undefined);
      throw error;
    }
  });
}

/** Counters that begin. */
export function noStops(): TraceCounters {
  return { stops: 0, remoteCalls: 0 };
}

/**
 * Detaches every thread, with what must happen at that moment: stop signals kept, held signals sent on. Doing it twice is
 * harmless.
 */
export function releaseTree(tree: FrozenTree, options: { readonly leaveStopped: boolean }): void {
  tree.bystanders.awaitStops();
  tree.freezer.restore();
  for (const task of tree.tasks) {
    if (task.state === "zombie") continue;
    if (options.leaveStopped && task.state === "alive") sendSignal(task.pid, SIGSTOP);
    detachThreads(
      processNumber(task),
      task.threads.map(({ stopped }) => stopped.tracee),
    );
  }
  if (options.leaveStopped)
    for (const { pid, state } of tree.tasks) if (state !== "zombie") waitUntilStopped(pid);
  tree.bystanders.letGo();
  tree.freezer.close();
}

function hasEnded(pid: number): RepriseError {
  return new RepriseError("NO_SUCH_PROCESS", `cannot dump pid ${pid}: it has ended`, {
    pid,
    hint: "It is a zombie, which waits for its parent to ask how it ended.",
  });
}

interface SeizedTask {
  readonly pid: number;
  readonly parent: number | undefined;
  readonly threads: Map<number, Tracee>;
  /** Threads that are seized and not interrupted yet. */
  readonly running: Tracee[];
  stopSignal: number;
  zombie: boolean;
  /** Its first thread has ended, and others live. */
  isLeaderless: boolean;
}

interface FreezerParts {
  readonly cgroup: CgroupFreezer;
  readonly counters: TraceCounters;
  readonly early: EarlyStop | undefined;
}

class Freezer {
  readonly bystanders = new Bystanders();
  readonly #tasks = new Map<number, SeizedTask>();
  readonly #deadline: number;
  readonly #cgroup: CgroupFreezer;
  readonly #counters: TraceCounters;
  /** Until it is met. */
  #early: EarlyStop | undefined;
  /** Tasks are seized and not stopped yet: those of a frozen cgroup could not. */
  #isCgroupFrozen = false;
  /** Threads that have been interrupted and not waited for. A second interrupt would be another stop. */
  readonly #interrupted = new Set<Tracee>();

  constructor(timeoutMs: number, { cgroup, counters, early }: FreezerParts) {
    this.#deadline = performance.now() + timeoutMs;
    this.#cgroup = cgroup;
    this.#counters = counters;
    this.#early = early;
  }

  freeze(root: number): void {
    const stat = readStatIfAlive(root);
    if (stat === undefined) {
      throw new RepriseError(
        "NO_SUCH_PROCESS",
        `cannot stop pid ${root}: there is no such process`,
        {
          pid: root,
          hint: "Look for the right pid with ps; processes in other pid namespaces have another number here.",
        },
      );
    }
    if ((stat.flags & PF_KTHREAD) !== 0) {
      throw new RepriseError("UNSUPPORTED", `cannot stop pid ${root}: it is a kernel thread`, {
        pid: root,
      });
    }
    this.#add(root, undefined);
    if (this.#cgroup.isNeeded) {
      this.#isCgroupFrozen = true;
      this.#cgroup.freeze();
      while (this.#seizeNew() && performance.now() < this.#deadline);
      this.bystanders.seize(this.#cgroup.members().filter((pid) => !this.#tasks.has(pid)));
      this.#interruptFrozen();
      this.#cgroup.thaw();
      this.#isCgroupFrozen = false;
    }
    for (let round = 0; this.#seizeNew(); round++) {
      if (performance.now() > this.#deadline || round > MAX_ROUNDS) {
        throw new RepriseError(
          "FREEZE_TIMEOUT",
          `cannot stop the tree of pid ${root}: it makes new processes faster than they can be stopped, or one does not stop`,
          {
            pid: root,
            hint: "Try again with a longer --timeout, or freeze the tree's cgroup first (--freeze-cgroup).",
          },
        );
      }
    }
    // Its process belongs to the tree no more.
    this.#early?.tracee.detach();
    this.#early = undefined;
  }

  /** One pass over the tree; true when something new was found. */
  #seizeNew(): boolean {
    let found = false;
    // The map grows while it is walked, so children found in this pass are seized in it too.
    for (const task of this.#tasks.values()) {
      if (task.zombie) continue;
      if (this.#seizeThreads(task)) {
        found = true;
        // Each thread is asked for its children: of a process with hundreds of them once is enough, when all of them stand.
        if (this.#tasks.size === 1 && !this.#isCgroupFrozen) continue;
      }
      for (const child of readChildrenIfAlive(task.pid) ?? []) {
        if (this.#tasks.has(child)) continue;
        this.#add(child, task.pid);
        found = true;
      }
    }
    return found;
  }

  #add(pid: number, parent: number | undefined): void {
    this.#tasks.set(pid, {
      pid,
      parent,
      threads: new Map(),
      running: [],
      stopSignal: 0,
      zombie: false,
      isLeaderless: false,
    });
  }

  #seizeThreads(task: SeizedTask): boolean {
    // Those that were seized in a frozen cgroup are still to be stopped: they may have made others meanwhile.
    let found = !this.#isCgroupFrozen && task.running.length > 0;
    for (const tid of readTasksIfAlive(task.pid) ?? []) {
      if (task.threads.has(tid)) continue;
      if (this.#meetEarly(task, tid)) {
        found = true;
        continue;
      }
      // Under its own number the kernel would add up the times of all threads.
      const stat = readThreadStateIfAlive(task.pid, tid);
      if (stat?.state === "Z" || stat?.state === "X") {
        if (tid === task.pid) this.#markEnded(task);
        continue;
      }
      if (((stat?.flags ?? 0) & PF_IO_WORKER) !== 0) {
        checkWorker(task.pid, tid);
        continue;
      }
      if (stat?.state === UNINTERRUPTIBLE) {
        this.#meetFrozen(task.pid, tid);
        if (!this.#isCgroupFrozen) waitForVfork(task.pid, tid);
      }
      const tracee = new Tracee(tid, task.pid, this.#counters);
      if (!tracee.seize(PTRACE_O_TRACESYSGOOD)) continue;
      task.threads.set(tid, tracee);
      task.running.push(tracee);
      found = true;
    }
    // A frozen task (v1) does not reach its stop. And one that waits for its vfork child stops only when that one has called
    // exec, so a child may be interrupted only after its parent has stopped.
    if (!this.#isCgroupFrozen) this.#stopThreads(task);
    return found;
  }

  /** Whether it is the thread that stands still already. */
  #meetEarly(task: SeizedTask, tid: number): boolean {
    if (this.#early?.tracee.tid !== tid) return false;
    const { tracee, stopSignal } = this.#early;
    this.#early = undefined;
    task.threads.set(tid, tracee);
    if (stopSignal !== 0) task.stopSignal = stopSignal;
    return true;
  }

  /**
   * Interrupts the threads that were seized in a frozen cgroup, so that they come to their stops as soon as it is thawed, and do not go
   * back to their system calls before (which sleepers.ts would take for being awake). Not where one waits for its vfork child, which has
   * to run.
   */
  #interruptFrozen(): void {
    const running = [...this.#tasks.values()].flatMap((task) => task.running);
    if (running.some(({ leader, tid }) => isInVfork(leader, tid))) return;
    for (const tracee of running) {
      tracee.interrupt();
      this.#interrupted.add(tracee);
    }
  }

  /** Interrupts the threads that were seized, all before the first is waited for. */
  #stopThreads(task: SeizedTask): void {
    for (const tracee of task.running) if (!this.#interrupted.has(tracee)) tracee.interrupt();
    for (let tracee = task.running[0]; tracee !== undefined; tracee = task.running[0]) {
      const { tid } = tracee;
      const stopSignal = this.#awaitStop(task, tracee);
      task.running.shift();
      if (stopSignal === undefined) task.threads.delete(tid);
      else if (stopSignal !== 0) task.stopSignal = stopSignal;
    }
  }

  /** As `waitInterrupted`. Of a first thread that ends just now the kernel tells nothing as long as others live. */
  #awaitStop({ pid }: SeizedTask, tracee: Tracee): number | undefined {
    const { tid } = tracee;
    try {
      return tracee.waitInterrupted((ms) => {
        if (tid === pid && readThreadStatIfAlive(pid, tid)?.state === "Z") throw new LeaderEnd();
        if (ms > VFORK_PATIENCE_MS && isInVfork(pid, tid)) throw new VforkWait(pid, tid, tracee);
        if (performance.now() > this.#deadline) throw doesNotStop(pid, tid);
      });
    } catch (error) {
      if (error instanceof LeaderEnd) return undefined;
      throw error;
    }
  }

  /** A frozen task of v1 waits as for a disk, and cannot be stopped: when it was found only now, it is thawed now. */
  #meetFrozen(pid: number, tid: number): void {
    this.#cgroup.suspect(pid, tid);
    if (!this.#isCgroupFrozen && this.#cgroup.isNeeded) this.#cgroup.thaw();
  }

  /** The first thread of a process has ended; it is a zombie when there are no others. */
  #markEnded(task: SeizedTask): void {
    const isAlone = (readTasksIfAlive(task.pid) ?? []).length <= 1;
    task.zombie = isAlone;
    task.isLeaderless = !isAlone;
  }

  /** What every task is, in tree order. */
  look(root: number): FrozenTask[] {
    const rootStatus = readStatus(root);
    const depth = rootStatus.nsPid.length - 1;
    const frozen = new Map<number, FrozenTask>();
    for (const task of depthFirst(this.#tasks)) {
      const stat = this.#statOf(task);
      let status = this.#statusOf(task);
      if (stat === undefined || status === undefined) continue; // reaped between: only zombies can go
      if (this.#takeStop(task, status)) status = this.#statusOf(task) ?? status;
      const parent = task.parent === undefined ? undefined : frozen.get(task.parent);
      frozen.set(task.pid, {
        pid: speaker(task),
        innerPid: innerId(task.pid, status.nsPid, depth),
        parent,
        state: stateOf(task, stat),
        stopSignal: task.stopSignal,
        stat,
        status,
        threads: task.zombie ? [] : this.#threads(task, status, depth),
        ...endedLeader(task),
      });
    }
    return [...frozen.values()];
  }

  /**
   * A SIGSTOP that came a moment before us is pending still, and the one of our interpreter would be taken for it: the task comes to the
   * stop that it was sent to.
   */
  #takeStop(task: SeizedTask, { shdPnd, sigPnd }: TaskStatus): boolean {
    const leader = task.threads.get(speaker(task));
    const bit = 1n << BigInt(SIGSTOP - 1);
    if (task.zombie || leader === undefined || ((shdPnd | sigPnd) & bit) === 0n) return false;
    leader.resume();
    // A SIGCONT may have come meanwhile.
    let isAsked = false;
    const signal = leader.waitInterrupted((ms) => {
      if (ms < STOP_PATIENCE_MS || isAsked) return;
      isAsked = true;
      leader.interrupt();
    });
    if (signal !== undefined && signal !== 0) task.stopSignal = signal;
    return signal !== undefined;
  }

  /** SIGKILL ends a task that is stopped, too: one that was killed before its killer was stopped is found dead or dying here. */
  #statOf(task: SeizedTask): TaskStat | undefined {
    const stat = readStatIfAlive(speaker(task));
    if (task.zombie || stat === undefined || stat.state === TRACING_STOP)
      return asProcess(task, stat);
    for (const tid of [...task.threads.keys()].toReversed()) waitFor(tid);
    task.threads.clear();
    task.zombie = true;
    return readStatIfAlive(task.pid);
  }

  /** What /proc says of a process; of one without its first thread another one tells what goes with memory and files. */
  #statusOf(task: SeizedTask): TaskStatus | undefined {
    const status = readStatusIfAlive(task.pid);
    if (status === undefined || !task.isLeaderless || task.zombie) return status;
    const { nsPid, nsPgid, nsSid } = status;
    return { ...readThreadStatus(task.pid, speaker(task)), nsPid, nsPgid, nsSid };
  }

  #threads(task: SeizedTask, leader: TaskStatus, depth: number): FrozenThread[] {
    const tids = [...task.threads.keys()].sort((a, b) =>
      a === task.pid ? -1 : b === task.pid ? 1 : a - b,
    );
    const left = new LeftCode(speaker(task));
    return tids.map((tid) => {
      const tracee = task.threads.get(tid) as Tracee;
      tracee.leader = speaker(task);
      const status = tid === task.pid ? leader : readBriefStatus(task.pid, tid);
      const innerTid = depth === 0 ? tid : innerId(tid, status.nsPid, depth);
      return { tid, innerTid, status, ...stoppedThread(tracee, left) };
    });
  }

  /** Lets all go, but for one thread that somebody else does. */
  letGo(spared: Tracee | undefined): void {
    // Only a thread that stands in a stop can be let go.
    this.#cgroup.thaw();
    const running = [...this.#tasks.values()]
      .flatMap((task) => task.running)
      .filter((tracee) => tracee !== spared);
    const deaf = new Set(running.filter((tracee) => !stopsAtLast(tracee)));
    this.bystanders.awaitStops();
    this.#cgroup.restore();
    for (const task of this.#tasks.values()) {
      for (const tracee of task.threads.values())
        if (!deaf.has(tracee) && tracee !== spared) tracee.detach();
    }
    this.#early?.tracee.detach();
    for (const tracee of deaf) detachLater(tracee);
    this.bystanders.letGo();
    this.#cgroup.close();
  }
}

class LeaderEnd extends Error {}

const VFORK_PATIENCE_MS = 50;
const STOP_PATIENCE_MS = 100;

function doesNotStop(pid: number, tid: number): RepriseError {
  return new RepriseError(
    "FREEZE_TIMEOUT",
    `cannot stop pid ${pid}: thread ${tid} is in a wait that cannot be interrupted`,
    { pid, hint: "It waits for a disk, a network file system or a debugger. Try again later." },
  );
}

function refuseOwnTree(root: number): void {
  ownPids().forEach((own) => refuseTreeOf(own, root));
}

function refuseTreeOf(own: number, root: number): void {
  for (let pid = own; pid > 1;) {
    if (pid === root) {
      throw new RepriseError(
        "BAD_ARGUMENT",
        `cannot dump pid ${root}: the engine itself runs in its tree`,
        {
          pid: root,
          hint: "Start the dump from outside the tree, from another shell for instance.",
        },
      );
    }
    pid = readStatIfAlive(pid)?.ppid ?? 0;
  }
}

/** The thread that has what a process has: the first one, or the oldest that lives where that has ended. */
function speaker({ pid, isLeaderless, zombie, threads }: SeizedTask): number {
  return isLeaderless && !zombie ? Math.min(...threads.keys()) : pid;
}

function endedLeader(task: SeizedTask): Pick<FrozenTask, "endedLeader"> {
  if (!task.isLeaderless || task.zombie) return {};
  const exitCode = readThreadStatIfAlive(task.pid, task.pid)?.exitCode ?? 0;
  if ((exitCode & 0x7f) !== 0) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${task.pid}: its main thread was killed alone, by ${signalName(exitCode & 0x7f)}, while other threads live`,
      { pid: task.pid, hint: "Such a process cannot be made again; let it end its other threads." },
    );
  }
  return { endedLeader: { pid: task.pid, exitCode } };
}

/** What a thread's stat says, with what is the process's. */
function asProcess(task: SeizedTask, stat: TaskStat | undefined): TaskStat | undefined {
  if (stat === undefined || !task.isLeaderless || task.zombie) return stat;
  const { pid, comm, exitCode, exitSignal, starttime } = readStatIfAlive(task.pid) ?? stat;
  return { ...stat, pid, comm, exitCode, exitSignal, starttime };
}

/** State of a stopped tracee in /proc/PID/stat. */
const TRACING_STOP = "t";

function stateOf(task: SeizedTask, stat: TaskStat): FrozenTask["state"] {
  if (task.zombie || stat.state === "Z") return "zombie";
  return task.stopSignal === 0 ? "alive" : "stopped";
}

function innerId(outer: number, ids: readonly number[], depth: number): number {
  const inner = ids[depth];
  if (inner === undefined) {
    log.warn(`pid ${outer} is not visible in the pid namespace of the root task`);
    return outer;
  }
  return inner;
}

function depthFirst(tasks: ReadonlyMap<number, SeizedTask>): SeizedTask[] {
  const children = new Map<number | undefined, SeizedTask[]>();
  for (const task of tasks.values()) {
    const siblings = children.get(task.parent) ?? [];
    siblings.push(task);
    children.set(task.parent, siblings);
  }
  const ordered: SeizedTask[] = [];
  const stack = children.get(undefined) ?? [];
  for (let task = stack.pop(); task !== undefined; task = stack.pop()) {
    ordered.push(task);
    stack.push(...(children.get(task.pid) ?? []).toReversed());
  }
  return ordered;
}
