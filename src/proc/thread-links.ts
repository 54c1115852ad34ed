// Links below /proc/PID/task/TID of many threads of one process, read from the open directory of all of them: see fd-directory.ts.

import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import { readLink } from "../sys/files.ts";
import { readProcLink } from "./procfs.ts";

export class ThreadLinks implements Disposable {
  readonly #pid: number;
  readonly #directory: number;

  constructor(pid: number) {
    this.#pid = pid;
    const path = Buffer.from(`/proc/${pid}/task\0`);
    this.#directory = trySyscall("openat", AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  }

  /** What a link of a thread says. Throws as readProcLink does. */
  target(tid: number, name: string): string {
    const target = readLink(`${tid}/${name}`, this.#directory);
    return typeof target === "string" ? target : readProcLink(this.#pid, `task/${tid}/${name}`);
  }

  [Symbol.dispose](): void {
    if (this.#directory >= 0) trySyscall("close", this.#directory);
  }
}
