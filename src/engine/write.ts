// Writing the images of a collected tree: memory first, then one small set of images a task, then the files of all.

import { assert } from "../errors.ts";
import { remoteSharedPages, writtenPages } from "../objects/files/pages-id.ts";
import { writePages, scanPages, type PageScan, isSharedByFork } from "../objects/memory/pages.ts";
import { movePages } from "../objects/memory/page-sink.ts";
import { TaskMemory } from "../objects/memory/task-memory.ts";
import { guardEntry, hasPrivatePages, VMA_VDSO } from "../objects/memory/vma.ts";
import { EMPTY_MM, mmEntry } from "../objects/memory/mm.ts";
import { followerCore, leaderCore, zombieCore } from "../objects/task/core.ts";
import type { ProcessState } from "../objects/task/inquiry.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import { log } from "../log.ts";
import type { MessageInput } from "../images/codec.ts";
import type { ReprisePidsEntry } from "../images/schema/messages.generated.ts";
import { crc32 } from "../images/crc32.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type { NetworkLock } from "../objects/network/lock.ts";
import { MAX_CHECKED_PAGES } from "../images/manifest.ts";
import type { RemotePages } from "../images/image-set-writer.ts";
import { imageName } from "../images/names.ts";
import { PE_LAZY, PE_PARENT, PE_PRESENT, type PageRun } from "../images/pagemap.ts";
import type { CgroupTable } from "../objects/cgroups/dump.ts";
import type { SeccompTable } from "../objects/task/seccomp.ts";
import { NAMESPACE_ROOMS } from "../objects/namespaces/registry.ts";
import { writeExternal } from "../objects/namespaces/external.ts";
import { writeOwnClocks } from "../objects/namespaces/time.ts";
import type { CollectedNamespaces } from "../objects/namespaces/collect.ts";
import { idsInside } from "../objects/namespaces/user.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { EachLook, SweepingLook, type ThreadLook } from "../objects/task/thread-look.ts";
import type { CollectedTask, CollectedTree } from "./collect.ts";
import type { FrozenTree } from "./freeze.ts";
import type { ComparedAhead } from "./compare-ahead.ts";
import type { ParentSet } from "./incremental.ts";
import { leaveLazy } from "./page-source.ts";
import type { InsideView } from "./look-inside.ts";
import { writeAttachedSegments } from "./segments.ts";
import type { DumpStats } from "./progress.ts";
import type { SpacesAhead } from "./spaces-ahead.ts";
import type { WrittenAhead } from "./write-ahead.ts";

/** What was written, for the statistics. */
export interface WrittenTree {
  readonly pagesWritten: number;
  /** Tasks with the runs of their pagemaps. */
  readonly pagemaps: readonly { readonly task: FrozenTask; readonly runs: readonly PageRun[] }[];
  /** The tree counts as frozen until this is called. */
  stats(tree: FrozenTree, times: { readonly begun: number; readonly frozenAt: number }): DumpStats;
}

/** What is known already: pages in a set before this one or in this one's files, and what was looked at ahead. */
export interface MemorySources {
  readonly parent: ParentSet;
  readonly ahead: WrittenAhead;
  readonly compared: ComparedAhead;
  /** Namespaces and cgroups that were saved while the tasks ran. */
  readonly spaces: SpacesAhead | undefined;
  readonly lock: NetworkLock;
  /** Pages that may come later are left in the tasks, for a lazy-pages daemon. */
  readonly leaveLazyPages: boolean;
}

