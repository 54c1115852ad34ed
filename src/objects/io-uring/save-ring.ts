// Saving a ring: what it is, refusals by name, and its entry.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RepriseIoUringEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readFdNumbers } from "../../proc/fd.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { readFdStat } from "../../proc/links.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { KernelMemory } from "../../sys/kernel-memory.ts";
import { syscall } from "../../sys/ffi.ts";
import { openPidfd } from "../../sys/process.ts";
import { CLOCK_MONOTONIC } from "../../sys/abi/event-files.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { kernelMemory } from "../files/kernel-view.ts";
import { processNumber } from "../task/task.ts";
import { readOwner } from "../files/owner.ts";
import {
  holdersOf,
  fileAddresses,
  lookAtRing,
  seesKernelNumbers,
  type RingContext,
} from "./context.ts";
import { placesOf } from "./counters.ts";
import { hasArray, isMadeByOwner, KEPT_FLAGS, offsetsOf } from "./layout.ts";
import { areasOf, MEMORY_NAME, noteOwned } from "./ring-memory.ts";

/** What is another way to the same ring; threads of the kernel that rings share are each ring's own then. */
const IGNORED_FLAGS =
  uring.IORING_SETUP_CQSIZE |
  uring.IORING_SETUP_CLAMP |
  uring.IORING_SETUP_ATTACH_WQ |
  uring.IORING_SETUP_NO_MMAP;

/** A restore that takes longer is announced: so many requests are made again in a second or two. */
const MANY_REQUESTS = 10_000_000;

/** The entry of a ring. */
export function writeRing(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const ring = look(file, dump);
  const setup_flags = ring.flags & ~IGNORED_FLAGS;
  refuse(file, ring, setup_flags);
  const requests = Math.max(ring.sqHead, ring.cqTail);
  if (requests > MANY_REQUESTS) {
    log.warn(
      `fd ${file.fd} of pid ${file.task.pid} (${file.target}): a restore brings its counters to ${requests} by as many empty requests, some seconds for ten millions`,
    );
  }
  const shape = { setup_flags, sq_entries: ring.sqEntries, cq_entries: ring.cqEntries };
  const entry: RepriseIoUringEntry = {
    id,
    flags: file.info.flags & ~O_CLOEXEC,
    ...shape,
    sq_head: ring.sqHead,
    cq_tail: ring.cqTail,
    ...offsetsOf(shape),
    ...(ring.drainDisabled ? { drain_disabled: true } : {}),
    rings_size: ring.rings.length,
    entries_size: ring.entries.length,
    rings: withoutZeros(ring.rings),
    entries: withoutZeros(ring.entries),
    ...ownerPart(file, ring, { setup_flags, dump }),
    ...registeredEventfd(file, ring, dump),
    requests: savedRequests(file, ring, dump),
    files: registeredFiles(file, ring, dump),
    buffers: ring.buffers.map(({ address, length }) => ({ start: address, length })),
    ...registeredBesides(file, ring, dump),
  };
  checkQueues(file, entry, ring.rings);
  const held = [...ring.files, ...waitedFor(ring)].filter((address) => address !== 0n);
  if (held.length > 0) noteHolder(dump, dump.borrow(file), held);
  if (isMadeByOwner(entry)) {
    noteOwned(dump, id, file);
    dump.later(() => checkMapped(file, entry, dump));
  }
  if (typeof ring.pending !== "string") {
    const pids = new Set(ring.pending.map(({ pid }) => pid));
    for (const pid of pids)
      dump.later(() => checkMapped(file, entry, dump, { user: inProc(pid, file) }));
  }
  return {
    type: FdTypes.EXT,
    id,
    ext: { id, fown: readOwner(file, dump) },
    reprise_io_uring: entry,
  };
}

function look(file: OpenFile, dump: FilesDump): RingContext {
  const end = performance.now() + PATIENCE_MS;
  for (;;) {
    const ring = lookOnce(file, dump);
    if (ring !== undefined && (ring.inFlight === 0 || ring.pending.length === ring.inFlight))
      return ring;
    // Threads of the kernel still work, and may come to the end of what they do.
    if (performance.now() < end) sleepMs(2);
    else if (ring !== undefined) return ring;
    else throw refusal(file, "requests come to their end while it is looked at", BUSY);
  }
}

