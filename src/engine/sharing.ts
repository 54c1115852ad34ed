// What tasks have in common besides open files: memory (CLONE_VM), directories and umask (CLONE_FS), tables of descriptors
// (CLONE_FILES) and signal handlers (CLONE_SIGHAND). All of it comes from clone alone, so tasks that share must make each other; what
// is shared is filled once, by the first of them. Pure.

import { RepriseError } from "../errors.ts";
import type { TaskKobjIdsEntry } from "../images/schema/messages.generated.ts";
import { CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_VM } from "../sys/abi/sched.ts";
import type { TreePlan } from "./plan-tree.ts";

/** What a task has in common with others. */
export interface Sharing {
  /** With which flags its creator makes it. */
  readonly cloneFlags: number;
  /** The tasks that have the same memory, the first one first, itself among them. */
  readonly memoryOf: readonly number[];
  readonly directoriesOf: readonly number[];
  readonly tableOf: readonly number[];
}

/** What planning needs of a task. */
interface SharingTask {
  readonly pid: number;
  readonly ids: TaskKobjIdsEntry;
}

const OBJECTS = [
  { field: "vm_id", flag: CLONE_VM, what: "memory" },
  { field: "fs_id", flag: CLONE_FS, what: "current directory" },
  { field: "files_id", flag: CLONE_FILES, what: "descriptors" },
  { field: "sighand_id", flag: CLONE_SIGHAND, what: "signal handlers" },
] as const;

type Field = (typeof OBJECTS)[number]["field"];

/**
 * Plans what the tasks of a tree share.
 *
 * @throws RepriseError UNSUPPORTED when one would have to be made by a task that has not what it shares
 */
export function planSharing(
  tree: TreePlan,
  tasks: ReadonlyMap<number, SharingTask>,
): Map<number, Sharing> {
  const creators = new Map<number, number>();
  const sharers = new Map<string, number[]>();
  const planned = new Map<number, Sharing>();
  const of = (task: SharingTask, field: Field): number[] => {
    const key = `${field} ${task.ids[field]}`;
    const known = sharers.get(key) ?? [];
    sharers.set(key, known);
    return known;
  };
  // Creators come before those they make.
  for (const node of tree.nodes) {
    for (const { pid } of [...node.early, ...node.late]) creators.set(pid, node.pid);
    const task = tasks.get(node.pid);
    if (task === undefined) continue;
    const creator = creators.get(node.pid);
    let cloneFlags = 0;
    for (const { field, flag, what } of OBJECTS) {
      const others = of(task, field);
      if (creator !== undefined && others.includes(creator)) cloneFlags |= flag;
      else if (others[0] !== undefined) throw unreachable(task.pid, { what, other: others[0] });
      others.push(task.pid);
    }
    planned.set(task.pid, {
      cloneFlags,
      memoryOf: of(task, "vm_id"),
      directoriesOf: of(task, "fs_id"),
      tableOf: of(task, "files_id"),
    });
  }
  return planned;
}

/** Names for what tasks have in common with others, by their pids. */
export function sharedNames(
  tasks: readonly {
    readonly pid: number;
    readonly live: { readonly ids: TaskKobjIdsEntry } | undefined;
  }[],
): Map<number, string[]> {
  const users = new Map<string, number[]>();
  for (const { pid, live } of tasks) {
    for (const { field } of live === undefined ? [] : OBJECTS) {
      const name = `${field} ${live?.ids[field]}`;
      users.set(name, [...(users.get(name) ?? []), pid]);
    }
  }
  const names = new Map<number, string[]>();
  for (const [name, pids] of users) {
    if (pids.length < 2) continue;
    for (const pid of pids) names.set(pid, [...(names.get(pid) ?? []), name]);
  }
  return names;
}

/** Whether a task is the first of those that have something in common: the one that fills it. */
export function isFirst(pid: number, sharers: readonly number[]): boolean {
  return sharers[0] === pid;
}

function unreachable(pid: number, { what, other }: { what: string; other: number }): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot restore pid ${pid}: it shares its ${what} with pid ${other}, which is neither its parent nor its sibling`,
    {
      pid,
      hint: "Nobody can make it again so: clone(2) gives these things only to a child or sibling.",
    },
  );
}
