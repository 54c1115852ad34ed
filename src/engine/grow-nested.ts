// Growing what lives in further pid and user namespaces. A pid namespace belongs to the user namespace of who makes its first process, so a
// helper in that one does it in the maker's stead (CLONE_PARENT). From there nobody may choose the numbers of children in the pid
// namespaces outside. The kernel is brought to give those (ns_last_pid, proc_sys_kernel(5)), one child at a time, and asked again
// when somebody else was faster. All tasks enter their own user namespaces when they are filled.

import { writeFileSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { badSet } from "../images/bad-set.ts";
import { log } from "../log.ts";
import { readNsLastPid } from "../proc/self.ts";
import { readStatus, readThreadStatusIfAlive } from "../proc/status.ts";
import { readTasks } from "../proc/tasks.ts";
import { kindOfNamespace } from "../objects/namespaces/kinds.ts";
import { becomeRoot, savedMaps } from "../objects/namespaces/user.ts";
import type { PlannedNamespace } from "../objects/namespaces/plan.ts";
import { AT_FDCWD, F_DUPFD, O_CLOEXEC, O_RDONLY, O_WRONLY } from "../sys/abi/fcntl.ts";
import { CLONE_NEWPID, CLONE_PARENT, WALL } from "../sys/abi/sched.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { Program, type ProgramResult, type Ref } from "../tracee/program.ts";
import { label } from "../tracee/run.ts";
import { endProcess } from "../tracee/seed.ts";
import { Tracee, taskDied } from "../tracee/tracee.ts";
import { addClone } from "../tracee/clone.ts";
import { firstPoolFd, type Growth } from "./growth.ts";
import { findChild, runIn, startHelper, type Helper } from "./helpers.ts";
import type { Birth } from "./plan-pids.ts";
import type { RestorePlan } from "./plan.ts";
import type { TreeNode } from "./plan-tree.ts";

/** How long a number is asked for that others take away. */
const PATIENCE_MS = 5_000;
const POLL_MS = 2;
/** How often for a number that only those outside of a task's pid namespace see. */
const OUTER_ATTEMPTS = 3;

/** Whether a task is made by itself, not with its siblings in one program. */
export function isMadeAlone(plan: RestorePlan, { pid }: TreeNode): boolean {
  const { numbers, chosen, bornIn } = plan.pids.birth(pid);
  return chosen < numbers.length || bornIn !== undefined;
}

/** The namespaces that a task is in before it is filled: those of the helper that has made it in its maker's stead, or its maker's. */
export function enteredEarly(plan: RestorePlan, pid: number): ReadonlySet<PlannedNamespace> {
  const maker = plan.pids.makerOf(pid);
  const inherited =
    maker === undefined ? new Set<PlannedNamespace>() : enteredEarly(plan, maker.pid);
  const { bornIn } = plan.pids.birth(pid);
  if (bornIn === undefined) return inherited;
  const own = helperNamespaces(plan, pid, bornIn);
  const kinds = new Set(own.map(({ kind }) => kind));
  return new Set([...[...inherited].filter(({ kind }) => !kinds.has(kind)), ...own]);
}

/** A user namespace, last, and what a task could not enter from there. */
function helperNamespaces(
  { namespaces, tasks }: RestorePlan,
  pid: number,
  user: number,
): PlannedNamespace[] {
  const ids = tasks.get(pid)?.ids;
  const outer = namespaces.all.filter(
    ({ kind, id, role, owner }) =>
      role === "nested" &&
      kind !== "pid" &&
      kind !== "user" &&
      ids?.[kindOfNamespace(kind).field] === id &&
      !namespaces.isWithin(owner, user),
  );
  const own = namespaces.byId("user", user);
  return own === undefined ? outer : [...outer, own];
}

/** Adds the calls that enter namespaces, a user namespace as its root. */
export function enterNamespaces(
  program: Program,
  plan: RestorePlan,
  growth: Growth,
  { pid, namespaces }: { readonly pid: number; readonly namespaces: readonly PlannedNamespace[] },
): void {
  for (const namespace of namespaces) {
    const { kind, id, maker } = namespace;
    const fd =
      maker === undefined
        ? growth.namespaceFds.get(namespace)
        : openMadeForChildren(program, growth, { pid, maker });
    if (fd === undefined)
      throw badSet(`pid ${pid} is in ${kind} namespace ${id}, of which nothing is known`);
    program.call("setns", [fd, kindOfNamespace(kind).flag], {
      label: `put pid ${pid} into its ${kind} namespace`,
    });
    if (maker !== undefined) program.call("close", [fd]);
    if (kind === "user") becomeRoot(program, savedMaps(plan.set, id));
  }
}

/** Adds the call that opens the time namespace that a task has made for its children. */
function openMadeForChildren(
  program: Program,
  growth: Growth,
  { pid, maker }: { readonly pid: number; readonly maker: number },
): Ref {
  if (growth.proc === undefined || !growth.entered.has(maker)) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore pid ${pid}: it is born into a user namespace from which its time namespace, made by pid ${maker} for its children, cannot be entered`,
      { pid },
    );
  }
  const path = program.string(`${growth.outerPid(maker)}/ns/time_for_children`);
  return program.call("openat", [growth.proc, path, O_RDONLY | O_CLOEXEC, 0], {
    label: `open the time namespace of the children of pid ${maker}`,
  });
}

/** Keeps the file at hand by which the next number of a pid namespace is set: who writes to it sets that of its own namespace. */
export function keepLastPid(plan: RestorePlan, growth: Growth): void {
  if (!plan.pids.asksForNumbers) return;
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const program = new Program();
  const what = { label: "open ns_last_pid", hint: "This needs CONFIG_CHECKPOINT_RESTORE." };
  const path = program.string(LAST_PID);
  const fd = program.call("openat", [AT_FDCWD, path, O_WRONLY, 0], what);
  const kept = program.call("fcntl", [fd, F_DUPFD, firstPoolFd(plan)], what);
  program.call("close", [fd]);
  growth.lastPidFd = runIn(plan, root, program).value(kept);
}

const LAST_PID = "/proc/sys/kernel/ns_last_pid";

/** Makes one child of a task, with the numbers that it had. */
export function makeAlone(
  plan: RestorePlan,
  growth: Growth,
  {
    node,
    child,
    flags,
    exitSignal,
  }: {
    readonly node: TreeNode;
    readonly child: TreeNode;
    readonly flags: number;
    readonly exitSignal: number;
  },
): void {
  const parent = growth.tracees.get(child.ppid) as Tracee;
  const maker = growth.tracees.get(node.pid) as Tracee;
  const birth = plan.pids.birth(child.pid);
  const helper =
    birth.bornIn === undefined ? undefined : startMidwife(plan, growth, { maker, birth });
  try {
    if (helper !== undefined) {
      const program = new Program();
      const { bornIn = -1 } = birth;
      const namespaces = helperNamespaces(plan, child.pid, bornIn);
      enterNamespaces(program, plan, growth, { pid: child.pid, namespaces });
      helper.run(program);
    }
    const by = helper?.tracee ?? maker;
    const tracee = tryNumbers(plan, growth, {
      child,
      birth,
      by,
      parent,
      flags: flagsOf(birth, flags),
      exitSignal,
    });
    growth.tracees.set(child.pid, tracee);
  } finally {
    helper?.end();
  }
}

function flagsOf({ isFirst, bornIn }: Birth, flags: number): number {
  let all = flags;
  if (isFirst) all |= CLONE_NEWPID;
  if (bornIn !== undefined) all |= CLONE_PARENT;
  return all;
}

/** A helper in whose stead the maker becomes the parent. It must not have the number that is wanted. */
function startMidwife(
  plan: RestorePlan,
  growth: Growth,
  { maker, birth }: { readonly maker: Tracee; readonly birth: Birth },
): Helper {
  const start = (): Helper =>
    startHelper(plan, growth, maker, { what: "a helper that makes a task" });
  const first = start();
  if (findNumbers(plan, growth, first.tracee)[0] !== birth.numbers[0]) return first;
  const second = start();
  first.end();
  return second;
}

interface Attempt {
  readonly child: TreeNode;
  readonly birth: Birth;
  readonly by: Tracee;
  readonly parent: Tracee;
  readonly flags: number;
  readonly exitSignal: number;
}

function tryNumbers(plan: RestorePlan, growth: Growth, attempt: Attempt): Tracee {
  const { child, birth, by, parent, flags, exitSignal } = attempt;
  const { numbers, chosen } = birth;
  const wanted = new Set(plan.tree.nodes.map((node) => node.pid));
  const deadline = performance.now() + PATIENCE_MS;
  for (let round = 1; ; round++) {
    const program = new Program();
    const pid = numbers.slice(numbers.length - chosen).toReversed();
    const made = addClone(program, { pid, flags, exitSignal, what: `process ${child.pid}` });
    const asked = numbers.slice(0, numbers.length - chosen);
    const result = askFor(plan, growth, { by, program, pid: child.pid, numbers: asked }).value(
      made,
    );
    const found = findChild(by, result, parent);
    const tracee =
      found === undefined ? undefined : new Tracee(found.outer, found.outer, growth.counters);
    if (tracee?.waitInterrupted() === undefined) {
      throw new RepriseError(
        "TASK_DIED",
        `cannot restore pid ${child.pid}: it ended as soon as it was made`,
        { pid: child.pid },
      );
    }
    const got = findNumbers(plan, growth, tracee);
    if (got.join() === numbers.join()) return tracee;
    // Nobody in the tree knows a number of outside, but for the parent of a first process.
    const isKnown = birth.isFirst || got.at(-1) !== numbers.at(-1) || wanted.has(got[0] ?? 0);
    if (!isKnown && round >= OUTER_ATTEMPTS) {
      log.info(`pid ${child.pid} is ${got.join()} now, from outside to inside`);
      return tracee;
    }
    log.debug(`pid ${child.pid} got the numbers ${got.join()}, once more`);
    endProcess(tracee.tid);
    const reaping = new Program();
    reaping.call("wait4", [result, 0, WALL, 0], { label: "reap a process of another number" });
    runIn(plan, parent, reaping);
    if (performance.now() > deadline) throw numberTaken(`pid ${child.pid}`, child.pid);
    pause();
  }
}

function numberTaken(what: string, pid: number): RepriseError {
  return new RepriseError(
    "PID_TAKEN",
    `cannot restore ${what}: somebody else takes its number as soon as it is free`,
    {
      pid,
      hint: "Only the kernel can give it the number. Try again, or restore into a new pid namespace (reprise clone does).",
    },
  );
}

const pauser = new Int32Array(new SharedArrayBuffer(4));

function pause(): void {
  Atomics.wait(pauser, 0, 0, POLL_MS);
}

/** Runs a program that makes a process or thread, which gets numbers that its maker may not choose. */
function askFor(
  plan: RestorePlan,
  growth: Growth,
  {
    by,
    program,
    pid,
    numbers,
  }: {
    readonly by: Tracee;
    readonly program: Program;
    readonly pid: number;
    readonly numbers: readonly number[];
  },
): ProgramResult {
  numbers.slice(1).forEach((next, index) => setNext(plan, growth, { level: index + 1, pid, next }));
  const [outermost] = numbers;
  if (outermost === undefined) return runIn(plan, by, program);
  const ask = (): void => setNext(plan, growth, { level: 0, pid, next: outermost });
  // Outside of a pid namespace of the tree's others are fast.
  if (!plan.hasInnerPids) {
    const before = readNsLastPid() ?? 0;
    try {
      return runIn(plan, by, program, { justBefore: ask });
    } finally {
      // Others must not be given numbers that were freed a moment ago, which somebody may still mean.
      writeFileSync(LAST_PID, String(Math.max(before, readNsLastPid() ?? 0)));
    }
  }
  ask();
  return runIn(plan, by, program);
}

/** Makes a thread whose number its process may not choose. */
export function makeThread(
  plan: RestorePlan,
  growth: Growth,
  thread: { readonly pid: number; readonly tid: number; readonly flags: number },
): Tracee {
  const { pid, tid, flags } = thread;
  const leader = growth.tracees.get(pid) as Tracee;
  const numbers = plan.pids.threadNumbers(pid, tid);
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const program = new Program();
    const what = `thread ${tid} of pid ${pid}`;
    const made = addClone(program, { flags, what });
    const number = askFor(plan, growth, { by: leader, program, pid, numbers }).value(made);
    const outer = outerThreads(leader.tid).get(number) ?? number;
    const tracee = new Tracee(outer, leader.tid, growth.counters);
    if (tracee.waitInterrupted() === undefined)
      throw taskDied(tracee, "ended as soon as it was made");
    if (number === numbers.at(-1)) return tracee;
    endThread(plan, tracee);
    if (performance.now() > deadline) throw numberTaken(what, pid);
    pause();
  }
}

/** Threads of a process here, by their numbers in its own pid namespace. */
export function outerThreads(leader: number): Map<number, number> {
  return new Map(
    readTasks(leader).map((tid) => [
      readThreadStatusIfAlive(leader, tid)?.nsPid.at(-1) ?? tid,
      tid,
    ]),
  );
}

/** A process's numbers from the root's pid namespace inward. */
function findNumbers(plan: RestorePlan, growth: Growth, tracee: Tracee): readonly number[] {
  return readStatus(tracee.tid).nsPid.slice(rootDepth(plan, growth));
}

/** How many pid namespaces are around that of the root task, in the engine's view. */
export function rootDepth(plan: RestorePlan, growth: Growth): number {
  if (!plan.hasInnerPids) return 0;
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  return readStatus(root.tid).nsPid.length - 1;
}

/** Brings a pid namespace of the tree to give a number next. */
function setNext(
  plan: RestorePlan,
  growth: Growth,
  { level, pid, next }: { readonly level: number; readonly pid: number; readonly next: number },
): void {
  const text = String(next - 1);
  if (level === 0 && !plan.hasInnerPids) {
    writeFileSync(LAST_PID, text);
    return;
  }
  if (growth.lastPidFd === undefined)
    throw new RepriseError("INTERNAL", `internal error: nobody can ask for number ${next}`);
  const program = new Program();
  program.call("pwrite64", [growth.lastPidFd, program.string(text), text.length, 0], {
    label: `ask for number ${next}`,
    expect: text.length,
  });
  const namespace = plan.pids.path(pid)[level - 1];
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  if (namespace === undefined) runIn(plan, root, program);
  else runWithin(plan, growth, { namespace, what: "a helper that asks for a number", program });
}

/** Where the first process of a pid namespace within is in a group that this does not know, its parent puts it there. */
export function joinOuterGroup(plan: RestorePlan, growth: Growth, child: TreeNode): void {
  if (!plan.pids.birth(child.pid).isFirst || child.joinsGroup === 0) return;
  if (plan.pids.ownGroup(child.pid) !== 0) return;
  const parent = growth.tracees.get(child.ppid) as Tracee;
  const program = new Program();
  const { pids } = plan;
  program.call(
    "setpgid",
    [pids.seenBy(child.ppid, child.pid), pids.seenBy(child.ppid, child.joinsGroup)],
    { label: `put pid ${child.pid} into process group ${child.joinsGroup}` },
  );
  runIn(plan, parent, program);
}

/** Mounts what only a process of a further pid namespace can, by a helper there. */
export function mountLate(plan: RestorePlan, growth: Growth): void {
  for (const late of growth.lateMounts) {
    const { mountNamespace, pidNamespace } = late;
    const pids = plan.namespaces.byId("pid", pidNamespace);
    const mounts = plan.namespaces.byId("mnt", mountNamespace);
    const fd = mounts === undefined ? undefined : growth.namespaceFds.get(mounts);
    if (pids === undefined || (fd === undefined && mounts?.role !== "root"))
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore: mount namespace ${mountNamespace} or pid namespace ${pidNamespace} is none of the tree's`,
      );
    const program = new Program();
    late.add(program, fd);
    runWithin(plan, growth, { namespace: pids, what: "a helper that mounts /proc", program });
  }
}

