// Small files and links of many threads of one process, below /proc/PID/task/TID, with what system calls say of them by their numbers: a
// few calls for each, made by one program of the engine's own (see sweep.ts).

import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import type { Answers, Argument, Pointer, Program, Ref } from "./program.ts";
import { Sweep, type Field } from "./sweep.ts";

/** A number. */
const NAME_ROOM = 16;
/** So many are asked at once: what was used a moment ago is at hand, and fresh memory takes longer than the calls. */
const BATCH = 32;

/** What is to be asked; adds the calls to a program and gives what reads the answers. */
export type ThreadQuestion<T> = (program: Program, ask: ThreadPlaces) => (answers: Answers) => T;

/** How a question names the thread: by its number, and by paths in the thread's directory. */
export interface ThreadPlaces {
  readonly tid: Argument;
  readonly directory: Ref;
  readonly path: (name: string) => Pointer;
}

export class ThreadFiles<T> implements Disposable {
  readonly #directory: number;
  readonly #tids: readonly number[];
  readonly #indices: ReadonlyMap<number, number>;
  readonly #sweep: Sweep;
  readonly #fields: Record<"number" | "name", Field>;
  /** Index of the first that has been asked last. */
  #first = -1;
  #read: ((answers: Answers) => T) | undefined;

  constructor(pid: number, tids: readonly number[], question: ThreadQuestion<T>) {
    const path = Buffer.from(`/proc/${pid}/task\0`);
    this.#directory = trySyscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    this.#tids = tids;
    this.#indices = new Map(tids.map((tid, index) => [tid, index]));
    let number: Field = { offset: 0, size: 4 };
    let name: Field = number;
    const mayFail = { mayFail: true };
    this.#sweep = new Sweep(Math.min(tids.length, BATCH), (program) => {
      number = program.field(4);
      name = program.field(NAME_ROOM);
      // Where the process is gone every call fails, and the files are.
      const flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
      const at = [this.#directory, program.addressOf(name), flags, 0];
      const directory = program.call("openat", at, mayFail);
      const tid = program.contentOf(number);
      this.#read = question(program, { tid, directory, path: (file) => program.string(file) });
      program.call("close", [directory], mayFail);
    });
    this.#fields = { number, name };
  }

  /** What is told of a thread; bytes are good until another one is asked for. To be asked for in order: they are looked at by and by. */
  of(tid: number): T {
    const index = this.#indices.get(tid) as number;
    const first = index - (index % BATCH);
    if (first !== this.#first) this.#ask(first);
    return (this.#read as (answers: Answers) => T)(this.#sweep.select(index - first));
  }

  #ask(first: number): void {
    this.#first = first;
    const { memory } = this.#sweep;
    const { number, name } = this.#fields;
    const count = Math.min(this.#tids.length - first, BATCH);
    for (let index = 0; index < count; index += 1) {
      const tid = this.#tids[first + index] as number;
      memory.writeInt32LE(tid, this.#sweep.place(index, number));
      memory.write(`${tid}\0`, this.#sweep.place(index, name), "latin1");
    }
    this.#sweep.run(count);
  }

  [Symbol.dispose](): void {
    if (this.#directory >= 0) trySyscall("close", this.#directory);
  }
}
