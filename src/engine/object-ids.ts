// Which kernel objects the tasks of a tree share, by kcmp(2): address spaces, tables of descriptors, directories, signal handlers.

import { RepriseError } from "../errors.ts";
import { type CollectedNamespaces, type NamespaceIds } from "../objects/namespaces/collect.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import type { TaskKobjIdsEntry } from "../images/schema/messages.generated.ts";
import { KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_VM } from "../sys/abi/sched.ts";
import { KernelOrder } from "../sys/process.ts";

/** What CRIU's images number of a task besides its namespaces, and how kcmp(2) calls it. */
const SHAREABLE = {
  vm: KCMP_VM,
  files: KCMP_FILES,
  fs: KCMP_FS,
  sighand: KCMP_SIGHAND,
} as const;

export type Shareable = keyof typeof SHAREABLE;

/** Gives equal numbers to shared objects: address spaces, tables of descriptors, directories, signal handlers. */
export class ObjectIds {
  readonly own: TaskKobjIdsEntry;
  readonly #namespaces: { idsOf(pid: number): NamespaceIds };
  readonly #seen: Readonly<Record<Shareable, KernelOrder<{ pid: number; id: number }>>>;
  #next = 2;

  constructor(namespaces: CollectedNamespaces) {
    this.#namespaces = namespaces;
    this.own = { vm_id: 1, files_id: 1, fs_id: 1, sighand_id: 1, ...namespaces.own };
    const order = (what: Shareable): KernelOrder<{ pid: number; id: number }> =>
      new KernelOrder(SHAREABLE[what]);
    this.#seen = {
      vm: order("vm"),
      files: order("files"),
      fs: order("fs"),
      sighand: order("sighand"),
    };
  }

  /** The numbers of a task's objects, and which of these a task before it has, too. */
  of({ pid }: FrozenTask): { ids: TaskKobjIdsEntry; seen: Record<Shareable, boolean> } {
    const id = this.#next++;
    const find = (what: Shareable): number | undefined =>
      this.#seen[what].findOrAdd({ pid, id })?.id;
    const [vm, files, fs, sighand] = [find("vm"), find("files"), find("fs"), find("sighand")];
    return {
      ids: {
        vm_id: vm ?? id,
        files_id: files ?? id,
        fs_id: fs ?? id,
        sighand_id: sighand ?? id,
        ...this.#namespaces.idsOf(pid),
      },
      seen: {
        vm: vm !== undefined,
        files: files !== undefined,
        fs: fs !== undefined,
        sighand: sighand !== undefined,
      },
    };
  }
}

/** What is shared comes from clone alone: one that has it, too, must be the task's parent or sibling to make it again. */
export class SharersCheck {
  readonly #users = new Map<string, FrozenTask[]>();

  check(task: FrozenTask, ids: TaskKobjIdsEntry): void {
    for (const [what, field] of SHARED_FIELDS) {
      const key = `${field} ${ids[field]}`;
      const others = this.#users.get(key);
      if (others === undefined) {
        this.#users.set(key, [task]);
        continue;
      }
      const [first] = others;
      if (!others.some((other) => other === task.parent || other.parent === task.parent)) {
        throw new RepriseError(
          "UNSUPPORTED",
          `cannot dump pid ${task.pid}: it shares its ${what} with pid ${first?.pid}, which is neither its parent nor its sibling`,
          {
            pid: task.pid,
            hint: "Such processes (made by clone) can only be made again by each other.",
          },
        );
      }
      others.push(task);
    }
  }
}

const SHARED_FIELDS = [
  ["memory", "vm_id"],
  ["current directory", "fs_id"],
  ["descriptors", "files_id"],
  ["signal handlers", "sighand_id"],
] as const;