const PATIENCE_MS = 30;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

function sleepMs(ms: number): void {
  Atomics.wait(sleeper, 0, 0, ms);
}

function lookOnce(file: OpenFile, dump: FilesDump): RingContext | undefined {
  try {
    return lookAtRing(dump.borrow(file), kernelMemory(dump));
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    throw refusal(file, `it cannot be looked into: ${error.message}`, error.hint ?? WITHOUT_RINGS);
  }
}

const WITHOUT_RINGS =
  "Let the process close its rings before the dump, or start it so that it has none: with kernel.io_uring_disabled=2 most programs use epoll instead (Node: UV_USE_IO_URING=0).";
const BUSY = `Dump when the program waits for nothing by this ring. ${WITHOUT_RINGS}`;

function refuse(file: OpenFile, ring: RingContext, flags: number): void {
  refuseBusy(file, ring, flags);
  const others = flags & ~KEPT_FLAGS;
  if (others !== 0)
    throw refusal(file, `it was set up with flags 0x${others.toString(16)}`, WITHOUT_RINGS);
  const [extra] = ring.extras;
  if (extra !== undefined) throw refusal(file, `it has ${extra}`, WITHOUT_RINGS);
  if (ring.memory !== undefined && ring.memory.name !== `memfd:${MEMORY_NAME}`)
    throw refusal(file, "its memory is the program's own (IORING_SETUP_NO_MMAP)", WITHOUT_RINGS);
}

/** Requests that wait can be begun anew, by the thread that began them. */
function refuseBusy(
  file: OpenFile,
  { inFlight, pending, sqHead }: RingContext,
  flags: number,
): void {
  if (inFlight === 0) return;
  const what = inFlight === 1 ? "1 request is" : `${inFlight} requests are`;
  const isPolled = (flags & (uring.IORING_SETUP_IOPOLL | uring.IORING_SETUP_SQPOLL)) !== 0;
  if (typeof pending === "string") throw refusal(file, `${what} under way: ${pending}`, BUSY);
  if (isPolled || pending.length !== inFlight || sqHead < inFlight)
    throw refusal(file, `${what} under way`, BUSY);
}

function savedRequests(
  file: OpenFile,
  { inFlight, pending, files }: RingContext,
  dump: FilesDump,
): RepriseIoUringEntry["requests"] {
  if (inFlight === 0 || typeof pending === "string") return [];
  if (!seesKernelNumbers(kernelMemory(dump)))
    throw refusal(
      file,
      "requests wait, and by which threads can be told only from outside of pid namespaces",
      BUSY,
    );
  return pending.map(({ tid, pid, file: address, entry, time }) => {
    const thread = dump.innerThread?.(tid);
    if (thread === undefined)
      throw refusal(file, `thread ${tid}, which is not in the tree, waits for a request`, BUSY);
    if (address !== 0n) {
      const own = openFilesOf(inProc(pid, file), file, dump);
      const isFixed = (entry.readUInt8(uring.SQE_FLAGS) & uring.IOSQE_FIXED_FILE) !== 0;
      const number = isFixed ? files.indexOf(address) : own.numberOf(address);
      if (number < 0) throw refusal(file, "a request waits for a file that has been closed", BUSY);
      entry.writeInt32LE(number, uring.SQE_FD);
    }
    const left = time === undefined ? {} : { seconds: time.seconds, nanoseconds: time.nanoseconds };
    return { thread, entry, ...left };
  });
}

/** Whom to look at for what a process has: its first thread may have ended. */
function inProc(pid: number, { task }: OpenFile): number {
  return pid === processNumber(task) ? task.pid : pid;
}

/** The files that requests wait for. */
function waitedFor({ pending }: RingContext): bigint[] {
  return typeof pending === "string" ? [] : pending.map((request) => request.file);
}

