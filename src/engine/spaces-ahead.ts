// Namespaces, mounts and cgroups of a tree, looked at and saved while it runs. What a task changes it changes by a call of its own, so
// in a tree that slept (sleepers.ts) they are the same, but for what others do from outside; in one that did not, the namespaces are
// looked at again, which is quick. Whether what is in them is the same, each room finds out for what it has saved.

import { RepriseError } from "../errors.ts";
import { log, withoutLog } from "../log.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import { CgroupsAhead } from "../objects/cgroups/ahead.ts";
import type { CgroupDumpOptions, CgroupTable } from "../objects/cgroups/dump.ts";
import { collectMounts, type MountNamespaces } from "../objects/mounts/collect.ts";
import {
  collectNamespaces,
  type CollectedNamespace,
  type CollectedNamespaces,
} from "../objects/namespaces/collect.ts";
import { NAMESPACE_ROOMS } from "../objects/namespaces/registry.ts";
import type {
  NamespacesDump,
  NamespacesDumpOptions,
  SavedAhead,
} from "../objects/namespaces/room.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readProcText } from "../proc/procfs.ts";
import type { FrozenTree } from "./freeze.ts";
import { asRepriseError } from "./system-error.ts";

export interface SpacesOptions extends NamespacesDumpOptions {
  readonly cgroups: CgroupDumpOptions;
}

/** A namespace that was saved ahead, and the images of it. */
interface Saved {
  readonly ahead: SavedAhead;
  readonly names: readonly string[];
}

export class SpacesAhead implements Disposable {
  #namespaces: CollectedNamespaces;
  #mounts: MountNamespaces;
  readonly #images: ImageSetWriter;
  readonly #options: SpacesOptions;
  readonly #tasks: ReadonlySet<number>;
  /** What the tables of mounts said just before. */
  readonly #mountTables: readonly { readonly pid: number; readonly text: string }[];
  /** By their ids. */
  readonly #saved = new Map<number, Saved>();
  #cgroups: CgroupsAhead | undefined;

  /** Looks at running tasks, the root first; undefined when they cannot be looked at yet. */
  static of(
    tasks: readonly FrozenTask[],
    images: ImageSetWriter,
    options: SpacesOptions,
  ): SpacesAhead | undefined {
    const ahead = undefinedIfRefused("namespaces", () => new SpacesAhead(tasks, images, options));
    if (ahead === undefined) return undefined;
    try {
      ahead.#save(tasks);
      return ahead;
    } catch (error) {
      ahead.discard();
      throw error;
    }
  }

  private constructor(
    tasks: readonly FrozenTask[],
    images: ImageSetWriter,
    options: SpacesOptions,
  ) {
    this.#images = images;
    this.#options = options;
    this.#tasks = new Set(tasks.map(({ pid }) => pid));
    this.#namespaces = this.#collect(tasks);
    const own = this.#namespaces.all.filter(({ kind }) => kind === "mnt").map(({ pid }) => pid);
    const pids = own.length === 0 ? [] : [process.pid, ...own];
    this.#mountTables = pids.map((pid) => ({ pid, text: readMountTable(pid) }));
    this.#mounts = collectMounts(this.#namespaces, options);
  }

  get namespaces(): CollectedNamespaces {
    return this.#namespaces;
  }

  get mounts(): MountNamespaces {
    return this.#mounts;
  }

