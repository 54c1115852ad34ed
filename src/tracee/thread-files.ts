// Small files and links of many threads of one process, below /proc/PID/task/TID, with what system calls say of them by their numbers: a
// few calls for each, made by one program of the engine's own (see sweep.ts).

import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import type { Answers, Argument, Pointer, Program, Ref } from "./program.ts";
import { Sweep, type Field } from "./sweep.ts";

/** A number. */
const NAME_ROOM = 16;

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
  readonly #indices: ReadonlyMap<number, number>;
  readonly #sweep: Sweep;
  #read: ((answers: Answers) => T) | undefined;

  constructor(pid: number, tids: readonly number[], question: ThreadQuestion<T>) {
    const path = Buffer.from(`/proc/${pid}/task\0`);
    this.#directory = trySyscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    this.#indices = new Map(tids.map((tid, index) => [tid, index]));
    let number: Field = { offset: 0, size: 4 };
    let name: Field = number;
    const mayFail = { mayFail: true };
    this.#sweep = new Sweep(tids.length, (program) => {
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
    const { memory } = this.#sweep;
    for (let index = 0; index < tids.length; index += 1) {
      const tid = tids[index] as number;
      memory.writeInt32LE(tid, this.#sweep.place(index, number));
      memory.write(`${tid}\0`, this.#sweep.place(index, name), "latin1");
    }
    this.#sweep.run();
  }

  /** What is told of a thread. */
  of(tid: number): T {
    return (this.#read as (answers: Answers) => T)(
      this.#sweep.select(this.#indices.get(tid) as number),
    );
  }

  [Symbol.dispose](): void {
    this.#sweep[Symbol.dispose]();
    if (this.#directory >= 0) trySyscall("close", this.#directory);
  }
}