/** Writes everything but the inventory. */
export async function writeTree(
  tree: FrozenTree,
  collected: CollectedTree,
  inside: InsideView,
  images: ImageSetWriter,
  memory: MemorySources,
): Promise<WrittenTree> {
  const begun = performance.now();
  writeNamespaces(tree, collected, images, memory);
  const looked = collected.live
    .filter(({ sharesMemory }) => !sharesMemory)
    .map((task) => ({ task, scan: scanPages(task.task, task.vmas) }));
  const pages = new PagesUnderWay(looked, images, memory);
  try {
    using look = new EachLook();
    const { seccomp, namespaces, cgroups } = collected;
    const around = { looked, inside, look, seccomp, namespaces, cgroups, pages };
    for (const task of collected.live) await writeTask(task, around, images);
  } finally {
    // Whatever has failed: nothing reads the tasks' memory any more when they go on.
    await pages.ended;
  }
  const scans = pages.written();
  memory.ahead.end();
  for (const task of tree.tasks) {
    if (task.state === "zombie") images.write("core", task.innerPid, [zombieCore(task)]);
  }
  writePstree(tree, images);
  collected.files.finish();
  if (collected.fileLocks.length > 0) images.write("filelocks", 0, collected.fileLocks);
  images.write("seccomp", 0, [collected.seccomp.entry()]);
  if (memory.spaces?.hasSaved(collected.cgroups) !== true) {
    const cgroups = collected.cgroups.entry();
    if (cgroups !== undefined) images.write("cgroup", 0, [cgroups]);
  }
  const countRuns = (bit: number): number =>
    scans.reduce((sum, { runs }) => sum + countPages(runs, bit), 0);
  const pagesWritten = countRuns(PE_PRESENT);
  const lazyWritten = scans.reduce(
    (sum, { runs }) =>
      sum +
      countPages(
        runs.filter(({ flags }) => (flags & PE_PRESENT) !== 0),
        PE_LAZY,
      ),
    0,
  );
  return {
    pagesWritten,
    pagemaps: scans.map(({ task: { task }, runs }) => ({ task, runs })),
    stats: (of, { begun: start, frozenAt }) => {
      const frozen_time = micro(performance.now() - frozenAt);
      const shared = sharedPages(images, pagesWritten);
      return {
        freezing_time: micro(frozenAt - start),
        frozen_time,
        memdump_time: micro(pages.endedAt - begun),
        memwrite_time: micro(pages.endedAt - begun),
        pages_scanned: scans.reduce((sum, { scan }) => sum + scan.scanned, 0),
        pages_skipped_parent: countRuns(PE_PARENT),
        pages_written: pagesWritten,
        pages_lazy: memory.leaveLazyPages ? countRuns(PE_LAZY) - lazyWritten : 0,
        shpages_scanned: shared,
        shpages_skipped_parent: 0,
        shpages_written: shared,
        stops: of.counters.stops,
        remote_calls: of.counters.remoteCalls,
        tasks: of.tasks.length,
        threads: of.tasks.reduce((sum, task) => sum + task.threads.length, 0),
        pages_shared_by_fork: sharedByFork(collected),
      };
    },
  };
}

/** What is in the tree's namespaces of its own; and where it shares the engine's clocks, what they say. */
function writeNamespaces(
  tree: FrozenTree,
  collected: CollectedTree,
  images: ImageSetWriter,
  { spaces, lock }: Pick<MemorySources, "spaces" | "lock">,
): void {
  const { namespaces, mounts, namespaceOptions: options } = collected;
  const rootPid = (tree.tasks[0] as FrozenTask).pid;
  const dump = { images, options, namespaces, mounts, rootPid, lock };
  for (const namespace of namespaces.all) {
    if (namespace.externalKey === undefined) {
      if (spaces?.finish(namespace, dump) !== true) {
        const room = NAMESPACE_ROOMS.find(({ kind }) => kind === namespace.kind);
        room?.write(namespace, dump);
      }
    } else writeExternal(namespace, images);
  }
  writeAttachedSegments(collected, images);
  if (namespaces.ofRoot("time") === undefined) writeOwnClocks(images);
}

/**
 * Pages that are there once for several tasks since a fork, counted as often as a restore may make them more: it shares those
 * again that a child has in an area equal to its parent's, and that nobody has locked.
 */
function sharedByFork({ live }: CollectedTree): number {
  const kilobytes = live
    .filter(({ sharesMemory }) => !sharesMemory)
    .flatMap(({ vmas }) => vmas)
    .filter(({ entry }) => hasPrivatePages(entry) && (entry.status & VMA_VDSO) === 0)
    .reduce((sum, { area }) => sum + area.beyondShare, 0);
  const pages = Math.round((kilobytes * 1024) / PAGE_SIZE);
  if (pages > 0)
    log.info(
      `${pages} pages are shared by fork: the restored tasks need up to this much memory more, where children have other areas than their parents`,
    );
  return pages;
}

/** Pages of shared memory, which the rooms of their files have written. */
function sharedPages(images: ImageSetWriter, privatePages: number): number {
  return images.remotePages === undefined
    ? writtenPages(images) - privatePages
    : remoteSharedPages(images);
}

function micro(ms: number): number {
  return Math.max(0, Math.round(ms * 1000));
}

/** A task whose memory was looked at. */
interface LookedAt {
  readonly task: CollectedTask;
  readonly scan: PageScan;
}

interface TaskScan extends LookedAt {
  /** What the pagemap says. */
  readonly runs: readonly PageRun[];
}

