// Opening the files of the whole tree: one program in the root task makes every open file description once. All descriptors
// lie above those of the tasks; the other tasks inherit them when they are forked, and take what is theirs by dup3.

import { RepriseError } from "../errors.ts";
import type { FileEntry } from "../images/schema/messages.generated.ts";
import type { FilesRestore } from "../objects/files/file-kind.ts";
import { kindOfType } from "../objects/files/registry.ts";
import { F_DUPFD } from "../sys/abi/fcntl.ts";
import { Program, type Argument, type Ref } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { firstPoolFd, job, type Growth } from "./grow.ts";
import type { RestorePlan } from "./plan.ts";

/** Open files of a tree, by their ids. */
export interface OpenedFiles {
  /** Descriptor of a file in every task of the tree. */
  fd(id: number): number;
  /** Adds the calls that need a task's descriptors in their final places. */
  settle(program: Program, entry: FileEntry, fd: number): void;
}

/** Opens everything in the root task. */
export function openFiles(plan: RestorePlan, growth: Growth): OpenedFiles {
  const opener = new Opener(plan, growth.imagesFd);
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  return opener.run(root);
}

class Opener implements FilesRestore {
  readonly set: RestorePlan["set"];
  readonly options: RestorePlan["options"];
  readonly imagesFd: number;
  readonly #plan: RestorePlan;
  readonly #program = new Program();
  readonly #opened = new Map<number, Argument>();
  readonly #later: ((program: Program) => void)[] = [];
  #nextReserved: number;

  constructor(plan: RestorePlan, imagesFd: number) {
    this.#plan = plan;
    this.set = plan.set;
    this.options = plan.options;
    this.imagesFd = imagesFd;
    // F_DUPFD takes the lowest free numbers from imagesFd on: at most one a file. Reserved ones lie above.
    this.#nextReserved = imagesFd + 2 * plan.set.files.size + 64;
  }

  run(root: Tracee): OpenedFiles {
    for (const entry of this.#plan.files) this.open(entry.id);
    for (const step of this.#later) step(this.#program);
    const [result] = runPrograms([job(this.#plan, root, this.#program)]);
    const fds = new Map<number, number>();
    for (const [id, argument] of this.#opened) {
      fds.set(id, typeof argument === "number" ? argument : (result?.value(argument as Ref) ?? -1));
    }
    return {
      fd: (id) => {
        const fd = fds.get(id);
        if (fd === undefined)
          throw new RepriseError("INTERNAL", `internal error: file ${id} was not opened`);
        return fd;
      },
      settle: (program, entry, fd) => kindOfType(entry.type).settle?.(program, entry, fd, this),
    };
  }

  open(id: number): Argument {
    const known = this.#opened.get(id);
    if (known !== undefined) return known;
    const entry = this.set.files.get(id);
    if (entry === undefined)
      throw new RepriseError("BAD_IMAGE", `cannot restore: files.img has no file ${id}`);
    const fd = kindOfType(entry.type).open(this.#program, entry, this);
    const moved = this.#program.call("fcntl", [fd, F_DUPFD, firstPoolFd(this.#plan)], {
      label: `keep file ${id} open`,
      hint: "The limit on open files (ulimit -Hn) is too low for all files of the tree.",
    });
    this.#program.call("close", [fd]);
    this.#opened.set(id, moved);
    return moved;
  }

  later(step: (program: Program) => void): void {
    this.#later.push(step);
  }

  reserve(): number {
    return this.#nextReserved++;
  }
}
