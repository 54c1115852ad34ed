// The memory areas of processes with many threads, each of which has a stack with a guard: read before the tree is frozen, too, so that
// only those that are told otherwise then have to be looked at. The second time another thread of the engine reads them, while this one
// looks at the threads: the kernel counts pages for each.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { prepareVma } from "../objects/memory/vma.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import {
  parseSmapsAgain,
  readSmaps,
  readSmapsAgain,
  type SmapsSeen,
  type SmapsVma,
} from "../proc/smaps.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import type { Pointer, Ref } from "../tracee/program.ts";
import { Sweep } from "../tracee/sweep.ts";

/** Of others a look at sleeping tasks (look-ahead.ts) may know more, and they have few. */
const MANY_THREADS = 65;
/** How many areas at least come with one read, which gives a page; and reads that may be needed beside. */
const AREAS_A_READ = 3;
const MORE_READS = 64;

export class AreasAhead implements Disposable {
  readonly #seen = new Map<number, SmapsSeen>();
  readonly #reading = new Map<number, Reading>();

  /** Looks at those of running tasks that have many threads. */
  static of(tasks: readonly FrozenTask[]): AreasAhead {
    const ahead = new AreasAhead();
    for (const { pid, status } of tasks) if (status.threads >= MANY_THREADS) ahead.#look(pid);
    return ahead;
  }

  #look(pid: number): void {
    try {
      const seen = readSmapsAgain(pid);
      for (const area of seen.vmas) prepareVma(area);
      this.#seen.set(pid, seen);
    } catch (error) {
      // It may have ended; what else is wrong is told when it counts.
      if (!(error instanceof RepriseError)) throw error;
    }
  }

  /** Begins to read the areas again. To be called when the tasks have been stopped. */
  begin(): void {
    for (const [pid, { vmas }] of this.#seen) {
      this.#reading.get(pid)?.[Symbol.dispose](); // the tree had to be let go once more
      const reading = Reading.of(pid, Math.ceil(vmas.length / AREAS_A_READ) + MORE_READS);
      if (reading !== undefined) this.#reading.set(pid, reading);
    }
  }

  /** The areas of a stopped task. Throws as readSmaps does. */
  read(pid: number): readonly SmapsVma[] {
    const seen = this.#seen.get(pid);
    if (seen === undefined) return readSmaps(pid);
    const text = this.#reading.get(pid)?.text();
    return (text === undefined ? readSmapsAgain(pid, seen) : parseSmapsAgain(text, seen)).vmas;
  }

  [Symbol.dispose](): void {
    for (const reading of this.#reading.values()) reading[Symbol.dispose]();
    this.#reading.clear();
  }
}

/** A file that is being read on another thread. */
class Reading implements Disposable {
  readonly #fd: number;
  readonly #sweep: Sweep;
  #read: Ref | undefined;
  #page: Pointer | undefined;

  static of(pid: number, reads: number): Reading | undefined {
    try {
      return new Reading(openSync(`/proc/${pid}/smaps`, "r"), reads);
    } catch {
      return undefined; // it is read later, and what is wrong is told then
    }
  }

  private constructor(fd: number, reads: number) {
    this.#fd = fd;
    this.#sweep = new Sweep(reads, (program) => {
      this.#page = program.output(PAGE_SIZE);
      this.#read = program.call("read", [fd, this.#page, PAGE_SIZE], { mayFail: true });
    });
    this.#sweep.runElsewhere();
  }

  /** The whole text; undefined where it could not be read whole. */
  text(): string | undefined {
    const sweep = this.#sweep;
    sweep.awaitEnd();
    const parts: Buffer[] = [];
    for (let index = 0; index < sweep.count; index += 1) {
      const length = sweep.select(index).value(this.#read as Ref);
      if (length === 0) return Buffer.concat(parts).toString();
      if (length < 0) return undefined;
      parts.push(sweep.bytes(this.#page as Pointer, length));
    }
    return undefined;
  }

  [Symbol.dispose](): void {
    this.#sweep.awaitEnd();
    closeSync(this.#fd);
  }
}
