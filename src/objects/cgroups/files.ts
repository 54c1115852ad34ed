// The files of cgroups as a dump reads them: at once, or by a witness, which tells later whether any of them has changed.

import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { log } from "../../log.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { errnoName } from "../../sys/errno.ts";
import type { Sight, Witness } from "../../tracee/witness.ts";

export interface Permissions {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

/** Where a dump has the files of cgroups from. */
export interface CgroupFiles {
  /** Names of the cgroups below one, by its directory. */
  children(directory: string): string[];
  /** Undefined when there is no such file. */
  permissions(path: string): Permissions | undefined;
  /** Undefined when it cannot be read, which is told. */
  value(path: string): string | undefined;
}

export const PLAIN_FILES: CgroupFiles = {
  children: (directory) =>
    readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name),

  permissions(path) {
    const stat = statSync(path, { throwIfNoEntry: false });
    return stat === undefined ? undefined : { mode: stat.mode, uid: stat.uid, gid: stat.gid };
  },

  value(path) {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      tellUnread(path, errnoOf(error) ?? "unknown error");
      return undefined;
    }
  },
};

/** Some exist and cannot be read: pids.max of a cgroup that another controller took over, io.weight without a scheduler. */
function tellUnread(path: string, errno: string): void {
  log.warn(`cannot read ${path}, it is not saved: ${errno}`);
}

/** The longest ones are lists of devices. */
const VALUE_SIZE = 2048;

/** Files that are looked at twice. The first reader asks for them (`asked`); the second one gets what the witness saw of them. */
export class WitnessedFiles implements CgroupFiles {
  readonly #witness: Witness;
  readonly #lists = new Map<
    string,
    { readonly sight: Sight; readonly children: readonly string[] }
  >();
  readonly #owners = new Map<string, Sight>();
  readonly #missing = new Set<string>();
  readonly #values = new Map<string, Sight>();
  readonly #unread: { readonly path: string; readonly errno: string }[] = [];

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  /** For the first reader; nothing of what it gets is right but the names of cgroups. */
  readonly asked: CgroupFiles = {
    children: (directory) => {
      const children = PLAIN_FILES.children(directory);
      this.#lists.set(directory, { sight: this.#witness.list(directory), children });
      return children;
    },
    permissions: (path) => {
      // Its directory is looked at.
      if (existsSync(path)) this.#owners.set(path, this.#witness.owner(path));
      else this.#missing.add(path);
      return { mode: 0, uid: 0, gid: 0 };
    },
    value: (path) => {
      const sight = this.#witness.file(path, VALUE_SIZE);
      if (sight !== undefined) this.#values.set(path, sight);
      return undefined;
    },
  };

  /** Whether the witness saw the same cgroups as the first reader, and no file that was not there. */
  get isWhole(): boolean {
    return [...this.#lists].every(([directory, { sight, children }]) => {
      const seen = new Set(this.#witness.names(sight, "directories"));
      const files = this.#witness.names(sight);
      return (
        seen.size === children.length &&
        children.every((name) => seen.has(name)) &&
        !files.some((name) => this.#missing.has(join(directory, name)))
      );
    });
  }

  children(directory: string): string[] {
    return [...(this.#lists.get(directory)?.children ?? [])];
  }

  permissions(path: string): Permissions | undefined {
    const sight = this.#owners.get(path);
    if (sight === undefined || !this.#witness.isThere(sight)) return undefined;
    return this.#witness.permissions(sight);
  }

  value(path: string): string | undefined {
    const sight = this.#values.get(path);
    if (sight === undefined) return undefined;
    const result = this.#witness.result(sight);
    if (result >= 0) return this.#witness.text(sight);
    this.#unread.push({ path, errno: errnoName(-result) });
    return undefined;
  }

  /** Tells of those that could not be read. */
  tellUnread(): void {
    for (const { path, errno } of this.#unread) tellUnread(path, errno);
  }
}
