// Numbers of tasks in pid namespaces within that of the root task, see pid_namespaces(7). A task has one in each, from the root's inward;
// who makes it may choose those of the namespaces that its own user namespace rules (clone(2), set_tid), and these are the innermost ones.
// Pure: images and plans in, numbers out.

import { RepriseError } from "../errors.ts";
import type { LoadedSet } from "../images/check-set.ts";
import type { PstreeEntry, ReprisePidsEntry } from "../images/schema/messages.generated.ts";
import type { NamespacesPlan, PlannedNamespace } from "../objects/namespaces/plan.ts";
import type { TreeNode, TreePlan } from "./plan-tree.ts";

/** How a task gets its numbers. */
export interface Birth {
  /** The numbers from the root's pid namespace inward. */
  readonly numbers: readonly number[];
  /** How many of them, innermost ones, its maker may choose. The others are what the kernel gives next. */
  readonly chosen: number;
  /** It is made in a new pid namespace. */
  readonly isFirst: boolean;
  /** Number of the user namespace that it must be born into, because its pid namespace belongs to that; undefined: its maker's. */
  readonly bornIn: number | undefined;
}

export interface PidPlan {
  /** Whether some task has more numbers than one. */
  readonly isNested: boolean;
  /** Whether the kernel must be brought to give numbers (ns_last_pid). */
  readonly asksForNumbers: boolean;
  birth(pid: number): Birth;
  /** What a task of the tree is called in its own pid namespace. */
  ownNumber(pid: number): number;
  /** What `pid` is called in the pid namespace of `by`. */
  seenBy(by: number, pid: number): number;
  /** A thread's numbers from the root's pid namespace inward. */
  threadNumbers(pid: number, tid: number): readonly number[];
  /** How many of a new thread's numbers, innermost ones, its process may choose. */
  chosenForThreads(pid: number): number;
  /** What a task's group is called in its own pid namespace; 0 when that does not know it. */
  ownGroup(pid: number): number;
  /** The nested user namespace that a task is in once it is there; undefined: the root task's. */
  userOf(pid: number): number | undefined;
  /** The nested user namespace that a task is made in: the one that its pid namespace belongs to, where that is not the root's. */
  birthUser(pid: number): number | undefined;
  /** Who makes a task; undefined for the root. */
  makerOf(pid: number): TreeNode | undefined;
  /** The pid namespaces that a task is in, from outside; the root's is not among them. */
  path(pid: number): readonly PlannedNamespace[];
  /** The first process of a nested pid namespace. */
  firstIn(namespace: PlannedNamespace): number;
}

/** Plans the numbers of a tree. @throws RepriseError BAD_IMAGE, UNSUPPORTED */
export function planPids(set: LoadedSet, namespaces: NamespacesPlan, tree: TreePlan): PidPlan {
  return new Pids(set, namespaces, tree);
}

class Pids implements PidPlan {
  readonly isNested: boolean;
  readonly asksForNumbers: boolean;
  readonly #set: LoadedSet;
  readonly #namespaces: NamespacesPlan;
  readonly #makers = new Map<number, TreeNode>();
  readonly #entries: ReadonlyMap<number, PstreeEntry>;
  readonly #numbers = new Map<number, readonly number[]>();
  readonly #firstFree: number;

  constructor(set: LoadedSet, namespaces: NamespacesPlan, tree: TreePlan) {
    this.#set = set;
    this.#namespaces = namespaces;
    this.#entries = new Map(set.pstree.map((entry) => [entry.pid, entry]));
    const inner = set.pstree.flatMap(({ reprise }) => (reprise === undefined ? [] : [reprise]));
    this.isNested = inner.length > 0;
    this.#firstFree =
      1 +
      inner.reduce(
        (most, { pids, pgids, sids, tids }) => Math.max(most, ...pids, ...pgids, ...sids, ...tids),
        0,
      );
    for (const node of tree.nodes)
      for (const child of [...node.early, ...node.late]) this.#makers.set(child.pid, node);
    if (this.isNested)
      for (const node of tree.nodes) this.#numbers.set(node.pid, this.#numbersOf(node));
    const births = tree.nodes.map(({ pid }) => this.birth(pid));
    this.asksForNumbers =
      births.some(({ numbers, chosen }) => chosen < numbers.length) ||
      set.pstree.some(
        ({ pid, threads }) =>
          threads.length > 1 && this.chosenForThreads(pid) < this.#numbersFor(pid).length,
      );
  }

  birth(pid: number): Birth {
    const numbers = this.#numbersFor(pid);
    const maker = this.#makers.get(pid);
    if (maker === undefined)
      return { numbers, chosen: numbers.length, isFirst: false, bornIn: undefined };
    const isFirst = numbers.length > this.#numbersFor(maker.pid).length;
    const user = this.birthUser(pid);
    return {
      numbers,
      chosen: this.#chosenBy(user, pid),
      isFirst,
      bornIn: user === this.birthUser(maker.pid) ? undefined : user,
    };
  }