/** Rings that hold files, by the engine's descriptors. */
const holders = new WeakMap<FilesDump, Map<number, readonly bigint[]>>();

function noteHolder(dump: FilesDump, ring: number, files: readonly bigint[]): void {
  let known = holders.get(dump);
  if (known === undefined) {
    const all = new Map<number, readonly bigint[]>();
    holders.set(dump, (known = all));
    dump.atEnd((tasks) => {
      if (tasks === "dead") tryToAwaitRelease(all);
    });
  }
  known.set(ring, files);
}

/** The dump is done: that this cannot be waited for is no failure. */
function tryToAwaitRelease(rings: ReadonlyMap<number, readonly bigint[]>): void {
  try {
    awaitRelease(rings);
  } catch (error) {
    log.debug(`files of io_uring requests are given up later: ${String(error)}`);
  }
}

/**
 * Requests live as long as their ring, of which the engine has copies, and hold the files that they wait for: until then a port is not
 * free, say. What ends them, when nobody has the ring any more, is a thread of the kernel, some milliseconds later.
 */
function awaitRelease(rings: ReadonlyMap<number, readonly bigint[]>): void {
  using memory = new KernelMemory();
  const fds = readFdNumbers(process.pid);
  const own = fileAddresses(fds, memory);
  const ours = new Set([...rings.keys()].map((ring) => own[fds.indexOf(ring)]));
  const nothing = openSync("/dev/null", "r");
  // The numbers stay ours, and are closed with all others.
  fds.forEach((fd, index) => ours.has(own[index]) && syscall("dup3", nothing, fd, O_CLOEXEC));
  closeSync(nothing);
  const copies = new Map<bigint, number>();
  for (const address of own) copies.set(address, (copies.get(address) ?? 0) + 1);
  const end = performance.now() + RELEASE_PATIENCE_MS;
  for (const file of new Set([...rings.values()].flat())) {
    // Without one the address may be another file's by now.
    const count = copies.get(file) ?? 0;
    if (count > 0) while (holdersOf(file, memory) > count && performance.now() < end) sleepMs(1);
  }
}

/** Somebody outside of the tree may have them open as well. */
const RELEASE_PATIENCE_MS = 200;

/** The words that the program writes may be anything; the kernel's must be what it counts itself. */
function checkQueues(file: OpenFile, ring: RepriseIoUringEntry, rings: Buffer): void {
  const places = placesOf(ring);
  const word = (at: number): number => rings.readUInt32LE(at);
  const waiting = (ring.cq_tail - word(places.cqHead)) >>> 0;
  const isPolled = (ring.setup_flags & uring.IORING_SETUP_SQPOLL) !== 0;
  const isSound =
    word(places.sqHead) === ring.sq_head &&
    word(places.cqTail) === ring.cq_tail &&
    waiting <= ring.cq_entries;
  if (!isSound) throw refusal(file, "its queues are not as the kernel has them", WITHOUT_RINGS);
  if (isPolled && word(places.sqTail) !== ring.sq_head)
    throw refusal(file, "its thread of the kernel has not taken all requests yet", BUSY);
}

