// Small files and links of many threads of one process, below /proc/PID/task/TID, with what kcmp(2) says of them: a few system calls for
// each, made by one program of the engine's own, which is told the thread.

import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import { ResidentProgram } from "./local.ts";
import { Program, type Answers, type Load, type Pointer } from "./program.ts";

/** A number, and the longest name below it. */
const PATH_ROOM = 64;

/** What is to be asked; adds the calls to a program and gives what reads the answers. */
export type ThreadQuestion<T> = (program: Program, ask: ThreadPlaces) => (answers: Answers) => T;

/** How a question names the thread: by its number, and by paths in the directory of the process's threads. */
export interface ThreadPlaces {
  readonly tid: Load;
  readonly directory: number;
  readonly path: (name: string) => Pointer;
}

export class ThreadFiles<T> implements Disposable {
  readonly #directory: number;
  readonly #tid: Pointer;
  readonly #paths: { readonly at: Pointer; readonly name: string }[] = [];
  readonly #program: ResidentProgram;
  readonly #read: (answers: Answers) => T;

  constructor(pid: number, question: ThreadQuestion<T>) {
    const path = Buffer.from(`/proc/${pid}/task\0`);
    this.#directory = trySyscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    const program = new Program();
    this.#tid = program.data(Buffer.alloc(4));
    this.#read = question(program, {
      tid: { kind: "load", from: this.#tid, width: 4 },
      // Where the process is gone every call fails, and the files are.
      directory: this.#directory,
      path: (name) => {
        const at = program.data(Buffer.alloc(PATH_ROOM));
        this.#paths.push({ at, name });
        return at;
      },
    });
    this.#program = new ResidentProgram(program);
  }

  /** What is told of a thread; bytes are good until the next one is asked. */
  of(tid: number): T {
    for (const { at, name } of this.#paths) this.#program.put(at, `${tid}/${name}\0`);
    this.#program.run({ at: this.#tid, value: tid });
    return this.#read(this.#program);
  }

  [Symbol.dispose](): void {
    this.#program[Symbol.dispose]();
    if (this.#directory >= 0) trySyscall("close", this.#directory);
  }
}
