// Filling new areas of a stopped task from outside. A userfaultfd over them lets the engine put whole pages in (UFFDIO_COPY): the
// kernel neither clears them first nor handles a fault for each, which takes half the time of writing into the task's memory
// (process_vm_writev). See ioctl_userfaultfd(2).

import { log } from "../../log.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { F_DUPFD_CLOEXEC, O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import {
  UFFD_API,
  UFFD_USER_MODE_ONLY,
  UFFDIO_API,
  UFFDIO_API_SIZE,
  UFFDIO_COPY,
  UFFDIO_COPY_SIZE,
  UFFDIO_REGISTER,
  UFFDIO_REGISTER_MODE_MISSING,
  UFFDIO_REGISTER_SIZE,
  UFFDIO_UNREGISTER,
} from "../../sys/abi/userfault.ts";
import { addressOf, syscall, syscallError, trySyscall } from "../../sys/ffi.ts";
import { writeMemory, writeU64, type MemoryRange } from "../../sys/memory.ts";
import type { Program, Ref } from "../../tracee/program.ts";

/**
 * Adds the calls that make a userfaultfd. They may fail, on a kernel without: its number is negative then. Who asks for no faults of
 * the kernel's own needs no right for it (UFFD_USER_MODE_ONLY, Linux 5.11), also in a user namespace.
 *
 * @returns the descriptor, at or above `firstFd`
 */
export function addMissingWatch(program: Program, firstFd: number): Ref {
  const options = { label: "watch memory that is filled", mayFail: true };
  const made = program.call("userfaultfd", [O_CLOEXEC | UFFD_USER_MODE_ONLY], options);
  const fd = program.call("fcntl", [made, F_DUPFD_CLOEXEC, firstFd], options);
  program.call("close", [made], options);
  return fd;
}

/** Areas of one task that have no pages yet. */
export class MissingMemory implements Disposable {
  readonly #pid: number;
  readonly #areas: readonly VmaEntry[];
  /** Undefined where there is no userfaultfd. */
  readonly #watch: number | undefined;

  /** @param pid the task, which stands still @param fd its descriptor from `addMissingWatch` */
  constructor(pid: number, { fd, areas }: { readonly fd: number; areas: readonly VmaEntry[] }) {
    this.#pid = pid;
    this.#areas = areas;
    this.#watch = fd < 0 ? undefined : openWatch(pid, fd, areas);
    if (this.#watch === undefined) log.debug(`pid ${pid} has no userfaultfd: it is written to`);
  }

  /**
   * Puts pages into their places.
   *
   * @param ranges whole pages, each range in one area @param bytes those of all ranges, one behind the other
   * @throws RepriseError SYSCALL
   */
  put(ranges: readonly MemoryRange[], bytes: Uint8Array): void {
    if (this.#watch === undefined) {
      writeMemory(this.#pid, ranges, bytes);
      return;
    }
    const call = Buffer.alloc(UFFDIO_COPY_SIZE);
    let from = addressOf(bytes);
    for (const range of ranges) {
      this.#copy(this.#watch, call, { range, from });
      from += range.length;
    }
  }

  #copy(fd: number, call: Buffer, { range, from }: { range: MemoryRange; from: number }): void {
    for (let done = 0; done < range.length;) {
      writeU64(call, 0, range.address + done);
      writeU64(call, 8, from + done);
      writeU64(call, 16, range.length - done);
      call.fill(0, 24);
      const result = trySyscall("ioctl", fd, UFFDIO_COPY, call);
      const copied = result === 0 ? range.length - done : Number(call.readBigInt64LE(32));
      // It stops early, with EAGAIN, when a signal or a writer to the page tables comes in between.
      if (copied <= 0)
        throw syscallError(
          "ioctl",
          -result,
          `fill memory ${(range.address + done).toString(16)} of pid ${this.#pid}`,
        );
      done += copied;
    }
  }

  /** Leaves the areas as if nobody had watched them: neighbours that are alike are one again. */
  [Symbol.dispose](): void {
    if (this.#watch !== undefined) letGo(this.#watch, this.#areas);
  }
}

/** The engine's copy of a task's userfaultfd, over all areas; undefined when the kernel refuses one. */
function openWatch(pid: number, fd: number, areas: readonly VmaEntry[]): number | undefined {
  const pidfd = syscall("pidfd_open", pid, 0);
  const copy = trySyscall("pidfd_getfd", pidfd, fd, 0);
  trySyscall("close", pidfd);
  if (copy < 0) return undefined;
  const api = Buffer.alloc(UFFDIO_API_SIZE);
  writeU64(api, 0, UFFD_API);
  const isWatched =
    trySyscall("ioctl", copy, UFFDIO_API, api) === 0 &&
    areas.every((area) => {
      const register = Buffer.alloc(UFFDIO_REGISTER_SIZE);
      rangeOf(area).copy(register);
      writeU64(register, 16, UFFDIO_REGISTER_MODE_MISSING);
      return trySyscall("ioctl", copy, UFFDIO_REGISTER, register) === 0;
    });
  if (isWatched) return copy;
  letGo(copy, areas);
  return undefined;
}

/** The task still has its descriptor: what it watches is let go area by area. */
function letGo(watch: number, areas: readonly VmaEntry[]): void {
  for (const area of areas) trySyscall("ioctl", watch, UFFDIO_UNREGISTER, rangeOf(area));
  trySyscall("close", watch);
}

/** struct uffdio_range. */
function rangeOf({ start, end }: VmaEntry): Buffer {
  const range = Buffer.alloc(16);
  writeU64(range, 0, start);
  writeU64(range, 8, end - start);
  return range;
}
