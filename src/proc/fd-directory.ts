// The descriptors of one process, looked at one after the other. The kernel's way to /proc/PID/fdinfo/N is several lookups each time;
// from an open directory it is one. For a few descriptors, opening the directories takes as long as that saves.

import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import { readLink, readShortText, readStat } from "../sys/files.ts";
import { readProcLink } from "./procfs.ts";
import { parseFdInfo, readFdInfo, type FdInfo } from "./fdinfo.ts";
import { readFdStat, type FileStat } from "./links.ts";

export class FdDirectory implements Disposable {
  readonly #pid: number;
  #links: number | undefined;
  #infos: number | undefined;

  constructor(pid: number) {
    this.#pid = pid;
  }

  /** As readFdInfo. Whatever goes wrong is told in its words. */
  info(fd: number): FdInfo {
    this.#infos ??= openDirectory(`/proc/${this.#pid}/fdinfo`);
    const text = readShortText(`${fd}`, this.#infos);
    return typeof text === "string" ? parseFdInfo(text) : readFdInfo({ pid: this.#pid, fd });
  }

  /** As readFdStat. */
  stat(fd: number): FileStat {
    const stat = readStat(`${fd}`, this.#openLinks());
    return typeof stat === "number" ? readFdStat(this.#pid, fd) : stat;
  }

  /** What the link of a descriptor says. */
  target(fd: number): string {
    const target = readLink(`${fd}`, this.#openLinks());
    return typeof target === "string" ? target : readProcLink(this.#pid, `fd/${fd}`);
  }

  [Symbol.dispose](): void {
    for (const fd of [this.#links ?? -1, this.#infos ?? -1]) if (fd >= 0) trySyscall("close", fd);
  }

  #openLinks(): number {
    this.#links ??= openDirectory(`/proc/${this.#pid}/fd`);
    return this.#links;
  }
}

/** The descriptor, or an error number, with which every later call fails. */
function openDirectory(path: string): number {
  const bytes = Buffer.from(`${path}\0`);
  return trySyscall("openat", AT_FDCWD, bytes, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}
