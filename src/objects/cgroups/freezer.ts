// The freezer of a cgroup: one write stops all of its tasks at once, so that a tree that forks all the time can be seized. Tasks
// of a frozen v1 cgroup do not reach a ptrace stop before they are thawed (kernel/freezer.c), those of a v2 cgroup do; in both
// they are seized while frozen, and stand in their ptrace stops once thawed. cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  readCgroups,
  readCgroupsIfAlive,
  readThreadCgroups,
  type CgroupEntry,
} from "../../proc/cgroup.ts";
import { errnoOf, undefinedIfGone } from "../../proc/procfs.ts";
import { Hierarchies, hierarchyName, isWithin } from "./hierarchies.ts";
import { ownPids } from "../../sys/front.ts";

interface FreezerFile {
  readonly path: string;
  readonly frozen: string;
  readonly thawed: string;
}

/** Cgroups that are frozen, or not frozen, while their tasks are seized. */
export class CgroupFreezer {
  readonly #hierarchies = new Hierarchies();
  /** That of the caller, frozen by us; undefined when it was frozen already, or has no freezer. */
  #own: FreezerFile | undefined;
  /** Those that somebody else had frozen, by path; tasks in them reach no stop, or leave it for no program, while they are. */
  readonly #found = new Map<string, FreezerFile>();
  /** The root task's cgroups in hierarchies with freezers. */
  readonly #root: readonly CgroupEntry[];
  /** Paths in a hierarchy that were looked at. */
  readonly #seen = new Set<string>();

  private constructor(root: readonly CgroupEntry[]) {
    this.#root = root;
  }

  /**
   * The freezers of a tree: that of the cgroup that the caller names, and those that are on. `others` are its further processes,
   * as far as they are known: on v2 a frozen one looks as one that sleeps.
   *
   * @throws RepriseError BAD_ARGUMENT for a cgroup that the engine is in
   */
  static of(
    root: number,
    {
      named,
      others = [],
    }: { readonly named?: string | undefined; readonly others?: readonly number[] | undefined },
  ): CgroupFreezer {
    const cgroups = readCgroupsIfAlive(root) ?? [];
    const freezer = new CgroupFreezer(cgroups.filter(hasFreezer));
    if (named !== undefined) freezer.#name(named);
    freezer.#lookAt(cgroups);
    const path = unifiedPath(cgroups);
    freezer.#lookBelow(path);
    for (const pid of others) {
      const other = readCgroupsIfAlive(pid)?.filter(({ version }) => version === 2) ?? [];
      if (unifiedPath(other) !== path) freezer.#lookAt(other);
    }
    return freezer;
  }

  /** Whether tasks have to be seized while they cannot run, and stopped later. */
  get isNeeded(): boolean {
    return this.#own !== undefined || this.#found.size > 0;
  }

  /** Looks at the cgroups of a thread that does not react, as one of a frozen v1 cgroup. */
  suspect(pid: number, tid: number): void {
    const cgroups = undefinedIfGone(() => readThreadCgroups(pid, tid));
    this.#lookAt((cgroups ?? []).filter(({ version }) => version === 1));
  }

  /** The processes in these cgroups and those below. */
  members(): number[] {
    return this.#all().flatMap(({ path }) => membersBelow(dirname(path)));
  }