/** The pages of all tasks, which are copied and written by other threads where they are many, while this one makes images. */
class PagesUnderWay {
  /** Resolves when nothing is under way any more, also when it has failed. */
  readonly ended: Promise<void>;
  endedAt = 0;
  #outcome: readonly TaskScan[] | { readonly error: unknown } | undefined;

  constructor(looked: readonly LookedAt[], images: ImageSetWriter, sources: MemorySources) {
    this.ended = this.#write(looked, images, sources);
  }

  /** What was written. Throws what has kept it from that. */
  written(): readonly TaskScan[] {
    const outcome = this.#outcome;
    assert(outcome !== undefined, "pages are under way");
    if ("error" in outcome) throw outcome.error;
    return outcome;
  }

  /** Gives the pages a turn, if there are any left: what has been copied is to be written, and the next copied. */
  async turn(): Promise<void> {
    if (this.#outcome === undefined) await new Promise((resolve) => void setImmediate(resolve));
  }

  async #write(
    looked: readonly LookedAt[],
    images: ImageSetWriter,
    sources: MemorySources,
  ): Promise<void> {
    try {
      const scans: TaskScan[] = [];
      for (const one of looked) scans.push(await writeMemory(one, images, sources));
      this.#outcome = scans;
    } catch (error) {
      this.#outcome = { error };
    }
    this.endedAt = performance.now();
  }
}

function countPages(runs: readonly PageRun[], bit: number): number {
  return runs.reduce((sum, { flags, pages }) => sum + ((flags & bit) === 0 ? 0 : pages), 0);
}

async function writeMemory(
  { task, scan }: LookedAt,
  images: ImageSetWriter,
  sources: MemorySources,
): Promise<TaskScan> {
  if (images.remotePages !== undefined)
    return sendMemory({ task, scan }, images.remotePages, sources);
  const runs = decideRuns(task, scan, sources);
  const { pagesId, raw, isWritten } = sources.ahead.place(task.task, runs);
  const present = runs.filter(({ flags }) => (flags & PE_PRESENT) !== 0);
  const bytes = countPages(present, PE_PRESENT) * PAGE_SIZE;
  const isChecked = bytes <= MAX_CHECKED_PAGES;
  let crc = 0;
  try {
    if (!isWritten) {
      await writePages(task.task, present, {
        path: images.path(imageName("pages", pagesId)),
        fd: raw.fd,
        keepShared: isSharedByFork(task.vmas.map(({ area }) => area)),
        ...(isChecked ? { passing: (passed) => (crc = crc32(passed, crc)) } : {}),
      });
    }
    raw.description = isChecked ? { size: bytes, crc32: crc } : { size: bytes };
  } finally {
    raw.close();
  }
  images.writePagemap("pagemap", task.task.innerPid, { pagesId, runs });
  return { task, scan, runs };
}

/** To a page server. What its parent set has is known only by the parent set here. */
function sendMemory(
  { task, scan }: LookedAt,
  remote: RemotePages,
  sources: MemorySources,
): TaskScan {
  const sink = remote.open("pagemap", task.task.innerPid);
  const runs = sink.inParent ? decideRuns(task, scan, sources) : scan.runs;
  using memory = new TaskMemory(task.task.pid);
  movePages(runs, memory, sink);
  return { task, scan, runs };
}

/** Leaves to the parent set what it has, and to the tasks what can wait. */
function decideRuns(
  { task: { pid, innerPid }, vmas }: CollectedTask,
  { runs }: PageScan,
  { parent, compared, leaveLazyPages }: MemorySources,
): readonly PageRun[] {
  let decided = runs;
  if (parent.exists) {
    using memory = new TaskMemory(pid);
    decided = parent.mark(runs, { innerPid, vmas, memory, known: compared.known(pid) });
  }
  return leaveLazyPages ? leaveLazy(decided) : decided;
}

interface TaskParts {
  readonly looked: readonly LookedAt[];
  readonly inside: InsideView;
  readonly look: ThreadLook;
  readonly seccomp: SeccompTable;
  readonly namespaces: CollectedNamespaces;
  readonly cgroups: CgroupTable;
  readonly pages: PagesUnderWay;
}

/** So many images of threads are made at a time, in a few milliseconds. */
const THREADS_AT_ONCE = 32;

/** From so many threads on it pays to look at all of them at once. */
const MANY_THREADS = 16;

const NO_SCAN = { guards: [], probed: new Set<VmaEntry>() };

