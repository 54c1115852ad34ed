// Planning who makes whom. A process keeps the session it is born into unless it makes one of its own (setsid), and its
// parent is who forked it, or, with CLONE_PARENT, the parent of who forked it. So for every task the plan names a creator that
// is in the right session at the right moment. Sessions and groups whose leader is dead get a helper with the leader's pid
// that ends again. Pure: pids in, steps out.

import { RepriseError } from "../errors.ts";

/** A task of the images, as far as the tree goes. */
export interface TreeTask {
  readonly pid: number;
  /** 0 for the root. */
  readonly ppid: number;
  readonly pgid: number;
  readonly sid: number;
  readonly zombie: boolean;
  /** Names of what it has in common with other tasks (sharing.ts), which it gets from one of these alone. */
  readonly shares?: readonly string[];
}

/** A process to make. */
export interface TreeNode {
  readonly pid: number;
  readonly ppid: number;
  readonly pgid: number;
  readonly sid: number;
  readonly role: "task" | "zombie" | "helper";
  /** Children and siblings that it makes before it starts a session or group of its own. */
  readonly early: TreeNode[];
  /** … and after. */
  readonly late: TreeNode[];
  /** Made with CLONE_PARENT: the creator is a sibling. */
  viaSibling: boolean;
  /** Made by a helper below the session's leader, whose end gives it to its parent as an orphan. */
  viaOrphanage?: TreeNode;
  /** Calls setsid. */
  readonly leadsSession: boolean;
  /** Calls setpgid(0, 0). */
  readonly leadsGroup: boolean;
  /** Joins this group once all tasks are there; 0 for none. */
  readonly joinsGroup: number;
}

export interface TreePlan {
  readonly root: TreeNode;
  /** Helpers that end as soon as all processes are there, and the nodes that they leave to those nodes' parents. */
  readonly orphanages: readonly { readonly helper: TreeNode; readonly orphan: TreeNode }[];
  /** Creators before those they make. */
  readonly nodes: readonly TreeNode[];
}

/**
 * Plans the tree. With `shellJob` the session and group of the root, if they are not in the tree, are the engine's own.
 *
 * @throws RepriseError UNSUPPORTED, BAD_IMAGE
 */
export function planTree(
  tasks: readonly TreeTask[],
  options: {
    readonly shellJob: boolean;
    /** From here on no process, thread, group or session of the tree has the number. @default by the processes */
    readonly freePid?: number;
  },
): TreePlan {
  const planner = new TreePlanner(tasks, options);
  return planner.plan();
}

/** The session that the engine itself is in, when the tree lives in it. */
const OUTSIDE = -1;

class TreePlanner {
  readonly #nodes = new Map<number, TreeNode>();
  readonly #root: TreeNode;
  readonly #outsideSid: number;
  readonly #outsidePgid: number;
  /** Session at birth, once it is settled. */
  readonly #born = new Map<TreeNode, number>();
  readonly #shares: ReadonlyMap<number, readonly string[]>;
  #freePid: number;

