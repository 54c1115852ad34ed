// Process trees for tests: made by a history of forks, setsids, setpgids and exits under the kernel's rules, and made again
// from a plan under the same rules.

import type { TreeNode, TreePlan, TreeTask } from "./plan-tree.ts";

interface Process {
  readonly pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  zombie: boolean;
  subreaper: boolean;
}

/** A step of a history: who does it, and with whom where that matters, by index among those who can. */
export interface Step {
  readonly kind: "fork" | "setsid" | "setpgid" | "exit" | "subreaper";
  readonly who: number;
  readonly whom: number;
}

/** Session and group of the engine in these tests. */
export const OUTSIDE_SID = 7;
export const OUTSIDE_PGID = 8;

/** The kernel's rules for the little that a tree is made of. Every call throws where the kernel would fail. */
class ProcessTable {
  readonly #all = new Map<number, Process>();

  constructor(root: number) {
    this.#all.set(root, {
      pid: root,
      ppid: 0,
      pgid: OUTSIDE_PGID,
      sid: OUTSIDE_SID,
      zombie: false,
      subreaper: true,
    });
  }

  get(pid: number): Process {
    const found = this.#all.get(pid);
    if (found === undefined) throw new Error(`there is no process ${pid}`);
    return found;
  }

  has(pid: number): boolean {
    return this.#all.has(pid);
  }

  list(): Process[] {
    return [...this.#all.values()];
  }

  fork(creator: number, pid: number, options: { readonly asSibling: boolean }): void {
    const from = this.get(creator);
    if (from.zombie) throw new Error(`${creator} is dead and makes ${pid}`);
    if (this.#all.has(pid)) throw new Error(`pid ${pid} is taken`);
    if (options.asSibling && from.ppid === 0) throw new Error(`the root makes a sibling ${pid}`);
    const ppid = options.asSibling ? from.ppid : creator;
    const { pgid, sid } = from;
    this.#all.set(pid, { pid, ppid, pgid, sid, zombie: false, subreaper: false });
  }

  setsid(pid: number): void {
    const who = this.get(pid);
    if (this.list().some(({ pgid }) => pgid === pid)) throw new Error(`setsid of ${pid}: EPERM`);
    who.sid = who.pgid = pid;
  }

  setpgid(pid: number, pgid: number): void {
    const who = this.get(pid);
    if (who.sid === pid) throw new Error(`setpgid of the session leader ${pid}: EPERM`);
    const exists = this.list().some((other) => other.pgid === pgid && other.sid === who.sid);
    if (pgid !== pid && !exists) throw new Error(`setpgid of ${pid} to ${pgid}: EPERM`);
    who.pgid = pgid;
  }

  /** Ends a process; its children go to the next subreaper above it. */
  exit(pid: number): void {
    const who = this.get(pid);
    who.zombie = true;
    let heir = this.get(who.ppid);
    while (heir.zombie || !heir.subreaper) heir = this.get(heir.ppid);
    for (const child of this.list()) if (child.ppid === pid) child.ppid = heir.pid;
  }

  reap(pid: number): void {
    this.#all.delete(pid);
  }
}

/** Plays a history; steps that the kernel would refuse are left out. Parents stand before their children. */
export function playHistory(
  steps: readonly Step[],
  pids: readonly number[],
  options: { readonly shellJob: boolean },
): TreeTask[] {
  const [root = 0, ...free] = pids;
  const table = new ProcessTable(root);
  if (!options.shellJob) table.setsid(root);
  for (const step of steps) {
    const alive = table.list().filter(({ zombie }) => !zombie);
    const who = alive[step.who % alive.length] as Process;
    if (step.kind === "subreaper") who.subreaper = true;
    if (step.kind === "fork" && free.length > 0)
      table.fork(who.pid, free.pop() as number, { asSibling: false });
    if (who.pid === root) continue;
    if (step.kind === "exit") {
      table.exit(who.pid);
      if (step.whom % 2 === 0) table.reap(who.pid);
    }
    try {
      if (step.kind === "setsid") table.setsid(who.pid);
      if (step.kind === "setpgid") {
        const groups = [who.pid, ...alive.map(({ pgid }) => pgid)];
        table.setpgid(who.pid, groups[step.whom % groups.length] as number);
      }
    } catch {
      // EPERM: the history goes on without it.
    }
  }
  return fromTheRoot(table.list(), root);
}

/** Makes a tree from a plan as the engine does, `order` deciding who comes first where many work at once. */
export function playPlan(plan: TreePlan, order: (nodes: TreeNode[]) => TreeNode[]): TreeTask[] {
  const { root } = plan;
  const table = new ProcessTable(root.pid);
  for (let level: readonly TreeNode[] = [root]; level.length > 0;) {
    for (const node of order([...level])) branch(table, node);
    level = level.flatMap((node) => [...node.early, ...node.late]);
  }
  for (const { helper, orphan } of plan.orphanages) {
    table.get(orphan.ppid).subreaper = true;
    table.exit(helper.pid);
    table.reap(helper.pid);
    table.get(orphan.ppid).subreaper = orphan.ppid === root.pid;
  }
  const joining = plan.nodes.filter((node) => node.joinsGroup !== 0);
  for (const node of order(joining)) table.setpgid(node.pid, node.joinsGroup);
  for (const node of plan.nodes) if (node.role === "zombie") table.exit(node.pid);
  for (const node of plan.nodes) {
    if (node.role !== "helper" || plan.orphanages.some(({ helper }) => helper === node)) continue;
    if (table.list().some(({ ppid }) => ppid === node.pid))
      throw new Error(`the helper ${node.pid} has children`);
    table.exit(node.pid);
    table.reap(node.pid);
  }
  return fromTheRoot(table.list(), root.pid);
}

function branch(table: ProcessTable, node: TreeNode): void {
  const make = (child: TreeNode): void =>
    table.fork(node.pid, child.pid, { asSibling: child.viaSibling });
  node.early.forEach(make);
  if (node.leadsSession) table.setsid(node.pid);
  else if (node.leadsGroup) table.setpgid(node.pid, node.pid);
  node.late.forEach(make);
}

function fromTheRoot(all: readonly Process[], root: number): TreeTask[] {
  const tasks = all.filter(({ pid }) => pid === root);
  for (let i = 0; i < tasks.length; i++) {
    const parent = tasks[i] as Process;
    tasks.push(...all.filter(({ ppid }) => ppid === parent.pid).sort((a, b) => a.pid - b.pid));
  }
  return tasks.map(({ pid, ppid, pgid, sid, zombie }) => ({ pid, ppid, pgid, sid, zombie }));
}