async function writeTask(
  collected: CollectedTask,
  around: TaskParts,
  images: ImageSetWriter,
): Promise<void> {
  const { looked, inside } = around;
  const { task, ids, exeId, cwdId, rootId, fds } = collected;
  const state = inside.process(task);
  const sweeping = task.threads.length >= MANY_THREADS ? new SweepingLook(task) : undefined;
  const look = sweeping ?? around.look;
  const { guards, probed } = looked.find(({ task: of }) => of === collected)?.scan ?? NO_SCAN;
  const areas = collected.vmas.map(({ entry }) =>
    probed.has(entry) ? { ...entry, probed: true } : entry,
  );
  const vmas = [
    ...areas.map((entry) => withPolicy(entry, state.areaPolicies)),
    ...guards.map(({ address, length }) => guardEntry({ start: address, end: address + length })),
  ];
  const [leader, ...followers] = task.threads;
  const others = task.endedLeader === undefined ? followers : task.threads;
  if (leader !== undefined) {
    images.write("core", task.innerPid, [
      leaderCore(task, leader, {
        process: state,
        thread: inside.thread(leader.tid),
        look,
        cgroupSet: around.cgroups.setOf(leader.tid),
        uidInside: (uid) => idsInside(around.namespaces, { uid, gid: 0 }).uid,
        seccomp: around.seccomp.thread(leader.tid),
      }),
    ]);
  }
  for (const [index, thread] of others.entries()) {
    if (index % THREADS_AT_ONCE === 0) await around.pages.turn();
    images.write("core", thread.innerTid, [
      followerCore(task, thread, {
        thread: inside.thread(thread.tid),
        look,
        cgroupSet: around.cgroups.setOf(thread.tid),
        seccomp: around.seccomp.thread(thread.tid),
        fs: collected.threadPlaces.get(thread.tid),
        usualPersonality: inside.thread(task.pid).personality,
      }),
    ]);
  }
  images.write("ids", task.innerPid, [ids]);
  images.write("mm", task.innerPid, [
    collected.sharesMemory ? SHARED_MM : mmEntry(task, state.attributes, { ...state, exeId, vmas }),
  ]);
  images.write("fs", task.innerPid, [
    collected.sharesDirectories
      ? SHARED_FS
      : { cwd_id: cwdId, root_id: rootId, umask: task.status.umask ?? 0o22 },
  ]);
  if (fds !== undefined) {
    images.write(
      "fdinfo",
      ids.files_id,
      fds.map(({ fd, id, type, cloexec }) => ({ id, flags: cloexec ? 1 : 0, type, fd })),
    );
  }
}

function withPolicy(entry: VmaEntry, policies: ProcessState["areaPolicies"]): VmaEntry {
  const policy = policies.get(entry.start);
  return policy === undefined ? entry : { ...entry, policy };
}

/**
 * What is shared is in the images of the task that comes first. CRIU, which cannot share it, would give each task its own: there is
 * no file 0, so it stops at these.
 */
const SHARED_FS = { cwd_id: 0, root_id: 0, shared: true };
const SHARED_MM = { ...EMPTY_MM, reprise: { shared: true, saved_auxv: [] } };

function writePstree(tree: FrozenTree, images: ImageSetWriter): void {
  const depth = (tree.tasks[0] as FrozenTask).status.nsPid.length - 1;
  images.write(
    "pstree",
    0,
    tree.tasks.map((task) => ({
      pid: task.innerPid,
      ppid: task.parent?.innerPid ?? 0,
      pgid: task.status.nsPgid[depth] ?? task.stat.pgrp,
      sid: task.status.nsSid[depth] ?? task.stat.session,
      threads: threadNumbers(task),
      ...innerNumbers(task, depth),
    })),
  );
}

/** Its first thread has its number, also when it has ended. */
function threadNumbers({ innerPid, threads, endedLeader }: FrozenTask): number[] {
  const numbers = threads.map(({ innerTid }) => innerTid);
  return numbers.length === 0 || endedLeader !== undefined ? [innerPid, ...numbers] : numbers;
}

/** What a task, its group and its session are called in the pid namespaces below that of the root task. */
function innerNumbers(
  { status, threads, endedLeader }: FrozenTask,
  depth: number,
): { reprise?: MessageInput<ReprisePidsEntry> } {
  const pids = status.nsPid.slice(depth + 1);
  if (pids.length === 0) return {};
  return {
    reprise: {
      pids,
      pgids: status.nsPgid.slice(depth + 1),
      sids: status.nsSid.slice(depth + 1),
      tids: [
        ...(endedLeader === undefined ? [] : pids),
        ...threads.flatMap((thread) => thread.status.nsPid.slice(depth + 1)),
      ],
    },
  };
}
