// The cgroups of a tree, saved while its tasks run: kept when their settings are the same and the tasks are still in them.

import type { ImageSetWriter } from "../../images/image-set.ts";
import { log } from "../../log.ts";
import { Witness } from "../../tracee/witness.ts";
import type { CollectedNamespace } from "../namespaces/collect.ts";
import { CgroupTable, type CgroupDumpOptions } from "./dump.ts";
import { WitnessedFiles } from "./files.ts";

export class CgroupsAhead implements Disposable {
  readonly #witness: Witness;
  readonly #files: WitnessedFiles;
  readonly #key: string;
  readonly #table: CgroupTable;
  readonly #images: ImageSetWriter;
  readonly #names: readonly string[];

  /** Saves the cgroups of running tasks, the root first; undefined when they are the engine's, or cannot be looked at again. */
  static of(
    pids: readonly number[],
    {
      images,
      namespaces,
      options,
    }: {
      readonly images: ImageSetWriter;
      readonly namespaces: readonly CollectedNamespace[];
      readonly options: CgroupDumpOptions;
    },
  ): CgroupsAhead | undefined {
    const table = new CgroupTable(options);
    for (const pid of pids) {
      const parent = pid === pids[0] ? undefined : pids[0];
      // Nearly always its threads are where it is; else it is found out in the freeze.
      table.add({ pid, parent, threads: [{ tid: pid }] });
    }
    table.addNamespaces(namespaces);
    const witness = new Witness();
    try {
      const files = new WitnessedFiles(witness);
      if (table.entryFrom(files.asked) !== undefined && witness.take() && files.isWhole)
        return new CgroupsAhead(table, { witness, files, images });
    } catch (error) {
      witness[Symbol.dispose]();
      table.close();
      throw error;
    }
    witness[Symbol.dispose]();
    table.close();
    return undefined;
  }

  private constructor(
    table: CgroupTable,
    {
      witness,
      files,
      images,
    }: {
      readonly witness: Witness;
      readonly files: WitnessedFiles;
      readonly images: ImageSetWriter;
    },
  ) {
    this.#witness = witness;
    this.#files = files;
    this.#key = table.key;
    this.#images = images;
    this.#table = table;
    const entry = table.entryFrom(files);
    this.#names = images.writtenIn(() => {
      if (entry !== undefined) images.write("cgroup", 0, [entry]);
    });
  }

  /** Whether the image that was written is that of the cgroups of stopped tasks. If not, it is taken back. */
  holds(table: CgroupTable): boolean {
    if (table.key !== this.#key || !this.#witness.holds()) {
      log.debug("the cgroups are saved again: they have changed");
      this.takeBack();
      return false;
    }
    this.#files.tellUnread();
    return true;
  }

  /** Takes the image back. */
  takeBack(): void {
    this.#images.takeBack(this.#names);
  }

  [Symbol.dispose](): void {
    this.#witness[Symbol.dispose]();
    this.#table.close();
  }
}
