// What can be done before the tree is frozen, so that it stands still for less time: a look at the running tree tells which
// images will be written, and they are made now. The tree may change until it is frozen: a guess that is wrong costs a little
// time and nothing else.

import { RepriseError } from "../errors.ts";
import { prepareCrc32 } from "../images/crc32.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import { imageName, type ImageKind } from "../images/names.ts";
import { prepareToLook } from "../objects/io-uring/context.ts";
import { RING_LINK } from "../objects/io-uring/ring-memory.ts";
import { listsSemaphores } from "../objects/ipc/undo.ts";
import { waitsWithHiddenEnd } from "../objects/task/rest-of-wait.ts";
import { countFds, readFdNumbers, readFdsIfAlive } from "../proc/fd.ts";
import { readConnectionInodes } from "../proc/net-tcp.ts";
import { readProcLink, undefinedIfGone, undefinedIfUnsupported } from "../proc/procfs.ts";
import { readStatusIfAlive, readThreadStatusIfAlive, type TaskStatus } from "../proc/status.ts";
import { readTasksIfAlive } from "../proc/tasks.ts";
import { FIRST_TABLE, makeRoomForDescriptors } from "../sys/descriptors.ts";
import { readLink } from "../sys/files.ts";
import { KernelTypes } from "../sys/kernel-types.ts";
import { crc32OfZlib } from "../sys/zlib.ts";

/** Images of a tree whatever is in it. */
const ALWAYS = ["pstree", "files", "seccomp", "timens"] as const satisfies readonly ImageKind[];
/** Images of each task that has its number. */
const OF_A_TASK = ["core", "ids", "mm", "fs", "pagemap"] as const satisfies readonly ImageKind[];
/** Number of the first table of descriptors: see object-ids.ts. */
const FIRST_FILES_ID = 2;

/** What a running tree (the root first) will probably need of its dump. */
export class Foreseen {
  readonly #pids: readonly number[];
  /** Those that are not gone by now. */
  readonly #statuses = new Map<number, TaskStatus>();

  constructor(pids: readonly number[]) {
    this.#pids = pids;
    for (const pid of pids) {
      const status = readStatusIfAlive(pid);
      if (status !== undefined) this.#statuses.set(pid, status);
    }
  }

  /** Makes the images that will probably be written. */
  prepareImages(
    images: ImageSetWriter,
    {
      connections = false,
    }: { /** TCP connections are saved. */ readonly connections?: boolean } = {},
  ): void {
    prepareCrc32(crc32OfZlib);
    images.prepare(ALWAYS.map((kind) => imageName(kind)));
    const depth = (this.#statuses.get(this.#pids[0] ?? 0)?.nsPid.length ?? 1) - 1;
    let tasks = 0;
    let descriptors = 0;
    let threads = 0;
    const lists = new Map<string, ReadonlySet<number>>();
    for (const [pid, status] of this.#statuses) {
      const inner = status.nsPid[depth];
      if (inner === undefined) continue; // gone meanwhile
      descriptors += countFds(pid, status.fdSize);
      images.prepare(OF_A_TASK.map((kind) => imageName(kind, inner)));
      images.prepare([imageName("pages", tasks + 1), imageName("fdinfo", FIRST_FILES_ID + tasks)]);
      tasks += 1;
      threads += status.threads;
      if (status.threads > 1)
        images.prepare(followers(pid, depth).map((tid) => imageName("core", tid)));
      if (connections) images.prepare(streams(pid, { size: status.fdSize, lists }));
    }
    makeRoomForDescriptors(descriptors);
    if (threads >= MANY_THREADS) optimiseSoon();
  }

  /** Reads the kernel's description of its types (5 MB) where the dump will probably ask for it. */
  prepareKernelTypes(): void {
    const statuses = [...this.#statuses];
    if (statuses.some(([pid, { fdSize }]) => hasRing(pid, fdSize))) prepareToLook();
    else if (
      this.#pids.slice(0, FIRST_PROCESSES).some(waitsWithHiddenEnd) ||
      (statuses.some(([, { threads }]) => threads > 1) && listsSemaphores())
    )
      undefinedIfUnsupported(() => KernelTypes.ofKernel());
  }
}

/** From so many threads on what is done for each is done so often that it pays to have it compiled well. */
const MANY_THREADS = 200;

/** Takes back what the executables have V8 do, which is to compile well only what runs for long (see bin/criu). */
function optimiseSoon(): void {
  if (process.execArgv.some((option) => option.startsWith("--interrupt-budget=")))
    process.getBuiltinModule("node:v8").setFlagsFromString("--interrupt-budget=135168");
}

/** Descriptors of a process that are looked at; rings are made early. */
const FIRST_DESCRIPTORS = 64;

/** Processes whose waits are looked at. */
const FIRST_PROCESSES = 64;

/** `size` of its table of descriptors. */
function hasRing(pid: number, size: number): boolean {
  try {
    // The list of thousands takes its time.
    const numbers =
      size <= FIRST_TABLE
        ? readFdNumbers(pid).slice(0, FIRST_DESCRIPTORS)
        : Array.from({ length: FIRST_DESCRIPTORS }, (_, fd) => fd);
    return numbers.some((fd) => readLink(`/proc/${pid}/fd/${fd}`) === RING_LINK);
  } catch (error) {
    // It has ended, or closed one; what else is wrong is told when it counts.
    if (error instanceof RepriseError) return false;
    throw error;
  }
}

/**
 * Images of the TCP connections of a process. The kernel looks through its whole table for the list of a namespace (10 ms): it is read
 * once, in `lists`, and not at all for a few descriptors among which there is no socket.
 */
function streams(
  pid: number,
  { size, lists }: { readonly size: number; readonly lists: Map<string, ReadonlySet<number>> },
): string[] {
  const few = size <= FIRST_TABLE ? socketInodes(pid) : undefined;
  if (few?.length === 0) return [];
  const namespace = undefinedIfGone(() => readProcLink(pid, "ns/net"));
  if (namespace === undefined) return [];
  const connections = lists.get(namespace) ?? undefinedIfGone(() => readConnectionInodes(pid));
  if (connections === undefined) return [];
  lists.set(namespace, connections);
  if (connections.size === 0) return [];
  return (few ?? socketInodes(pid))
    .filter((inode) => connections.has(inode))
    .map((inode) => imageName("tcp-stream", inode));
}

function socketInodes(pid: number): number[] {
  return (readFdsIfAlive(pid) ?? []).flatMap(({ target }) => {
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    return inode === undefined ? [] : [Number(inode)];
  });
}

/** The threads of a process but its leader, by their numbers in the images. */
function followers(pid: number, depth: number): number[] {
  const tids = (readTasksIfAlive(pid) ?? []).filter((tid) => tid !== pid);
  if (depth === 0) return tids;
  return tids.flatMap((tid) => readThreadStatusIfAlive(pid, tid)?.nsPid[depth] ?? []);
}
