// Cgroups at restore. A restored tree lives under the cgroup that the caller named (--cgroup-root), else under the one into which
// the caller put the restorer, and only when neither says otherwise where it was saved. Directories that are missing are made
// and get the saved settings; which of those that are there get them too is a question of the mode (criu(8), --manage-cgroups).

import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type {
  CgMemberEntry,
  CgSetEntry,
  CgroupDirEntry,
  CgroupPropEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { errnoOf } from "../../proc/procfs.ts";
import type { CgroupMode, CgroupRoot } from "./dump.ts";
import { describeHierarchy, Hierarchies, isWithin } from "./hierarchies.ts";
import type { Placement } from "./placement.ts";
import { controllerOf, isBeforeTasks, isFreezerState, isMemberList } from "./properties.ts";

export interface CgroupRestoreOptions {
  readonly mode: CgroupMode;
  /** Whether the caller asked for the mode in so many words: then the recorded cgroups count more than where the restorer is. */
  readonly isModeExplicit?: boolean;
  /** Cgroups that stand for the recorded roots. */
  readonly roots?: readonly CgroupRoot[];
  readonly yard?: string;
}

/** Where the cgroups of a set go, and what is made for them. */
export class CgroupRestore {
  readonly #set: LoadedSet;
  readonly #options: CgroupRestoreOptions;
  readonly #placement: Placement | undefined;
  readonly #hierarchies: Hierarchies;
  /** What the root of the tree in a hierarchy becomes: [recorded path, new path]. */
  readonly #moves = new Map<string, readonly [string, string]>();
  readonly #missing = new Set<string>();
  /** Directories that were made, in order. */
  readonly #made: string[] = [];
  /** Directories that get their settings once tasks are there. */
  readonly #later: {
    readonly name: string;
    readonly directory: string;
    readonly entry: CgroupDirEntry;
  }[] = [];

  constructor(
    set: LoadedSet,
    options: CgroupRestoreOptions & { readonly placement: Placement | undefined },
  ) {
    this.#set = set;
    this.#options = options;
    this.#placement = options.placement;
    this.#hierarchies = new Hierarchies({ yard: options.yard, mayMake: true });
    for (const { name, path, cgns_prefix } of this.#rootMembers()) {
      const prefix =
        (cgns_prefix ?? 0) > 0 ? path.slice(0, cgns_prefix) : this.#recordedRoot(name, path);
      const wanted = rootFor(name, options);
      if (wanted !== undefined) this.#moves.set(name, [prefix, wanted]);
    }
  }

  /** Whether the set says anything about cgroups that counts. */
  get #isSaved(): boolean {
    return this.#options.mode !== "ignore" && (this.#set.cgroup?.sets.length ?? 0) > 0;
  }

  /** Makes missing directories. @throws RepriseError; `giveUp` takes back what was made. */
  prepare(): void {
    if (!this.#isSaved) return;
    for (const { cnames, dirs } of this.#set.cgroup?.controllers ?? []) {
      const name = cnames.join(",");
      if (!this.#isReachable(name) || !this.#isMoved(name)) continue;
      for (const dir of dirs)
        this.#prepareDirectory(name, this.#moved(name, `/${dir.dir_name}`), dir);
    }
  }

  /**
   * Moves the root task, given by its pid here, to the root of its cgroup namespace.
   *
   * @returns whether it is there now; `enterRoot` comes after the namespace is made then, and else before.
   */
  enterNamespaceRoot(pid: number): boolean {
    if (!this.#isSaved) return false;
    const members = this.#rootMembers().filter(({ cgns_prefix }) => (cgns_prefix ?? 0) > 0);
    for (const { name, path, cgns_prefix } of members) {
      this.#move(pid, {
        name,
        path: this.#moved(name, path.slice(0, cgns_prefix)),
        isThread: false,
      });
    }
    return members.length > 0;
  }

  /** Moves the root task to the root of a cgroup namespace that other tasks of the tree live in; `enterRoot` takes it back. */
  enterNested(pid: number, id: number): void {
    const roots = this.#set.cgroup?.namespaces.find((one) => one.id === id)?.roots ?? [];
    if (!this.#isSaved) return;
    for (const { name, path } of roots) {
      if (this.#rootMembers().some((member) => member.name === name && this.#leaves(member)))
        this.#move(pid, { name, path: this.#moved(name, path), isThread: false });
    }
  }

  /** Moves the root task, or the init above it, into its cgroups. Whatever it makes is born there. */
  enterRoot(pid: number): void {
    const members = this.#isSaved
      ? this.#rootMembers().filter((member) => this.#leaves(member))
      : [];
    for (const { name, path } of members) {
      this.#move(pid, { name, path: this.#moved(name, path), isThread: false });
    }
    for (const name of this.#placement?.hierarchies ?? []) {
      if (members.some((member) => member.name === name)) continue;
      const path = this.#placement?.path(name);
      if (path !== undefined) this.#move(pid, { name, path, isThread: false });
    }
  }

  /**
   * Moves a task or thread into its cgroups, unless it was born there.
   *
   * @param thread Its id and its process's here, its set, and the one that it was born in (the root task's, its process's).
   */
  enter(thread: {
    readonly id: number;
    readonly leader: number;
    readonly set: number | undefined;
    readonly born: number | undefined;
  }): void {
    if (!this.#isSaved || thread.set === undefined || thread.set === thread.born) return;
    for (const member of this.#find(thread.set)?.ctls ?? []) {
      if (!this.#leaves(member)) continue;
      const { name, path } = member;
      this.#move(thread.id, {
        name,
        path: this.#moved(name, path),
        isThread: thread.id !== thread.leader,
      });
    }
  }

  /** Writes the settings that come when all tasks are in their places. */
  finish(): void {
    for (const { name, directory, entry } of this.#later) {
      for (const property of entry.properties) {
        if (isBeforeTasks(name, property.name)) continue;
        this.#writeProperty(directory, property);
      }
    }
    this.#hierarchies.close();
  }

  /** Removes the directories that were made; for a restore that failed. */
  giveUp(): void {
    for (const directory of this.#made.splice(0).toReversed()) {
      try {
        rmdirSync(directory);
      } catch (error) {
        log.warn(
          `cannot remove cgroup ${directory} of the failed restore: ${errnoOf(error) ?? ""}`,
        );
      }
    }
  }

  /** What becomes of the tree's cgroups, in lines for people. */
  describe(): string[] {
    if (!this.#isSaved) return [];
    return this.#rootMembers().flatMap(({ name, path }) => {
      const moved = this.#moved(name, path);
      return moved === "/" ? [] : [`cgroup ${moved} (${describeHierarchy(name)})`];
    });
  }

  #rootMembers(): readonly CgMemberEntry[] {
    const root = this.#set.tasks.get(this.#set.rootPid)?.core;
    const id = root?.thread_core?.cg_set ?? root?.tc?.cg_set;
    return id === undefined ? [] : (this.#find(id)?.ctls ?? []);
  }

  /** The cgroup that all of the tree was below, in a hierarchy where the root task was in `path`. */
  #recordedRoot(name: string, path: string): string {
    const controller = this.#set.cgroup?.controllers.find(
      ({ cnames }) => cnames.join(",") === name,
    );
    const heads = (controller?.dirs ?? []).map(({ dir_name }) => `/${dir_name}`);
    const common = heads.reduce(commonPath, heads[0] ?? path);
    return common !== "/" && isWithin(path, common) ? common : path;
  }

  #find(id: number): CgSetEntry | undefined {
    return this.#set.cgroup?.sets.find((set) => set.id === id);
  }

  /** Whether a member leaves the restorer's cgroup. */
  #leaves({ name, own }: CgMemberEntry): boolean {
    return own !== true || this.#moves.has(name);
  }

  /** Whether any task left the dumper's own cgroup in a hierarchy, or a root is named for it. */
  #isMoved(name: string): boolean {
    const members = (this.#set.cgroup?.sets ?? []).flatMap(({ ctls }) =>
      ctls.filter((member) => member.name === name),
    );
    return this.#moves.has(name) || members.some(({ own }) => own !== true);
  }

  /** A set of v1 has hierarchies that a machine with v2 lacks, and the other way round; the caller says where tasks go. */
  #isReachable(name: string): boolean {
    if (this.#hierarchies.find(name, "/") !== undefined || !this.#moves.has(name)) return true;
    if (!this.#missing.has(name)) {
      log.warn(`there is no ${describeHierarchy(name)} here: what was set in it is lost`);
      this.#missing.add(name);
    }
    return false;
  }

  #moved(name: string, path: string): string {
    const move = this.#moves.get(name);
    if (move === undefined) return path;
    const [from, to] = move;
    if (!isWithin(path, from)) {
      // A head above the root of the tree, such as the common one of strays: its own settings stay with it.
      return path;
    }
    const rest = from === "/" ? path.slice(1) : path.slice(from.length + 1);
    return rest === "" ? to : join(to, rest);
  }

  #prepareDirectory(name: string, path: string, entry: CgroupDirEntry): void {
    const { mode } = this.#options;
    const directory = this.#hierarchies.directory(name, path);
    const isThere = statSync(directory, { throwIfNoEntry: false }) !== undefined;
    if (path === "/") {
      // The root of a hierarchy is the machine's.
    } else if (!isThere) {
      if (mode === "none" || mode === "props") {
        throw new RepriseError(
          "UNSUPPORTED",
          `cannot restore the cgroup ${path} of the ${describeHierarchy(name)}: there is no such cgroup`,
          { hint: `With --manage-cgroups=${mode} none are made: make it, or use the mode soft.` },
        );
      }
      this.#make(directory, { name, entry });
      this.#setPermissions(directory, entry.dir_perms);
      for (const property of entry.properties) {
        if (isBeforeTasks(name, property.name)) this.#writeProperty(directory, property);
      }
      this.#later.push({ name, directory, entry });
    } else if (mode === "strict") {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore the cgroup ${path} of the ${describeHierarchy(name)}: it exists`,
        {
          hint: "With --manage-cgroups=strict all are made anew: remove it, or use the mode soft.",
        },
      );
    } else if (mode === "full" || mode === "props") {
      this.#setPermissions(directory, entry.dir_perms);
      this.#later.push({ name, directory, entry });
    }
    for (const child of entry.children) {
      this.#prepareDirectory(name, join(path, child.dir_name), child);
    }
  }

  /** Those above it that are missing, too, get what it needs; of others nothing is changed. */
  #make(directory: string, what: { readonly name: string; readonly entry: CgroupDirEntry }): void {
    const parent = dirname(directory);
    if (statSync(parent, { throwIfNoEntry: false }) === undefined) this.#make(parent, what);
    if (what.name === "" && this.#made.includes(parent)) passOn(parent, what.entry);
    attempt(`make the cgroup ${directory}`, "mkdir", () => mkdirSync(directory, 0o755));
    this.#made.push(directory);
    if (what.name.split(",").includes("cpuset")) inheritCpuset(directory);
  }

  #setPermissions(path: string, perms: CgroupDirEntry["dir_perms"]): void {
    if (perms === undefined) return;
    attempt(`give ${path} its owner and mode`, "chown", () => {
      chownSync(path, perms.uid, perms.gid);
      chmodSync(path, perms.mode & 0o7777);
    });
  }

  #writeProperty(directory: string, { name, value, perms }: CgroupPropEntry): void {
    // Whether the caller had the tree frozen for the dump is nothing to bring back.
    if (isFreezerState(name)) return;
    const file = join(directory, name);
    if (name !== "devices.list" && statSync(file, { throwIfNoEntry: false }) === undefined) {
      if (!isDefault(name, value))
        log.warn(`${file} is missing, "${value}" is lost: is its controller on?`);
      return;
    }
    if (name === "devices.list") {
      writeSetting(join(directory, "devices.deny"), "a");
      for (const line of lines(value)) writeSetting(join(directory, "devices.allow"), line);
      return;
    }
    this.#setPermissions(file, perms);
    if (isMemberList(name) || isDefault(name, value)) return;
    if (name === "cgroup.subtree_control") {
      const wanted = value.split(" ").filter((controller) => controller !== "");
      if (wanted.length > 0)
        writeSetting(file, wanted.map((controller) => `+${controller}`).join(" "));
    } else if (name === "net_prio.ifpriomap") {
      // Interfaces may have gone; a priority of 0 is what each has.
      for (const line of lines(value)) if (!line.endsWith(" 0")) tryWriteSetting(file, line);
    } else if (isByLine(name)) {
      for (const line of lines(value)) writeSetting(file, line);
    } else if (name === "memory.kmem.limit_in_bytes") {
      tryWriteSetting(file, value); // newer kernels have the file and refuse every value (EOPNOTSUPP)
    } else writeSetting(file, value);
  }

  #move(
    id: number,
    to: { readonly name: string; readonly path: string; readonly isThread: boolean },
  ): void {
    if (!this.#isReachable(to.name)) return;
    const directory = this.#hierarchies.directory(to.name, to.path);
    const list = !to.isThread ? "cgroup.procs" : to.name === "" ? "cgroup.threads" : "tasks";
    attempt(
      `move task ${id} into the cgroup ${to.path} of the ${describeHierarchy(to.name)}`,
      "write",
      () => writeFileSync(join(directory, list), String(id), { flag: "r+" }),
    );
  }
}

/** The new root of the tree in a hierarchy, if the caller said or showed one. */
function rootFor(
  name: string,
  {
    roots,
    placement,
    isModeExplicit,
  }: CgroupRestoreOptions & { readonly placement: Placement | undefined },
): string | undefined {
  const named = roots?.find(({ controller }) =>
    controller === undefined ? false : controller === name || name.split(",").includes(controller),
  );
  if (named !== undefined) return named.path;
  const forAll = roots?.find(({ controller }) => controller === undefined);
  if (forAll !== undefined) return forAll.path;
  return isModeExplicit === true ? undefined : placement?.path(name);
}

function commonPath(a: string, b: string): string {
  let path = a;
  while (!isWithin(b, path)) path = dirname(path);
  return path;
}

/** Turns the controllers on for the children of a cgroup that they had settings of. */
function passOn(parent: string, { properties }: CgroupDirEntry): void {
  const wanted = new Set(properties.flatMap(({ name }) => controllerOf(name) ?? []));
  const here = readFileSync(join(parent, "cgroup.controllers"), "utf8").trim().split(" ");
  for (const controller of here)
    if (wanted.has(controller))
      tryWriteSetting(join(parent, "cgroup.subtree_control"), `+${controller}`);
}

/** A new cpuset of v1 has no processors and takes no tasks; where none were saved, those above it are meant. */
function inheritCpuset(directory: string): void {
  for (const name of ["cpuset.cpus", "cpuset.mems"]) {
    const file = join(directory, name);
    const above = join(dirname(directory), name);
    if (existsSync(file) && readFileSync(file, "utf8").trim() === "" && existsSync(above))
      tryWriteSetting(file, readFileSync(above, "utf8").trim());
  }
}

/** What is above it stands for none: the kernel tells the largest number of whole pages. */
const NO_LIMIT = 2 ** 62;

/** Values that a new cgroup has anyhow, and that some kernels refuse to be told. */
function isDefault(name: string, value: string): boolean {
  if (name === "cgroup.type") return value !== "threaded";
  if (name.startsWith("hugetlb.")) return value === "max" || Number(value) > NO_LIMIT;
  // Of an idle cgroup it tells 0, and takes 1 and more.
  if (name === "cpu.weight") return value === "0";
  if (name === "cpu.idle" || name === "cpu.max.burst") return value === "0";
  if (name === "memory.swappiness") return value === "60";
  if (name === "memory.oom_control") return value === "0";
  if (name === "memory.use_hierarchy") return value === "1";
  return value === "" && name !== "cpuset.cpus" && name !== "cpuset.mems";
}

function isByLine(name: string): boolean {
  return name === "io.max" || name === "io.weight";
}

function lines(value: string): string[] {
  return value.split("\n").filter((line) => line !== "");
}

function writeSetting(file: string, value: string): void {
  attempt(`write "${value}" into ${file}`, "write", () =>
    writeFileSync(file, value, { flag: "r+" }),
  );
}

function tryWriteSetting(file: string, value: string): void {
  try {
    writeFileSync(file, value, { flag: "r+" });
  } catch (error) {
    log.warn(`cannot write "${value}" into ${file}: ${errnoOf(error) ?? "unknown error"}`);
  }
}

function attempt(what: string, call: string, action: () => void): void {
  try {
    action();
  } catch (error) {
    const errno = errnoOf(error) ?? "unknown error";
    throw new RepriseError("SYSCALL", `cannot ${what}: ${call}: ${errno}`, {
      syscall: call,
      errno,
      hint: "Leave cgroups alone with --manage-cgroups=ignore, or name another root with --cgroup-root.",
      cause: error,
    });
  }
}