  /** Whether namespaces and mounts are those of the stopped tree. `slept`: none of its tasks has done anything since. */
  holds({ tasks }: FrozenTree, { slept }: { readonly slept: boolean }): boolean {
    const alive = tasks.filter(({ state }) => state !== "zombie");
    const isKnown = slept && alive.every(({ pid }) => this.#tasks.has(pid));
    if (!isKnown && !this.#areSame(alive)) return false;
    const others = this.#mountTables.filter(({ pid, text }) => readMountTable(pid) !== text);
    if (others.length === 0) return true;
    // Mounts of outside come and go on a busy host. They matter where the tree has the same ones.
    return others.every(({ pid }) => pid === process.pid) && this.#hasSameMounts();
  }

  /** Ends the saving of a namespace; false when it has to be saved by `write` of its room. */
  finish({ id, kind }: CollectedNamespace, dump: NamespacesDump): boolean {
    const saved = this.#saved.get(id);
    if (saved === undefined) return false;
    if (saved.ahead.finish(dump)) return true;
    log.debug(`${kind} namespace ${id} is saved again: it has changed`);
    this.#images.takeBack(saved.names);
    return false;
  }

  /** Whether the cgroups of a stopped tree have been saved. */
  hasSaved(cgroups: CgroupTable): boolean {
    return this.#cgroups?.holds(cgroups) === true;
  }

  /** Takes everything back: it is of no use. */
  discard(): void {
    for (const { names } of this.#saved.values()) this.#images.takeBack(names);
    this.#cgroups?.takeBack();
    this[Symbol.dispose]();
    this.#mounts.close();
  }

  [Symbol.dispose](): void {
    for (const { ahead } of this.#saved.values()) ahead[Symbol.dispose]();
    this.#saved.clear();
    this.#cgroups?.[Symbol.dispose]();
    this.#cgroups = undefined;
  }

  #collect(tasks: readonly FrozenTask[]): CollectedNamespaces {
    return collectNamespaces(tasks, { external: this.#options.external ?? [] });
  }

  #save(tasks: readonly FrozenTask[]): void {
    const [root] = tasks;
    if (root === undefined) return;
    const dump: NamespacesDump = {
      images: this.#images,
      options: this.#options,
      namespaces: this.#namespaces,
      mounts: this.#mounts,
      rootPid: root.pid,
    };
    for (const namespace of this.#namespaces.all) {
      if (namespace.externalKey === undefined) this.#saveOne(namespace, dump);
    }
    const pids = tasks.map(({ pid }) => pid);
    const saveCgroups = (): CgroupsAhead | undefined =>
      CgroupsAhead.of(pids, {
        images: this.#images,
        namespaces: cgroupNamespaces(this.#namespaces),
        options: this.#options.cgroups,
      });
    const names = this.#images.writtenIn(() => {
      this.#cgroups = undefinedIfRefused("cgroups", () => withoutLog(saveCgroups));
    });
    if (this.#cgroups === undefined) this.#images.takeBack(names);
  }

  #saveOne(namespace: CollectedNamespace, dump: NamespacesDump): void {
    const room = NAMESPACE_ROOMS.find(({ kind }) => kind === namespace.kind);
    let ahead: SavedAhead | undefined;
    const names = this.#images.writtenIn(() => {
      ahead = undefinedIfRefused(`${namespace.kind} namespace ${namespace.id}`, () =>
        room?.saveAhead?.(namespace, dump),
      );
    });
    if (ahead === undefined) this.#images.takeBack(names);
    else this.#saved.set(namespace.id, { ahead, names });
  }

  #hasSameMounts(): boolean {
    const now = collectMounts(this.#namespaces, this.#options);
    try {
      return describeMounts(now) === describeMounts(this.#mounts);
    } finally {
      now.close();
    }
  }

  /** Whether the tasks, which may be others by now, live in the same namespaces. */
  #areSame(alive: readonly FrozenTask[]): boolean {
    // Maps of ids may be written once, and a proc file system tells of a pid namespace only while that has a first process.
    if (this.#namespaces.all.some(({ kind, role }) => kind === "user" || role === "nested"))
      return false;
    const now = this.#collect(alive);
    if (describe(now) !== describe(this.#namespaces)) return false;
    const before = this.#mounts;
    this.#namespaces = now;
    this.#mounts = {
      ...before,
      ofTask: (pid) =>
        before.all.find(({ namespace: { id } }) => id === now.ofTask(pid, "mnt")?.id),
    };
    return true;
  }
}

/** A running task may end, or change what is looked at; files may be too many to be open. What cannot be saved the dump meets again. */
function undefinedIfRefused<T>(what: string, step: () => T): T | undefined {
  try {
    return step();
  } catch (thrown) {
    const error = asRepriseError(thrown, `look at the ${what} of a running tree`);
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`${what} will be saved later: ${error.message}`);
    return undefined;
  }
}

function describe({ own, all, relations }: CollectedNamespaces): string {
  return JSON.stringify([own, all, relations]);
}

function describeMounts({ all }: MountNamespaces): string {
  return JSON.stringify(all.map(({ namespace, entries }) => [namespace.id, entries]));
}

/** Those of cgroups that the root task is not in. */
export function cgroupNamespaces({ all }: CollectedNamespaces): CollectedNamespace[] {
  return all.filter(({ kind, role }) => kind === "cgroup" && role === "nested");
}

function readMountTable(pid: number): string {
  return readProcText(pid, "mountinfo");
}
