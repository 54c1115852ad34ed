// Cgroups at dump: which set of cgroups every thread is in (cgroup.img: sets), and the directories with their settings
// (controllers). Sets that equal the engine's own are not saved: at restore such threads stay where the restorer is.

import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import type { MessageInput } from "../../images/codec.ts";
import type {
  CgMemberEntry,
  CgroupDirEntry,
  CgroupEntry,
  CgroupPropEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { parseCgroups, readCgroups, type CgroupEntry as Member } from "../../proc/cgroup.ts";
import { readNamespace } from "../../proc/ns.ts";
import type { CollectedNamespace } from "../namespaces/collect.ts";
import { PLAIN_FILES, type CgroupFiles } from "./files.ts";
import { Hierarchies, hierarchyName, isWithin } from "./hierarchies.ts";
import { insideCgroupNamespace } from "./namespace.ts";
import { ThreadCgroups } from "./thread-cgroups.ts";
import { isMemberList, propertyNames, type PropertyLists } from "./properties.ts";
import { frontPid } from "../../sys/front.ts";

/** What is done about cgroups; see criu(8), --manage-cgroups. */
export type CgroupMode = "ignore" | "none" | "props" | "soft" | "full" | "strict";

export interface CgroupDumpOptions {
  /** With "ignore" nothing is saved. */
  readonly mode: CgroupMode;
  /** Changes to the lists of settings. */
  readonly properties?: PropertyLists;
  /** Controllers whose settings are saved. @default all */
  readonly dumpedControllers?: readonly string[];
  /** Directory under which the hierarchies are mounted by their names (--cgroup-yard). @default where they are mounted */
  readonly yard?: string;
  /** Roots that stand for the recorded ones: only what is below them is walked. */
  readonly roots?: readonly CgroupRoot[];
}

/** The cgroup that stands for the root of the tree in one hierarchy, or in all. */
export interface CgroupRoot {
  readonly controller?: string | undefined;
  readonly path: string;
}

/** Number of the engine's own set: tasks with it are not moved at restore. */
export const OWN_CGROUP_SET = 1;

/** A cgroup to read, and the paths of the tree's cgroups in its hierarchy. */
interface Place {
  readonly directory: string;
  readonly name: string;
  readonly path: string;
  readonly dirName: string;
  readonly ways: readonly string[];
}

interface CgroupSet {
  readonly id: number;
  readonly members: readonly Member[];
}

/** A task as far as its cgroups are concerned. */
export interface TaskThreads {
  readonly pid: number;
  /** Undefined for the root task. */
  readonly parent: unknown;
  readonly threads: readonly { readonly tid: number }[];
}

/** The cgroups of a tree. */
export class CgroupTable {
  readonly #options: CgroupDumpOptions;
  readonly #sets = new Map<string, CgroupSet>();
  readonly #ofThread = new Map<number, number>();
  /** Length of the path to the root of the tree's cgroup namespace, by hierarchy. */
  readonly #prefixes = new Map<string, number>();
  /** The engine's own cgroups, by hierarchy. */
  readonly #own = new Map<string, string>();
  readonly #namespaces: { readonly id: number; readonly roots: CgMemberEntry[] }[] = [];
  #hierarchies: Hierarchies | undefined;
  #files: CgroupFiles = PLAIN_FILES;

  constructor(options: CgroupDumpOptions) {
    this.#options = options;
    if (options.mode === "ignore") return;
    const own = readCgroups(frontPid());
    this.#setOf(own);
    for (const member of own) this.#own.set(hierarchyName(member), member.path);
  }

  /** Looks at the threads of a task, but for those that are known to be where the first is; the root task comes first. */
  add(task: TaskThreads, alike: ReadonlySet<number> = new Set()): void {
    if (this.#options.mode === "ignore") return;
    // Most threads of a process are where its others are.
    const known = new Map<string, number>();
    const tids = task.threads.map(({ tid }) => tid);
    const [first] = tids;
    using reader = new ThreadCgroups(
      task.pid,
      tids.filter((tid) => !alike.has(tid)),
    );
    for (const tid of tids) {
      if (alike.has(tid) && first !== undefined) {
        this.#ofThread.set(tid, this.#ofThread.get(first) ?? OWN_CGROUP_SET);
        continue;
      }
      const text = reader.text(tid);
      const set = known.get(text) ?? this.#setOf(parseCgroups(text));
      known.set(text, set);
      this.#ofThread.set(tid, set);
    }
    if (task.parent === undefined) this.#findNamespaceRoot(task);
  }

  /** Looks at the cgroup namespaces of tasks that do not share the root task's. */
  addNamespaces(namespaces: readonly CollectedNamespace[]): void {
    if (this.#options.mode === "ignore") return;
    for (const { id, pid } of namespaces) {
      const roots = [...namespaceRoots(pid)].map(([name, path]) => ({ name, path }));
      this.#namespaces.push({ id, roots });
    }
  }

  /** Number of a thread's set; undefined when cgroups are ignored. */
  setOf(tid: number): number | undefined {
    return this.#options.mode === "ignore"
      ? undefined
      : (this.#ofThread.get(tid) ?? OWN_CGROUP_SET);
  }

  /** cgroup.img, from files as they are; undefined when all threads are in the engine's own cgroups. */
  entry(): MessageInput<CgroupEntry> | undefined {
    try {
      return this.entryFrom(PLAIN_FILES);
    } finally {
      this.close();
    }
  }

  /** The same from files by their paths, which lead somewhere until `close`. */
  entryFrom(files: CgroupFiles): MessageInput<CgroupEntry> | undefined {
    const sets = [...this.#sets.values()].filter(({ id }) => id !== OWN_CGROUP_SET);
    if (sets.length === 0) return undefined;
    this.#files = files;
    return this.#entryOf(sets);
  }

  /** Lets go of hierarchies that are mounted nowhere here. */
  close(): void {
    this.#hierarchies?.close();
  }

  /** All that decides on the entry but the files of cgroups: equal for tables of equal trees. */
  get key(): string {
    const sets = [...this.#sets].map(([key, { id }]) => [id, key]);
    return JSON.stringify([sets, [...this.#prefixes], [...this.#own], this.#namespaces]);
  }

  #entryOf(sets: readonly CgroupSet[]): MessageInput<CgroupEntry> {
    return {
      sets: sets.map(({ id, members }) => ({
        id,
        ctls: members.map((member) => this.#memberEntry(member)),
      })),
      controllers: this.#controllers(sets),
      ...(this.#namespaces.length === 0 ? {} : { namespaces: this.#namespaces }),
    };
  }

  #setOf(members: readonly Member[]): number {
    const sorted = members.toSorted((a, b) => compare(hierarchyName(a), hierarchyName(b)));
    const key = sorted.map((member) => `${hierarchyName(member)}:${member.path}`).join("\n");
    const known = this.#sets.get(key);
    if (known !== undefined) return known.id;
    const id = this.#sets.size + 1;
    this.#sets.set(key, { id, members: sorted });
    return id;
  }

  #memberEntry(member: Member): MessageInput<CgMemberEntry> {
    const name = hierarchyName(member);
    const prefix = this.#prefixes.get(name) ?? 0;
    return {
      name,
      path: member.path,
      ...(prefix > 0 ? { cgns_prefix: prefix } : {}),
      ...(this.#isOwn(name, member.path) ? { own: true } : {}),
    };
  }

  /** Whether the engine is in a cgroup too: as with whole sets that it shares, tasks then stay where the restorer is. */
  #isOwn(name: string, path: string): boolean {
    return this.#own.get(name) === path && !this.#prefixes.has(name);
  }

  /** In a cgroup namespace of its own the task sees the rest of the path only. */
  #findNamespaceRoot(root: TaskThreads): void {
    if (readNamespace(root.pid, "cgroup") === readNamespace(process.pid, "cgroup")) return;
    for (const [name, path] of namespaceRoots(root.pid))
      this.#prefixes.set(name, path === "/" ? 0 : path.length);
  }

  #controllers(sets: readonly CgroupSet[]): MessageInput<CgroupEntry>["controllers"] {
    const names = new Set(sets.flatMap(({ members }) => members.map(hierarchyName)));
    return [...names].map((name) => {
      const paths = sets.flatMap(({ members }) =>
        members.filter((member) => hierarchyName(member) === name).map(({ path }) => path),
      );
      const heads = topmost([...paths, ...this.#rootsOf(name)]);
      const dirs = paths.every((path) => this.#isOwn(name, path))
        ? heads.map((path) => ({ dir_name: path.slice(1), properties: [], children: [] }))
        : heads.map((path) => this.#directory(name, path, paths));
      return { cnames: name.split(","), dirs, is_threaded: name !== "" || dirs.some(isThreaded) };
    });
  }

  /** Roots that the caller named, where they are above cgroups of the tree. */
  #rootsOf(name: string): string[] {
    return (this.#options.roots ?? [])
      .filter(({ controller }) => controller === undefined || name.split(",").includes(controller))
      .map(({ path }) => path);
  }

  #directory(name: string, path: string, ways: readonly string[]): MessageInput<CgroupDirEntry> {
    this.#hierarchies ??= new Hierarchies({ yard: this.#options.yard });
    const directory = this.#hierarchies.directory(name, path);
    return this.#readDirectory({ directory, name, path, dirName: path.slice(1), ways });
  }

  #readDirectory(place: Place): MessageInput<CgroupDirEntry> {
    const { directory, name, path, dirName, ways } = place;
    const children = this.#files
      .children(directory)
      .map((child) => ({ name: child, path: path === "/" ? `/${child}` : `${path}/${child}` }))
      // Below the root of a hierarchy are the cgroups of the whole machine: those of the tree are of interest there.
      .filter((child) => path !== "/" || ways.some((way) => isWithin(way, child.path)));
    return {
      dir_name: dirName,
      properties: this.#properties(directory, name),
      dir_perms: this.#files.permissions(directory) ?? gone(directory),
      children: children.map((child) =>
        this.#readDirectory({
          directory: join(directory, child.name),
          name,
          path: child.path,
          dirName: child.name,
          ways,
        }),
      ),
    };
  }

  #properties(directory: string, name: string): MessageInput<CgroupPropEntry>[] {
    const names = propertyNames(name, {
      changes: this.#options.properties ?? new Map(),
      ...(this.#options.dumpedControllers === undefined
        ? {}
        : { dumpedControllers: this.#options.dumpedControllers }),
    });
    return names.flatMap((property) => {
      const file = join(directory, property);
      const perms = this.#files.permissions(file);
      if (perms === undefined) return []; // not every kernel, and not the root of a hierarchy, has all
      const text = isMemberList(property) ? "" : this.#files.value(file);
      return text === undefined ? [] : [{ name: property, value: valueOf(property, text), perms }];
    });
  }
}

function valueOf(name: string, text: string): string {
  return name === "memory.oom_control"
    ? (/^oom_kill_disable (\d+)/.exec(text)?.[1] ?? "0")
    : text.replace(/\n$/, "");
}

function gone(directory: string): never {
  throw new RepriseError("SYSCALL", `cannot examine the cgroup ${directory}: stat: ENOENT`, {
    syscall: "stat",
    errno: "ENOENT",
  });
}

function isThreaded({ properties }: MessageInput<CgroupDirEntry>): boolean {
  return (properties ?? []).some(
    ({ name, value }) => name === "cgroup.type" && value === "threaded",
  );
}

/** The root of a task's cgroup namespace, by hierarchy: what its own paths in it lack. */
function namespaceRoots(pid: number): Map<string, string> {
  const inside = insideCgroupNamespace(pid, () => readCgroups(pid));
  const roots = new Map<string, string>();
  for (const member of readCgroups(pid)) {
    const name = hierarchyName(member);
    const seen = inside.find((other) => hierarchyName(other) === name)?.path ?? "/";
    // Somebody moved it away from below the root: crun 1.8 restores into the recorded cgroup and moves a clone to its own then.
    const isOutside = seen.startsWith("/..");
    if (isOutside)
      log.loss(
        `pid ${pid}: its cgroup ${member.path} is outside of its cgroup namespace, whose root it will be`,
      );
    const below = isOutside || seen === "/" ? 0 : seen.length;
    const root = member.path.slice(0, member.path.length - below);
    roots.set(name, root === "" ? "/" : root);
  }
  return roots;
}

/** The paths that have none of the others above them. */
function topmost(paths: readonly string[]): string[] {
  const all = [...new Set(paths)].toSorted(compare);
  return all.filter((path) => !all.some((other) => other !== path && isWithin(path, other)));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