  constructor(
    tasks: readonly TreeTask[],
    { shellJob, freePid }: { readonly shellJob: boolean; readonly freePid?: number },
  ) {
    this.#freePid =
      freePid ?? 1 + Math.max(0, ...tasks.flatMap(({ pid, pgid, sid }) => [pid, pgid, sid]));
    this.#shares = new Map(tasks.map(({ pid, shares }) => [pid, shares ?? []]));
    const root = tasks[0];
    if (root === undefined)
      throw new RepriseError("BAD_IMAGE", "cannot restore an empty process tree");
    const pids = new Set(tasks.map(({ pid }) => pid));
    this.#outsideSid = pids.has(root.sid) ? 0 : root.sid;
    this.#outsidePgid = pids.has(root.pgid) ? 0 : root.pgid;
    if (this.#outsideSid !== 0 && !shellJob) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore pid ${root.pid}: its session ${root.sid} was outside of the tree`,
        {
          pid: root.pid,
          hint: "It was a job of a shell: restore it with --shell-job from a terminal.",
        },
      );
    }
    for (const task of tasks) this.#add(task, task.zombie ? "zombie" : "task");
    this.#root = this.#nodes.get(root.pid) as TreeNode;
    this.#addHelpers(tasks);
  }

  plan(): TreePlan {
    this.#born.set(this.#root, this.#outsideSid === 0 ? 0 : OUTSIDE);
    const waiting = [...this.#nodes.values()].filter((node) => node !== this.#root);
    // Each round places whoever has a creator by now; leaders come before their session's members.
    while (waiting.length > 0) {
      const placed = waiting.filter((node) => this.#place(node));
      if (placed.length === 0) {
        const orphan = waiting.find((node) => this.#placeOrphan(node));
        if (orphan === undefined) throw noCreator(waiting[0] as TreeNode);
        placed.push(orphan);
      }
      for (const node of placed) waiting.splice(waiting.indexOf(node), 1);
    }
    const nodes = inCreationOrder(this.#root);
    const orphanages = nodes.flatMap((orphan) =>
      orphan.viaOrphanage === undefined ? [] : [{ helper: orphan.viaOrphanage, orphan }],
    );
    return { root: this.#root, nodes, orphanages };
  }

  #add(task: Omit<TreeTask, "zombie">, role: TreeNode["role"]): void {
    const leadsSession = task.sid === task.pid;
    const outside = task.pgid === this.#outsidePgid && this.#outsidePgid !== 0;
    this.#nodes.set(task.pid, {
      pid: task.pid,
      ppid: task.ppid,
      pgid: task.pgid,
      sid: task.sid,
      role,
      early: [],
      late: [],
      viaSibling: false,
      leadsSession,
      leadsGroup: task.pgid === task.pid && !leadsSession,
      joinsGroup: leadsSession || outside || task.pgid === task.pid ? 0 : task.pgid,
    });
  }

  /** Dead leaders of sessions and groups that live tasks are still in. */
  #addHelpers(tasks: readonly TreeTask[]): void {
    for (const task of tasks) {
      const leader = this.#nodes.get(task.pgid);
      if (leader !== undefined && leader.pgid !== task.pgid) throw lostLeader(task, leader);
      const parent = task.ppid === 0 ? task.pid : task.ppid;
      if (!this.#nodes.has(task.sid) && task.sid !== this.#outsideSid) {
        this.#add({ pid: task.sid, ppid: parent, pgid: task.sid, sid: task.sid }, "helper");
      }
      if (!this.#nodes.has(task.pgid) && task.pgid !== this.#outsidePgid) {
        this.#add({ pid: task.pgid, ppid: parent, pgid: task.pgid, sid: task.sid }, "helper");
      }
    }
  }

  /** Finds a creator for a node; false when there is none yet. */
  #place(node: TreeNode): boolean {
    const parent = this.#nodes.get(node.ppid);
    if (parent === undefined)
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore pid ${node.pid}: its parent ${node.ppid} is not in the tree`,
      );
    if (!this.#born.has(parent)) return false;
    if (this.#placeBySharer(node, parent)) return true;
    if (node.leadsSession) {
      // Children of an older session settle where a leader has to be born; else after its parent's own setsid.
      const wanted = this.#sessionOfEarlyChildren(node);
      if (wanted === undefined)
        return this.#attach(
          node,
          afterSetsid(parent),
          parent.leadsSession ? parent.pid : this.#bornOf(parent),
        );
      return this.#bornInto(node, parent, wanted);
    }
    return this.#bornInto(node, parent, this.#session(node.sid));
  }

  /** What a task shares with siblings but not with its parent it gets from one of these. */
  #placeBySharer(node: TreeNode, parent: TreeNode): boolean {
    const shared = this.#shares.get(node.pid) ?? [];
    if (shared.length === 0) return false;
    const there = [...this.#born.keys()];
    const needed = shared.filter((name) =>
      there.some(({ pid }) => this.#shares.get(pid)?.includes(name)),
    );
    const gives = ({ pid }: TreeNode): boolean =>
      needed.every((name) => this.#shares.get(pid)?.includes(name));
    if (needed.length === 0 || gives(parent)) return false;
    const maker = there.find((other) => {
      const session = other.leadsSession ? other.pid : this.#bornOf(other);
      const fits = node.leadsSession || session === this.#session(node.sid);
      return other.ppid === node.ppid && other !== this.#root && fits && gives(other);
    });
    if (maker === undefined) return false;
    node.viaSibling = true;
    const session = maker.leadsSession ? maker.pid : this.#bornOf(maker);
    return this.#attach(node, afterSetsid(maker), session);
  }

  #bornInto(node: TreeNode, parent: TreeNode, session: number): boolean {
    const later = parent.leadsSession ? parent.pid : this.#bornOf(parent);
    if (later === session) return this.#attach(node, afterSetsid(parent), session);
    if (parent.leadsSession && this.#bornOf(parent) === session)
      return this.#attach(node, parent.early, session);
    const sibling = [...this.#nodes.values()].find(
      (other) =>
        other !== node &&
        other.ppid === node.ppid &&
        this.#born.has(other) &&
        other !== this.#root &&
        (other.leadsSession ? other.pid : this.#bornOf(other)) === session,
    );
    if (sibling === undefined) return false;
    node.viaSibling = true;
    return this.#attach(node, afterSetsid(sibling), session);
  }

  /**
   * Its parent is not the one who made it: an orphan, which went to the next subreaper above (prctl(2), PR_SET_CHILD_SUBREAPER) or to
   * the init of the pid namespace. A helper below somebody in the right session makes it again.
   */
  #placeOrphan(node: TreeNode): boolean {
    const session = this.#session(node.sid);
    const maker = [...this.#nodes.values()].find(
      (other) =>
        this.#born.has(other) &&
        (other.leadsSession ? other.pid : this.#bornOf(other)) === session &&
        this.#isBelow(other, node.ppid),
    );
    if (node.leadsSession || maker === undefined) return false;
    const pid = this.#freePid++;
    this.#add({ pid, ppid: maker.pid, pgid: pid, sid: maker.sid }, "helper");
    const helper = { ...(this.#nodes.get(pid) as TreeNode), leadsGroup: false };
    this.#nodes.set(pid, helper);
    this.#attach(helper, afterSetsid(maker), session);
    node.viaOrphanage = helper;
    return this.#attach(node, helper.late, session);
  }

  #isBelow(node: TreeNode, ancestor: number): boolean {
    for (let at = this.#nodes.get(node.ppid); at !== undefined; at = this.#nodes.get(at.ppid))
      if (at.pid === ancestor) return true;
    return false;
  }

  #attach(node: TreeNode, list: TreeNode[], session: number): boolean {
    list.push(node);
    this.#born.set(node, session);
    return true;
  }

  /** The one session that children of a leader need it to be born into: theirs, which is not its own. */
  #sessionOfEarlyChildren(leader: TreeNode): number | undefined {
    for (const child of this.#nodes.values()) {
      if (child.ppid !== leader.pid || child.leadsSession || child.sid === leader.pid) continue;
      const bySibling = [...this.#nodes.values()].some(
        (other) => other !== child && other.ppid === leader.pid && other.pid === child.sid,
      );
      if (!bySibling) return this.#session(child.sid);
    }
    return undefined;
  }

  #session(sid: number): number {
    return sid === this.#outsideSid ? OUTSIDE : sid;
  }

  #bornOf(node: TreeNode): number {
    return this.#born.get(node) ?? 0;
  }
}

/**
 * Where those stand that a node makes in its last session. A leader of a group makes them before it leads the group, since
 * nobody can go back into a group of outside; who belongs to its group joins in the end.
 */
function afterSetsid(node: TreeNode): TreeNode[] {
  return node.leadsGroup ? node.early : node.late;
}

function noCreator(node: TreeNode): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot restore pid ${node.pid}: no process can make it in session ${node.sid} with parent ${node.ppid}`,
    {
      pid: node.pid,
      hint: "Its session was made in a way that this version cannot repeat. Please report it with the output of ps -eo pid,ppid,pgid,sid.",
    },
  );
}

/** A group's number is its first leader's pid: while that process is in another group, nobody can make the group. */
function lostLeader(task: TreeTask, leader: TreeNode): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot restore pid ${task.pid}: the process ${leader.pid} that made its group ${task.pgid} is in group ${leader.pgid} now`,
    { pid: task.pid, hint: "Such a group cannot be made again. Let its members join another one." },
  );
}

function inCreationOrder(root: TreeNode): TreeNode[] {
  const order: TreeNode[] = [root];
  for (let i = 0; i < order.length; i++) {
    const node = order[i] as TreeNode;
    order.push(...node.early, ...node.late);
  }
  return order;
}
