// The freezer of a cgroup: one write stops all of its tasks at once, so that a tree that forks all the time can be seized. Tasks
// of a frozen v1 cgroup do not reach a ptrace stop before they are thawed (kernel/freezer.c), those of a v2 cgroup do; in both
// they are seized while frozen, and stand in their ptrace stops once thawed. cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { readCgroups, readCgroupsIfAlive } from "../../proc/cgroup.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { Hierarchies, hierarchyName, isWithin } from "./hierarchies.ts";

interface FreezerFile {
  readonly path: string;
  readonly frozen: string;
  readonly thawed: string;
}

/** A cgroup that is frozen while its tasks are seized. */
export class CgroupFreezer {
  readonly #file: FreezerFile;
  /** Whether somebody had frozen it before: it will be again. */
  readonly wasFrozen: boolean;

  private constructor(file: FreezerFile, wasFrozen: boolean) {
    this.#file = file;
    this.wasFrozen = wasFrozen;
  }

  /**
   * The freezer of a cgroup directory; undefined, with a note in the log, when it has none.
   *
   * @throws RepriseError BAD_ARGUMENT for the cgroup that the engine is in.
   */
  static of(directory: string): CgroupFreezer | undefined {
    refuseOwn(directory);
    const file = [V2, V1]
      .map((names) => ({ ...names, path: join(directory, names.path) }))
      .find(({ path }) => read(path) !== undefined);
    if (file === undefined) {
      log.warn(`the cgroup ${directory} has no freezer: its tasks are stopped one by one`);
      return undefined;
    }
    return new CgroupFreezer(file, read(file.path) !== file.thawed);
  }

  /** The freezer of a task's cgroup if it is frozen: nobody could stop the task without it. */
  static ofFrozen(pid: number): CgroupFreezer | undefined {
    const hierarchies = new Hierarchies();
    for (const entry of readCgroupsIfAlive(pid) ?? []) {
      const name = hierarchyName(entry);
      if (entry.path === "/" || !(name === "" || entry.controllers.includes("freezer"))) continue;
      const names = name === "" ? V2 : V1;
      const directory = hierarchies.find(name, entry.path);
      const path = join(directory ?? "", names.path);
      const state = directory === undefined ? undefined : read(path);
      if (state === undefined || state === names.thawed) continue;
      log.info(`the cgroup ${entry.path} is frozen: it is thawed while its tasks are seized`);
      return new CgroupFreezer({ ...names, path }, true);
    }
    return undefined;
  }

  freeze(): void {
    if (!this.wasFrozen) this.#write(this.#file.frozen);
  }

  thaw(): void {
    this.#write(this.#file.thawed);
  }

  /** Freezes the cgroup again if it was found so; tasks that stand in ptrace stops freeze as soon as they are let go. */
  restore(): void {
    if (this.wasFrozen) this.#write(this.#file.frozen);
  }

  #write(state: string): void {
    try {
      writeFileSync(this.#file.path, state, { flag: "r+" });
    } catch (error) {
      log.warn(
        `cannot write ${state} into ${this.#file.path}: ${errnoOf(error) ?? "unknown error"}`,
      );
    }
  }
}

const V1: FreezerFile = { path: "freezer.state", frozen: "FROZEN", thawed: "THAWED" };
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
  for (const entry of readCgroups(process.pid)) {
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
