// Which namespaces the tasks of a frozen tree live in: those of the root task, where they are not the engine's, and further ones of other
// tasks. A task may not live in the engine's where the root task has another one. CRIU saves further mount and network namespaces
// only, and only where the root's is not its own. Ids count over all kinds from 1, the engine's own first.

import { closeSync, fstatSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type {
  RepriseNamespace,
  TaskKobjIdsEntry,
  UsernsEntry,
} from "../../images/schema/messages.generated.ts";
import { readNamespaces, type NamespaceInodes } from "../../proc/ns.ts";
import type { FrozenTask } from "../task/task.ts";
import {
  externalKey,
  inodeOfKind,
  kindOfNamespace,
  NAMESPACE_KINDS,
  type KindOfNamespace,
  type NamespaceKind,
} from "./kinds.ts";
import { foreignMount } from "./proc-mount.ts";
import { hasRoom } from "./registry.ts";
import { mapsOfEmpty, openRelated, ownerUid, type NamespaceRelation } from "./relations.ts";
import { idInside, mapsOf } from "./user.ts";

/** The namespace fields of ids-PID.img. */
export type NamespaceIds = Omit<TaskKobjIdsEntry, "vm_id" | "files_id" | "fs_id" | "sighand_id">;

/** A namespace of the tree that is not the engine's. */
export interface CollectedNamespace {
  readonly kind: NamespaceKind;
  /** The number of its images (utsns-ID.img) and in ids-PID.img. */
  readonly id: number;
  readonly inode: number;
  /** A live task in it, in the engine's pid namespace: /proc/PID/ns/KIND leads to it. */
  readonly pid: number;
  /** The root task's, or another task's. */
  readonly role: "root" | "nested";
  /** The key of `--external KIND[INODE]:KEY`: the restoring side provides it, and nothing in it is saved. */
  readonly externalKey: string | undefined;
  /** Of a user namespace that no task lives in: `pid` is of one that has something that belongs to it. */
  readonly maps?: UsernsEntry;
  /** The task that has made this time namespace for its children, and is in another one itself. */
  readonly maker?: number;
}

/** The namespaces of a frozen tree. */
export interface CollectedNamespaces {
  /** The engine's own, the point of comparison (root_ids of the inventory). */
  readonly own: NamespaceIds;
  /** Those that are not the engine's, in the order in which they were found: the root's first. */
  readonly all: readonly CollectedNamespace[];
  /** The ids of a live task. */
  idsOf(pid: number): NamespaceIds;
  /** A task's namespace of a kind; undefined when it is the engine's. */
  ofTask(pid: number, kind: NamespaceKind): CollectedNamespace | undefined;
  /** The root task's namespace of a kind; undefined when it is the engine's. */
  ofRoot(kind: NamespaceKind): CollectedNamespace | undefined;
  /** Who owns the further namespaces, and what those of pids and users are in; none in a tree without such. */
  readonly relations: readonly RepriseNamespace[];
  /** A task of which /proc/PID/timens_offsets tells of a time namespace: it shows that of the task's children. */
  clocksOf(namespace: CollectedNamespace): number | undefined;
  /** The id of a namespace by its inode, the engine's own included. */
  idOf(kind: NamespaceKind, inode: number): number | undefined;
}

export interface CollectNamespacesOptions {
  /** What `--external` named, word for word. */
  readonly external: readonly string[];
}

/**
 * Looks at the namespaces of all live tasks of a tree, the root first.
 *
 * @throws RepriseError UNSUPPORTED for those that cannot be saved.
 */
export function collectNamespaces(
  tasks: readonly FrozenTask[],
  options: CollectNamespacesOptions,
): CollectedNamespaces {
  const table = new NamespaceTable(options);
  for (const task of tasks) table.add(task);
  table.finish(tasks);
  return table;
}

const COMES_BACK: ReadonlySet<NamespaceKind> = new Set(["uts", "ipc", "net", "mnt", "cgroup"]);

class NamespaceTable implements CollectedNamespaces {
  readonly own: NamespaceIds;
  readonly all: CollectedNamespace[] = [];
  relations: readonly RepriseNamespace[] = [];
  readonly #external: readonly string[];
  readonly #ownInodes = readNamespaces(process.pid);
  /** By kind and inode. */
  readonly #ids = new Map<string, number>();
  readonly #tasks = new Map<number, NamespaceInodes>();
  #root: number | undefined;
  readonly #emptyUsers: RepriseNamespace[] = [];
  /** The mount namespace that counts as the engine's. */
  #freshProc: number | undefined;

  constructor({ external }: CollectNamespacesOptions) {
    this.#external = external;
    for (const { kind } of NAMESPACE_KINDS)
      this.#ids.set(key(kind, inodeOfKind(this.#ownInodes, kind)), this.#ids.size + 1);
    this.own = this.#idsOf(this.#ownInodes);
  }

  add(task: FrozenTask): void {
    const inodes = this.#withoutFreshProc(task, readNamespaces(task.pid));
    const isRoot = this.#root === undefined;
    this.#root ??= task.pid;
    for (const kind of NAMESPACE_KINDS) this.#addOne(task, kind, { inodes, isRoot });
    this.#tasks.set(task.pid, inodes);
  }

  /** When all tasks are known. */
  finish(tasks: readonly FrozenTask[]): void {
    for (const task of tasks) {
      const { pid, pid_for_children: next } = this.#inodesOf(task.pid);
      if (next === undefined || next === pid) continue;
      if (this.idOf("pid", next) === undefined)
        refuse(task, "its children are to live in another pid namespace");
    }
    for (const task of tasks) this.#addTimeForChildren(task);
    const nested = this.all.filter(({ role }) => role === "nested");
    const relations = nested.map((namespace) => this.#relationOf(namespace));
    this.relations = [...relations, ...this.#emptyUsers];
    checkPidNamespaces(tasks);
    for (const task of tasks) this.#checkMaker(task);
  }

  clocksOf({ inode }: CollectedNamespace): number | undefined {
    for (const [pid, { time_for_children: shown }] of this.#tasks) if (shown === inode) return pid;
    return undefined;
  }

  /** One for its children that a task has made (unshare), whether there are any yet or not. */
  #addTimeForChildren(task: FrozenTask): void {
    const { pid } = task;
    const { time, time_for_children: inode } = this.#inodesOf(pid);
    if (inode === undefined || inode === time) return;
    if (inode === this.#ownInodes.time || inode === this.ofRoot("time")?.inode)
      refuse(task, "its children are to live in another time namespace, which the root task is in");
    const at = this.all.findIndex((known) => known.kind === "time" && known.inode === inode);
    const known = this.all[at];
    if (known !== undefined) {
      this.all[at] = { ...known, maker: pid };
      return;
    }
    const id = this.#ids.size + 1;
    this.#ids.set(key("time", inode), id);
    this.all.push({
      kind: "time",
      id,
      inode,
      pid,
      role: "nested",
      externalKey: undefined,
      maker: pid,
    });
  }

  /** A namespace belongs to the user namespace in which its maker was then; a task that has gone on to a further one cannot go back. */
  #checkMaker(task: FrozenTask): void {
    const made = this.all.find(({ kind, maker }) => kind === "time" && maker === task.pid);
    const owner = this.relations.find(({ id }) => id === made?.id)?.owner;
    if (owner === undefined) return;
    const root = this.#tasks.get(this.#root ?? -1)?.user;
    const owners = [root, this.#inodesOf(task.pid).user].map((user) =>
      this.idOf("user", user ?? 0),
    );
    if (!owners.includes(owner))
      refuse(
        task,
        "it has made a time namespace for its children in a user namespace that it has left",
      );
  }

  #relationOf(namespace: CollectedNamespace): RepriseNamespace {
    const { kind, id, pid, maker } = namespace;
    const { flag } = kindOfNamespace(kind);
    const path =
      maker === undefined ? `/proc/${pid}/ns/${kind}` : `/proc/${maker}/ns/time_for_children`;
    const fd = openSync(path, "r");
    try {
      const owner = this.#related(pid, { fd, relation: "owner", kind: "user" });
      if (kind !== "user" && kind !== "pid") return { kind: flag, id, owner };
      const parent = this.#related(pid, { fd, relation: "parent", kind });
      if (kind === "pid") return { kind: flag, id, owner, parent };
      return { kind: flag, id, owner, parent, ...this.#ownerOf(fd, parent) };
    } finally {
      closeSync(fd);
    }
  }

  /** The number of what a namespace belongs to or is in; a user namespace need not have any task in it. */
  #related(
    pid: number,
    of: {
      readonly fd: number;
      readonly relation: NamespaceRelation;
      readonly kind: "user" | "pid";
    },
  ): number {
    const { fd, relation, kind } = of;
    const related = openRelated(fd, relation);
    try {
      const inode = related === undefined ? undefined : fstatSync(related).ino;
      const known = inode === undefined ? undefined : this.idOf(kind, inode);
      if (known !== undefined) return known;
      if (related === undefined || inode === undefined || kind === "pid") {
        throw new RepriseError(
          "UNSUPPORTED",
          `cannot dump pid ${pid}: a namespace of it belongs to a ${kind} namespace outside of the tree`,
          { pid, hint: "Such a chain of namespaces cannot be saved." },
        );
      }
      return this.#addEmptyUser(pid, related, inode);
    } finally {
      if (related !== undefined) closeSync(related);
    }
  }

  /** A user namespace that no task lives in, but to which others belong. */
  #addEmptyUser(pid: number, fd: number, inode: number): number {
    const id = this.#ids.size + 1;
    this.#ids.set(key("user", inode), id);
    const maps = mapsOfEmpty(fd);
    const user: CollectedNamespace = {
      kind: "user",
      id,
      inode,
      pid,
      role: "nested",
      externalKey: undefined,
      maps,
    };
    this.all.push(user);
    const owner = this.#related(pid, { fd, relation: "parent", kind: "user" });
    const { flag } = kindOfNamespace("user");
    this.#emptyUsers.push({ kind: flag, id, owner, parent: owner, ...this.#ownerOf(fd, owner) });
    return id;
  }

  /** Who made a user namespace, in ids of the one that it is in. */
  #ownerOf(fd: number, parent: number): { owner_uid?: number } {
    const around = this.all.find(({ kind, id }) => kind === "user" && id === parent);
    const uid = ownerUid(fd);
    const inside = around === undefined ? uid : idInside(mapsOf(around).uid_map, uid);
    return inside === undefined ? {} : { owner_uid: inside };
  }

  idsOf(pid: number): NamespaceIds {
    const inodes = this.#inodesOf(pid);
    const forChildren = (kind: "pid" | "time"): number | undefined => {
      const next = inodes[`${kind}_for_children`];
      return next === undefined || next === inodes[kind] ? undefined : this.idOf(kind, next);
    };
    const [pids, time] = [forChildren("pid"), forChildren("time")];
    // The kernel shows none before its first process.
    const isFresh = inodes.pid !== undefined && inodes.pid_for_children === undefined;
    return {
      ...this.#idsOf(inodes),
      ...(pids === undefined ? {} : { children_pid_ns_id: pids }),
      ...(isFresh ? { children_pid_ns_fresh: 1 } : {}),
      ...(time === undefined ? {} : { children_time_ns_id: time }),
    };
  }

  ofTask(pid: number, kind: NamespaceKind): CollectedNamespace | undefined {
    const inode = inodeOfKind(this.#inodesOf(pid), kind);
    return this.all.find((known) => known.kind === kind && known.inode === inode);
  }

  ofRoot(kind: NamespaceKind): CollectedNamespace | undefined {
    return this.all.find((known) => known.kind === kind && known.role === "root");
  }

  idOf(kind: NamespaceKind, inode: number): number | undefined {
    return this.#ids.get(key(kind, inode));
  }

  #addOne(
    task: FrozenTask,
    { kind }: KindOfNamespace,
    { inodes, isRoot }: { readonly inodes: NamespaceInodes; readonly isRoot: boolean },
  ): void {
    const inode = inodeOfKind(inodes, kind);
    const own = inodeOfKind(this.#ownInodes, kind);
    if (!isRoot) {
      const ofRoot = this.ofRoot(kind)?.inode ?? own;
      if (inode === ofRoot) return;
      if (inode === own)
        refuse(task, `its ${kind} namespace is the engine's, and not the root task's`, END_IT);
      // Who makes it could not come back, as that takes rights outside of the root's user namespace.
      if (ofRoot === own && this.ofRoot("user") !== undefined && COMES_BACK.has(kind))
        refuse(
          task,
          `it has a ${kind} namespace of its own, and the root task, in a user namespace of its own, has not`,
        );
    }
    if (inode === own || inode === undefined) return;
    if (this.#ids.has(key(kind, inode))) return;
    const id = this.#ids.size + 1;
    this.#ids.set(key(kind, inode), id);
    const external = externalKey(this.#external, kind, inode);
    if (external === undefined && !hasRoom(kind))
      refuse(task, `its ${kind} namespace is of a kind that cannot be saved yet`);
    this.all.push({
      kind,
      id,
      inode,
      pid: task.pid,
      role: isRoot ? "root" : "nested",
      externalKey: external,
    });
  }

  /**
   * A tree in a new pid namespace has at least a /proc of its own, and a mount namespace for it (proc-mount.ts). Where nothing else
   * differs, the mounts count as the engine's.
   */
  #withoutFreshProc(task: FrozenTask, inodes: NamespaceInodes): NamespaceInodes {
    const own = this.#ownInodes;
    if (this.#root !== undefined)
      return inodes.mnt === this.#freshProc ? { ...inodes, mnt: own.mnt } : inodes;
    if (inodes.mnt === own.mnt || inodes.pid === own.pid) return inodes;
    const difference = foreignMount(task.pid);
    if (difference === undefined) {
      this.#freshProc = inodes.mnt;
      return { ...inodes, mnt: own.mnt };
    }
    if (!hasRoom("mnt")) refuse(task, `its mount namespace has a mount of its own: ${difference}`);
    return inodes;
  }

  #inodesOf(pid: number): NamespaceInodes {
    const inodes = this.#tasks.get(pid);
    if (inodes === undefined)
      throw new RepriseError(
        "INTERNAL",
        `internal error: the namespaces of pid ${pid} are unknown`,
      );
    return inodes;
  }

  #idsOf(inodes: NamespaceInodes): NamespaceIds {
    const entries = NAMESPACE_KINDS.map(({ kind, field }) => [
      field,
      this.#ids.get(key(kind, inodeOfKind(inodes, kind))),
    ]);
    return Object.fromEntries(entries) as NamespaceIds;
  }
}

/**
 * A task in another pid namespace than its parent must be the first there, made with it: one that was brought in from outside (setns,
 * as by nsenter) cannot be made again.
 */
function checkPidNamespaces(tasks: readonly FrozenTask[]): void {
  for (const task of tasks) {
    const { nsPid } = task.status;
    const parent = task.parent?.status.nsPid.length ?? nsPid.length;
    const isFirst = nsPid.length === parent + 1 && nsPid.at(-1) === 1;
    if (nsPid.length === parent || isFirst) continue;
    refuse(task, "it was brought into its pid namespace from outside (setns)", END_IT);
  }
}

/** A kind that the kernel does not have has one namespace, without an inode. */
function key(kind: NamespaceKind, inode: number | undefined): string {
  return `${kind}:${inode ?? 0}`;
}

const END_IT =
  "It came into the tree from outside (nsenter, setns). End it before the dump, or have it enter all namespaces (nsenter -a, docker exec).";

function refuse(
  task: FrozenTask,
  why: string,
  hint = "Namespaces that the engine, another tree or nobody lives in cannot be saved with this one.",
): never {
  throw new RepriseError("UNSUPPORTED", `cannot dump pid ${task.pid} (${task.stat.comm}): ${why}`, {
    pid: task.pid,
    hint,
  });
}
