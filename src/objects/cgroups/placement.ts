// Where the caller put the engine. A container runtime moves the restorer that it started into the new container's cgroups, with
// its limits, and expects the restored tasks there. That was the caller's doing if the engine's cgroups are not those of the
// process that started it. The engine itself then leaves: its memory and threads are none of the container's.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { log } from "../../log.ts";
import { readCgroups, readCgroupsIfAlive, type CgroupEntry } from "../../proc/cgroup.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { Hierarchies, hierarchyName } from "./hierarchies.ts";
import { frontPid } from "../../sys/front.ts";

/** Cgroups that a caller chose for what is restored. */
export interface Placement {
  /** Hierarchies in which the caller chose one. */
  readonly hierarchies: readonly string[];
  /** The chosen cgroup in a hierarchy; undefined where the caller left the engine in its own. */
  path(hierarchy: string): string | undefined;
  /** Moves the engine to its caller's cgroups; what cannot be left is told in the log. */
  leave(): void;
}

/** Compares the engine's cgroups with those of the process that started it. */
export function findPlacement(caller: number): Placement | undefined {
  const theirs = new Map(
    (readCgroupsIfAlive(caller) ?? []).map((entry) => [hierarchyName(entry), entry.path]),
  );
  const chosen = readCgroups(frontPid()).filter((entry) => {
    const path = theirs.get(hierarchyName(entry));
    return path !== undefined && path !== entry.path;
  });
  if (chosen.length === 0) return undefined;
  const paths = new Map(chosen.map((entry) => [hierarchyName(entry), entry.path]));
  return {
    hierarchies: [...paths.keys()],
    path: (hierarchy) => paths.get(hierarchy),
    leave: () => leave(chosen, theirs),
  };
}

function leave(chosen: readonly CgroupEntry[], theirs: ReadonlyMap<string, string>): void {
  const hierarchies = new Hierarchies();
  for (const entry of chosen) {
    const name = hierarchyName(entry);
    try {
      const directory = hierarchies.directory(name, theirs.get(name) ?? "/");
      writeFileSync(join(directory, "cgroup.procs"), String(frontPid()), { flag: "r+" });
    } catch (error) {
      // A cgroup with controllers for its children takes no process (v2): then the restore runs within the limits.
      log.warn(
        `cannot leave the cgroup ${entry.path}: ${errnoOf(error) ?? (error instanceof Error ? error.message : "")}`,
      );
    }
  }
}