/** Who makes it, and what only that process can register. */
function ownerPart(
  file: OpenFile,
  ring: RingContext,
  { setup_flags, dump }: { readonly setup_flags: number; readonly dump: FilesDump },
): Pick<RepriseIoUringEntry, "owner" | "thread" | "sq_thread_idle" | "sq_thread_cpu"> {
  const hasRegistered =
    ring.eventfd !== undefined ||
    ring.files.length > 0 ||
    ring.buffers.length > 0 ||
    ring.clock !== CLOCK_MONOTONIC ||
    ring.workerLimits.length > 0 ||
    ring.registrations.length > 0;
  if (!isMadeByOwner({ setup_flags }) && !hasRegistered && ring.inFlight === 0) return {};
  const { task } = file;
  const owner = { owner: task.innerPid };
  if (!isMadeByOwner({ setup_flags })) return owner;
  if (!seesKernelNumbers(kernelMemory(dump)))
    throw refusal(
      file,
      "only one thread may use it, and which one can be told only from outside of pid namespaces",
      WITHOUT_RINGS,
    );
  const { poller, submitter } = ring;
  if (poller !== undefined && poller.pid !== processNumber(task))
    throw refusal(
      file,
      "its thread of the kernel (IORING_SETUP_SQPOLL) is another process's",
      WITHOUT_RINGS,
    );
  if (poller?.isOwners === false)
    throw refusal(
      file,
      "its thread of the kernel (IORING_SETUP_SQPOLL) has other credentials than the process by now",
      WITHOUT_RINGS,
    );
  const thread = submitter === undefined ? undefined : dump.innerThread?.(submitter.tid);
  if (submitter !== undefined && (submitter.pid !== processNumber(task) || thread === undefined))
    throw refusal(
      file,
      "the one thread that may use it (IORING_SETUP_SINGLE_ISSUER) is no more, or another process's",
      WITHOUT_RINGS,
    );
  return {
    ...owner,
    ...(thread === undefined ? {} : { thread }),
    ...(poller === undefined ? {} : { sq_thread_idle: poller.idle }),
    ...((setup_flags & uring.IORING_SETUP_SQ_AFF) === 0 || poller === undefined
      ? {}
      : { sq_thread_cpu: poller.cpu }),
  };
}

function registeredEventfd(
  file: OpenFile,
  { eventfd }: RingContext,
  dump: FilesDump,
): Pick<RepriseIoUringEntry, "eventfd" | "eventfd_async"> {
  if (eventfd === undefined) return {};
  const found = openFilesOf(file.task.pid, file, dump).eventfd(eventfd.id);
  if (found === undefined)
    throw refusal(file, "it has a registered eventfd that the process has closed", WITHOUT_RINGS);
  return { eventfd: found, ...(eventfd.isAsync ? { eventfd_async: true } : {}) };
}

/** What is told of registered files and buffers, and what else the process has registered. */
function registeredBesides(
  file: OpenFile,
  ring: RingContext,
  dump: FilesDump,
): Pick<
  RepriseIoUringEntry,
  | "file_tags"
  | "buffer_tags"
  | "file_range_start"
  | "file_range_length"
  | "clock"
  | "worker_limits"
  | "registrations"
> {
  const { fileTags, bufferTags, fileRange, clock, workerLimits, registrations } = ring;
  const some = (tags: readonly bigint[]): bigint[] =>
    tags.some((tag) => tag !== 0n) ? [...tags] : [];
  if (registrations.length > 0 && !seesKernelNumbers(kernelMemory(dump)))
    throw refusal(
      file,
      "a thread has registered it, and which one can be told only from outside of pid namespaces",
      WITHOUT_RINGS,
    );
  return {
    file_tags: some(fileTags),
    buffer_tags: some(bufferTags),
    ...(fileRange === undefined
      ? {}
      : { file_range_start: fileRange.start, file_range_length: fileRange.length }),
    ...(clock === CLOCK_MONOTONIC ? {} : { clock }),
    worker_limits: [...workerLimits],
    registrations: registrations.map(({ tid, pid, place }) => {
      const thread = dump.innerThread?.(tid);
      if (thread === undefined || pid !== processNumber(file.task))
        throw refusal(
          file,
          `thread ${tid} of another process has registered it (IORING_REGISTER_RING_FDS)`,
          WITHOUT_RINGS,
        );
      return { thread, place };
    }),
  };
}

/** Numbers of registered files in the process, which has them open as well; -1 for places without one. */
function registeredFiles(file: OpenFile, { files }: RingContext, dump: FilesDump): number[] {
  if (files.every((address) => address === 0n)) return files.map(() => -1);
  const open = openFilesOf(file.task.pid, file, dump);
  return files.map((address) => {
    const number = address === 0n ? -1 : open.numberOf(address);
    if (address !== 0n && number < 0)
      throw refusal(file, "it has a registered file that the process has closed", WITHOUT_RINGS);
    return number;
  });
}

