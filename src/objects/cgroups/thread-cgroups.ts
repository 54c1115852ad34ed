// The cgroups of threads: /proc/PID/task/TID/cgroup (cgroups(7)), a line for each hierarchy. On v1 each thread may be in cgroups of its
// own, and on v2 in threaded ones, so each is asked; nearly all have the same text.

import { O_CLOEXEC, O_RDONLY } from "../../sys/abi/fcntl.ts";
import { readShortProcText } from "../../proc/procfs.ts";
import { ThreadFiles, type ThreadQuestion } from "../../tracee/thread-files.ts";

/** From so many threads on it pays to make a program for them. */
const MANY = 8;
/** Half a page: what comes with one read and is shorter is all of it (see readShortText). */
const ROOM = 2048;

export class ThreadCgroups implements Disposable {
  readonly #pid: number;
  readonly #files: ThreadFiles<Buffer | undefined> | undefined;
  /** The last text, and its bytes. */
  #last: { readonly bytes: Buffer; readonly text: string } | undefined;

  constructor(pid: number, tids: readonly number[]) {
    this.#pid = pid;
    this.#files = tids.length < MANY ? undefined : new ThreadFiles(pid, tids, READING);
  }

  /** The text of a thread's file. Throws as readProcText does. */
  text(tid: number): string {
    const bytes = this.#files?.of(tid);
    // Long, or not to be read: there is more to it.
    if (bytes === undefined) return readShortProcText(this.#pid, `task/${tid}/cgroup`);
    if (this.#last === undefined || !this.#last.bytes.equals(bytes))
      this.#last = { bytes: Buffer.from(bytes), text: bytes.toString() };
    return this.#last.text;
  }

  [Symbol.dispose](): void {
    this.#files?.[Symbol.dispose]();
  }
}

const READING: ThreadQuestion<Buffer | undefined> = (program, { directory, path }) => {
  const asking = { mayFail: true };
  const into = program.output(ROOM);
  const fd = program.call("openat", [directory, path("cgroup"), O_RDONLY | O_CLOEXEC, 0], asking);
  const read = program.call("read", [fd, into, ROOM], asking);
  program.call("close", [fd], asking);
  return (answers) => {
    const length = answers.value(read);
    return length <= 0 || length >= ROOM ? undefined : answers.bytes(into, length);
  };
};