  freeze(): void {
    if (this.#own !== undefined) write(this.#own, this.#own.frozen);
  }

  thaw(): void {
    for (const file of this.#all()) write(file, file.thawed);
  }

  /** Freezes again what was found so; tasks that stand in ptrace stops freeze as soon as they are let go. */
  restore(): void {
    for (const file of this.#found.values()) write(file, file.frozen);
  }

  /** Forgets all of them, when the tasks have gone on or have ended. */
  close(): void {
    this.#found.clear();
    this.#own = undefined;
    this.#hierarchies.close();
  }

  #all(): FreezerFile[] {
    return [...(this.#own === undefined ? [] : [this.#own]), ...this.#found.values()];
  }

  #name(directory: string): void {
    refuseOwn(directory);
    const file = [V2, V1]
      .map((names) => ({ ...names, path: join(directory, names.path) }))
      .find(({ path }) => read(path) !== undefined);
    if (file === undefined)
      log.warn(`the cgroup ${directory} has no freezer: its tasks are stopped one by one`);
    else if (isOn(file)) this.#found.set(file.path, file);
    else this.#own = file;
  }

  /** A cgroup is frozen when it is itself, or one above it. */
  #lookAt(cgroups: readonly CgroupEntry[]): void {
    for (const entry of cgroups.filter(hasFreezer)) {
      const name = hierarchyName(entry);
      for (let path = entry.path; path !== "/" && path !== "."; path = dirname(path))
        this.#lookAtOne(name, path);
    }
  }

  #lookAtOne(name: string, path: string): void {
    const key = `${name}:${path}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const directory = this.#hierarchies.find(name, path);
    if (directory === undefined) return;
    const names = name === "" ? V2 : V1;
    const file = { ...names, path: join(directory, names.path) };
    if (isOn(file)) this.#find(file, path);
  }

  /** v2: a frozen task looks as one that sleeps, so cgroups below the root's are looked at. Not where those of others are. */
  #lookBelow(path: string | undefined): void {
    if (path === undefined || path === "/") return;
    if (ownPids().some((pid) => isWithin(unifiedPath(readCgroups(pid)) ?? "/", path))) return;
    const look = (at: string): void => {
      const directory = this.#hierarchies.find("", at);
      if (directory === undefined) return;
      for (const child of subdirectories(directory)) {
        this.#lookAtOne("", join(at, child));
        look(join(at, child));
      }
    };
    look(path);
  }

  #find(file: FreezerFile, cgroup: string): void {
    if (this.#found.has(file.path)) return;
    log.info(`the cgroup ${cgroup} is frozen: it is thawed while its tasks are seized`);
    this.#found.set(file.path, file);
    // One that the root task is in was frozen for the dump; another one by the tree itself.
    if (this.#root.every(({ path }) => !isWithin(path, cgroup)))
      log.loss(`the cgroup ${cgroup} is frozen, and will not be so when its tasks come back`);
  }
}

function hasFreezer({ version, controllers }: CgroupEntry): boolean {
  return version === 2 || controllers.includes("freezer");
}

function unifiedPath(cgroups: readonly CgroupEntry[]): string | undefined {
  return cgroups.find(({ version }) => version === 2)?.path;
}

function membersBelow(directory: string): number[] {
  // A threaded cgroup does not tell, nor one that was removed. Processes that are outside of our pid namespace are called 0.
  const own = (read(join(directory, "cgroup.procs")) ?? "").split("\n").map(Number);
  const below = subdirectories(directory).flatMap((name) => membersBelow(join(directory, name)));
  return [...own.filter((pid) => pid > 0), ...below];
}

function subdirectories(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch {
    return []; // removed meanwhile
  }
}

/** Whether a cgroup itself is to be frozen. That of v1 shows as frozen, too, what is so through one above it. */
function isOn({ path, thawed }: FreezerFile): boolean {
  const state = read(path);
  if (state === undefined || state === thawed) return false;
  return path.endsWith(V1.path) ? read(join(dirname(path), V1_SELF)) !== "0" : true;
}

function write({ path }: FreezerFile, state: string): void {
  try {
    writeFileSync(path, state, { flag: "r+" });
  } catch (error) {
    log.warn(`cannot write ${state} into ${path}: ${errnoOf(error) ?? "unknown error"}`);
  }
}

const V1: FreezerFile = { path: "freezer.state", frozen: "FROZEN", thawed: "THAWED" };
const V1_SELF = "freezer.self_freezing";
const V2: FreezerFile = { path: "cgroup.freeze", frozen: "1", thawed: "0" };

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1").trim();
  } catch {
    // No such cgroup, no such controller, or the root of a hierarchy, which has no freezer.
    return undefined;
  }
}

/** Freezing the engine's own cgroup, or one above it, would be the end of both. */
function refuseOwn(directory: string): void {
  const hierarchies = new Hierarchies();
  try {
    refuseOwnAmong(directory, hierarchies);
  } finally {
    hierarchies.close();
  }
}

function refuseOwnAmong(directory: string, hierarchies: Hierarchies): void {
  for (const entry of ownPids().flatMap(readCgroups)) {
    const name = hierarchyName(entry);
    if (name !== "" && !entry.controllers.includes("freezer")) continue;
    const own = hierarchies.find(name, entry.path);
    if (own !== undefined && isWithin(own, directory.replace(/\/+$/, ""))) {
      throw new RepriseError(
        "BAD_ARGUMENT",
        `cannot freeze the cgroup ${directory}: the engine itself is in it`,
        { hint: "Start the dump from another cgroup, or leave --freeze-cgroup out." },
      );
    }
  }
}