/** The files that a process has open. */
interface OpenFiles {
  /** The descriptor of the one at an address in the kernel, of which the engine has a copy then; -1 for none. */
  numberOf(address: bigint): number;
  /** The descriptor of the eventfd with an id of the kernel's. */
  eventfd(id: number): number | undefined;
}

/** By pid: there may be many rings. */
const openFiles = new WeakMap<FilesDump, Map<number, OpenFiles>>();

function openFilesOf(pid: number, file: OpenFile, dump: FilesDump): OpenFiles {
  const known = openFiles.get(dump) ?? new Map<number, OpenFiles>();
  openFiles.set(dump, known);
  const found = known.get(pid) ?? lookAtFiles(pid, file, dump);
  known.set(pid, found);
  return found;
}

function lookAtFiles(pid: number, file: OpenFile, dump: FilesDump): OpenFiles {
  const fds = readFdNumbers(pid);
  let addresses: Map<bigint, number> | undefined;
  let eventfds: Map<number | undefined, number> | undefined;
  const kept = new Set<number>();
  const keep = (fd: number): void => {
    const task = { ...file.task, pid };
    const place = { fd, stat: readFdStat(pid, fd), target: "", procPath: `/proc/${pid}/fd/${fd}` };
    if (!kept.has(fd)) dump.borrow({ ...file, task, ...place });
    kept.add(fd);
  };
  return {
    numberOf: (address) => {
      addresses ??= addressesOf(pid, fds, dump);
      const fd = addresses.get(address) ?? -1;
      if (fd >= 0) keep(fd);
      return fd;
    },
    eventfd: (id) => {
      eventfds ??= new Map(fds.map((fd) => [readFdInfo({ pid, fd }).eventfd?.id, fd]));
      return eventfds.get(id);
    },
  };
}

/** The descriptors of a process by the addresses of their files in the kernel. */
function addressesOf(pid: number, fds: readonly number[], dump: FilesDump): Map<bigint, number> {
  const memory = kernelMemory(dump);
  const found = new Map<bigint, number>();
  const pidfd = openPidfd(pid);
  try {
    for (let from = 0; from < fds.length; from += COPIES_AT_ONCE) {
      const some = fds.slice(from, from + COPIES_AT_ONCE);
      const copies: number[] = [];
      try {
        for (const fd of some) copies.push(syscall("pidfd_getfd", pidfd, fd, 0));
        fileAddresses(copies, memory).forEach((address, index) => {
          if (!found.has(address)) found.set(address, some[index] ?? -1);
        });
      } finally {
        copies.forEach((copy) => closeSync(copy));
      }
    }
  } finally {
    closeSync(pidfd);
  }
  return found;
}

const COPIES_AT_ONCE = 64;

/** Whoever makes it gives it its memory, where the program has it; who begins requests anew writes them there. */
function checkMapped(
  file: OpenFile,
  ring: RepriseIoUringEntry,
  dump: FilesDump,
  { user }: { readonly user?: number } = {},
): void {
  const owner = user ?? file.task.pid;
  const areas = areasOf(dump, ring.id).filter(({ pid }) => pid === owner);
  const isThere = (offset: number, size: number): boolean =>
    areas.some(
      ({ area, offset: at }) => at === offset && area.write && area.end - area.start >= size,
    );
  const needsQueues = user === undefined || hasArray(ring);
  const hasQueues = !needsQueues || isThere(0, ring.rings_size);
  if (hasQueues && isThere(uring.IORING_OFF_SQES, ring.entries_size)) return;
  throw refusal(file, `pid ${owner} has not all of its memory mapped`, WITHOUT_RINGS);
}

function withoutZeros(bytes: Buffer): Buffer {
  let length = bytes.length;
  while (length > 0 && bytes[length - 1] === 0) length -= 1;
  return bytes.subarray(0, length);
}

function refusal({ task, fd, target }: OpenFile, why: string, hint: string): RepriseError {
  const where = fd < 0 ? `a file of pid ${task.pid}` : `fd ${fd} of pid ${task.pid}`;
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump ${where} (${target}): an io_uring ring: ${why}`,
    { pid: task.pid, ...(fd < 0 ? {} : { fd }), hint },
  );
}