/** Runs a program in a helper that is in a further pid namespace, and has all rights of the root task's user namespace. */
function runWithin(
  plan: RestorePlan,
  growth: Growth,
  {
    namespace,
    what,
    program,
  }: { readonly namespace: PlannedNamespace; readonly what: string; readonly program: Program },
): void {
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const first = plan.pids.firstIn(namespace);
  const entering = `enter pid namespace ${namespace.id}`;
  const around = {
    before: (making: Program): void => {
      const there = making.call("pidfd_open", [first, 0], { label: entering });
      making.call("setns", [there, CLONE_NEWPID], { label: entering });
      making.call("close", [there]);
    },
    after: (): void => undefined,
  };
  // Who may make children in a pid namespace may not always in its own again, which may be outside of what its user namespace rules.
  const maker = startHelper(plan, growth, root, { what: `the maker of ${what}` });
  try {
    const helper = startHelper(plan, growth, maker.tracee, { what, around });
    try {
      helper.run(program);
    } finally {
      helper.end();
    }
  } finally {
    maker.end();
  }
}

/** Adds the calls by which a task makes its next children in a pid namespace that others of its children are in already. */
export function restoreChildrenNamespace(program: Program, plan: RestorePlan, pid: number): void {
  const { children_pid_ns_id: id, children_pid_ns_fresh: isFresh } = plan.tasks.get(pid)?.ids ?? {};
  if (isFresh === 1) {
    program.call("unshare", [CLONE_NEWPID], {
      label: `let pid ${pid} make its next children in a new pid namespace`,
    });
  }
  const namespace = plan.namespaces.byId("pid", id);
  if (namespace === undefined) return;
  const what = { label: `let pid ${pid} make children in pid namespace ${namespace.id}` };
  const first = plan.pids.seenBy(pid, plan.pids.firstIn(namespace));
  const fd = program.call("pidfd_open", [first, 0], what);
  program.call("setns", [fd, CLONE_NEWPID], what);
  program.call("close", [fd]);
}

/** Ends a thread that got another number than the wanted. */
function endThread(plan: RestorePlan, tracee: Tracee): void {
  const regs = tracee.registers();
  regs
    .set("rip", plan.area.code + label("single"))
    .set("rax", SYSCALLS.exit.nr)
    .set("rdi", 0)
    .set("orig_rax", -1n);
  tracee.setRegisters(regs);
  tracee.resume();
  for (;;) {
    const status = tracee.wait();
    if (status.kind === "exited" || status.kind === "killed") return;
    tracee.resume();
  }
}