  birthUser(pid: number): number | undefined {
    const maker = this.#makers.get(pid);
    if (maker === undefined) return undefined;
    const isFirst = this.#numbersFor(pid).length > this.#numbersFor(maker.pid).length;
    return isFirst ? this.path(pid).at(-1)?.owner : this.birthUser(maker.pid);
  }

  ownNumber(pid: number): number {
    return this.#numbersFor(pid).at(-1) ?? pid;
  }

  seenBy(by: number, pid: number): number {
    return this.#numbersFor(pid)[this.#numbersFor(by).length - 1] ?? pid;
  }

  threadNumbers(pid: number, tid: number): readonly number[] {
    const entry = this.#entries.get(pid);
    const inner = entry?.reprise;
    if (inner === undefined) return [tid];
    const at = entry?.threads.indexOf(tid) ?? -1;
    const depth = inner.pids.length;
    return [tid, ...inner.tids.slice(at * depth, (at + 1) * depth)];
  }

  chosenForThreads(pid: number): number {
    return this.#chosenBy(this.userOf(pid), pid);
  }

  ownGroup(pid: number): number {
    const entry = this.#entries.get(pid);
    return entry?.reprise?.pgids.at(-1) ?? entry?.pgid ?? 0;
  }

  userOf(pid: number): number | undefined {
    const live = this.#set.tasks.get(pid)?.live;
    if (live !== undefined) {
      const planned = this.#namespaces.byId("user", live.ids.user_ns_id);
      return planned?.role === "nested" ? planned.id : undefined;
    }
    const maker = this.#makers.get(pid);
    return maker === undefined ? undefined : this.userOf(maker.pid);
  }

  makerOf(pid: number): TreeNode | undefined {
    return this.#makers.get(pid);
  }

  path(pid: number): readonly PlannedNamespace[] {
    const depth = this.#numbersFor(pid).length - 1;
    const live = this.#set.tasks.get(pid)?.live;
    const maker = this.#makers.get(pid);
    if (live === undefined)
      return depth === 0 || maker === undefined ? [] : this.path(maker.pid).slice(0, depth);
    const path: PlannedNamespace[] = [];
    let at = this.#namespaces.byId("pid", live.ids.pid_ns_id);
    while (at?.role === "nested") {
      path.unshift(at);
      at = this.#namespaces.byId("pid", at.parent);
    }
    return path;
  }

  firstIn(namespace: PlannedNamespace): number {
    for (const [pid, numbers] of this.#numbers) {
      const path = this.path(pid);
      if (numbers.at(-1) === 1 && numbers.length > 1 && path.at(-1) === namespace) return pid;
    }
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore: pid namespace ${namespace.id} has no first process`,
    );
  }

  #numbersFor(pid: number): readonly number[] {
    return this.#numbers.get(pid) ?? [pid];
  }

  /** How many innermost numbers may be chosen by a task in a user namespace. */
  #chosenBy(user: number | undefined, pid: number): number {
    const namespaces = this.#namespaces;
    const path = this.path(pid);
    const owners: (number | "outside" | undefined)[] = [
      // Only who is privileged in it may choose numbers in a pid namespace, and the tree's own root is not in ours.
      namespaces.ofRoot("user") === undefined || namespaces.made("pid") !== undefined
        ? undefined
        : "outside",
      ...path.map(({ owner }) => owner),
    ];
    let chosen = 0;
    for (const owner of owners.toReversed()) {
      if (owner === "outside" || !this.#namespaces.isWithin(owner, user)) break;
      chosen++;
    }
    return chosen;
  }

  #numbersOf({ pid }: TreeNode): readonly number[] {
    const own = this.#entries.get(pid)?.reprise;
    if (own !== undefined) return [pid, ...own.pids];
    if (this.#entries.has(pid)) return [pid];
    // A helper that stands for a dead leader: its members know its numbers.
    for (const { sid, pgid, reprise } of this.#entries.values()) {
      if (sid === pid) return [pid, ...visible(reprise, "sids")];
      if (pgid === pid) return [pid, ...visible(reprise, "pgids")];
    }
    // One that an orphan was made by: it is in the namespaces of its maker.
    const maker = this.#makers.get(pid);
    const depth =
      maker === undefined ? 0 : (this.#entries.get(maker.pid)?.reprise?.pids.length ?? 0);
    return [pid, ...Array.from({ length: depth }, () => this.#firstFree + pid)];
  }
}

function visible(inner: ReprisePidsEntry | undefined, field: "pgids" | "sids"): readonly number[] {
  const numbers = inner?.[field] ?? [];
  const hidden = numbers.indexOf(0);
  return hidden < 0 ? numbers : numbers.slice(0, hidden);
}
