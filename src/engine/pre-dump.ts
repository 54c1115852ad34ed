// A pre-dump: memory alone, while the tasks go on. They are stopped only to see which pages there are; then the pages are
// read from the running tasks. A page that is written to at that moment may come out torn: the dump that follows compares
// every page with what is there (incremental.ts), finds that it differs and writes it again.

import { ImageSetWriter } from "../images/image-set.ts";
import { imageName } from "../images/names.ts";
import { log } from "../log.ts";
import { nextPagesId } from "../objects/files/pages-id.ts";
import { movePages, PagesFile, type PageCounts } from "../objects/memory/page-sink.ts";
import { scanPages, type PageScan } from "../objects/memory/pages.ts";
import { TaskMemory } from "../objects/memory/task-memory.ts";
import { collectVmas, VMA_AIORING, type DumpedVma } from "../objects/memory/vma.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readSmaps } from "../proc/smaps.ts";
import { MAP_HUGETLB } from "../sys/abi/mman.ts";
import { checkDumpArguments } from "./arguments.ts";
import { onePerMemory } from "./common-memory.ts";
import { dedup } from "./dedup.ts";
import { runningTree } from "./running-tree.ts";
import { freezeTree, releaseTree, type FrozenTree } from "./freeze.ts";
import { linkParent, ParentSet, uptimeMicroseconds } from "./incremental.ts";
import type { DumpStats, EngineHooks, ProgressListener } from "./progress.ts";
import { PageClient, type PageServerPlace } from "./page-client.ts";
import { writeDumpStats } from "./stats.ts";
import { syncDirectory } from "./sync.ts";
import { asRepriseError } from "./system-error.ts";

export interface PreDumpOptions {
  /** Root of the tree, in the engine's pid namespace. */
  readonly pid: number;
  readonly imagesDir: string;
  /** Where stats-dump is written. @default imagesDir */
  readonly workDir?: string;
  /** The set before, relative to `imagesDir`: pages that it has are not written again. */
  readonly parentDir?: string;
  /** Send pages to a page server instead of writing them here. */
  readonly pageServer?: PageServerPlace;
  /** Punch what this set has itself out of the sets before it, which then are worth nothing alone. @default false */
  readonly autoDedup?: boolean;
  /** How long stopping the tree may take. @default 10_000 */
  readonly timeoutMs?: number;
  /** cgroup directory to freeze the tree with while it is stopped. */
  readonly freezeCgroup?: string;
  readonly hooks?: EngineHooks;
  readonly onEvent?: ProgressListener;
}

export interface PreDumpResult {
  readonly stats: DumpStats;
}

const DEFAULT_TIMEOUT_MS = 10_000;
/** img_version of a set from which nothing can be restored alone. */
const PRE_DUMP_VERSION = 0;
/** inventory.img: pages were read by process_vm_readv (CRIU's --pre-dump-mode read). */
const MODE_READ = 2;

/**
 * Saves the memory of a tree, which goes on running, for a dump that names this set as its parent.
 *
 * @throws RepriseError; the directory then holds no images.
 */
export async function preDump(options: PreDumpOptions): Promise<PreDumpResult> {
  checkDumpArguments(options);
  const begun = performance.now();
  const since = (): number => performance.now() - begun;
  options.hooks?.script?.("pre-dump", options.pid);
  const images = openImages(options);
  const found: TaskToRead[] = [];
  try {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const [, ...others] = runningTree(options.pid);
    const { freezeCgroup } = options;
    const tree = freezeTree(options.pid, { timeoutMs, freezeCgroup, others });
    const frozenAt = performance.now();
    let uptime: bigint;
    try {
      const threads = tree.tasks.reduce((sum, task) => sum + task.threads.length, 0);
      options.onEvent?.({ kind: "frozen", tasks: tree.tasks.length, threads, ms: since() });
      uptime = uptimeMicroseconds();
      const alive = tree.tasks.filter(({ state }) => state !== "zombie");
      for (const task of onePerMemory(alive)) found.push(lookAt(task));
    } finally {
      releaseTree(tree, { leaveStopped: false });
    }
    const resumedAt = performance.now();
    options.onEvent?.({ kind: "resumed", ms: since() });
    const parent = ParentSet.of(options.imagesDir);
    const counts = found.map((task) => savePages(task, { images, parent }));
    images.remotePages?.finish();
    const pages = counts.reduce((sum, { written }) => sum + written, 0);
    options.onEvent?.({ kind: "memory", pages, ms: since() });
    images.commit({
      img_version: PRE_DUMP_VERSION,
      dump_uptime: uptime,
      pre_dump_mode: MODE_READ,
    });
    const stats = statsOf({ tree, found, counts }, { begun, frozenAt, resumedAt });
    writeDumpStats(options.workDir ?? options.imagesDir, stats);
    syncDirectory(options.imagesDir);
    options.onEvent?.({ kind: "committed", ms: since() });
    if (options.autoDedup === true && parent.exists) dedup(options.imagesDir);
    options.hooks?.script?.("post-dump", options.pid);
    return { stats };
  } catch (error) {
    images.abort();
    throw asRepriseError(error, `pre-dump pid ${options.pid}`);
  } finally {
    for (const { memory } of found) memory[Symbol.dispose]();
  }
}

function openImages({ imagesDir, parentDir, pageServer, pid }: PreDumpOptions): ImageSetWriter {
  try {
    const images = new ImageSetWriter(imagesDir, { sync: "none" });
    if (parentDir !== undefined) linkParent(imagesDir, parentDir);
    if (pageServer !== undefined) images.remotePages = new PageClient(pageServer);
    return images;
  } catch (error) {
    throw asRepriseError(error, `pre-dump pid ${pid}`);
  }
}

/** A task and the pages that it had when it was stopped. */
interface TaskToRead {
  readonly innerPid: number;
  readonly vmas: readonly DumpedVma[];
  readonly scan: PageScan;
  readonly memory: TaskMemory;
}

function lookAt(task: FrozenTask): TaskToRead {
  const noFiles = (): { id: number; memfd: boolean } => ({ id: 0, memfd: false });
  // Kernel and device write to these without a trace; the dump saves them whole.
  const vmas = collectVmas(task, readSmaps(task.pid), noFiles).filter(
    ({ entry }) => (entry.status & VMA_AIORING) === 0 && (entry.flags & MAP_HUGETLB) === 0,
  );
  const scan = scanPages(task, vmas);
  return { innerPid: task.innerPid, vmas, scan, memory: new TaskMemory(task.pid) };
}

interface PageTarget {
  readonly images: ImageSetWriter;
  readonly parent: ParentSet;
}

function savePages(task: TaskToRead, { images, parent }: PageTarget): PageCounts {
  if (images.remotePages !== undefined) {
    const sink = images.remotePages.open("pagemap", task.innerPid);
    const runs = sink.inParent ? parent.mark(task.scan.runs, task) : task.scan.runs;
    return movePages(runs, task.memory, sink);
  }
  const runs = parent.mark(task.scan.runs, task);
  const pagesId = nextPagesId(images);
  const raw = images.openRaw("pages", pagesId);
  using file = new PagesFile(raw.fd, images.path(imageName("pages", pagesId)));
  const counts = movePages(runs, task.memory, file);
  raw.close();
  // A pagemap without entries is one that CRIU cannot read: a task that ended meanwhile has none.
  if (file.runs.length === 0) log.info(`pid ${task.innerPid} ended, or has no memory any more`);
  else images.writePagemap("pagemap", task.innerPid, { pagesId, runs: file.runs });
  return counts;
}

interface Saved {
  readonly tree: FrozenTree;
  readonly found: readonly TaskToRead[];
  readonly counts: readonly PageCounts[];
}

interface Moments {
  readonly begun: number;
  readonly frozenAt: number;
  readonly resumedAt: number;
}

function statsOf({ tree, found, counts }: Saved, moments: Moments): DumpStats {
  const { begun, frozenAt, resumedAt } = moments;
  const memory = micro(performance.now() - resumedAt);
  return {
    freezing_time: micro(frozenAt - begun),
    frozen_time: micro(resumedAt - frozenAt),
    memdump_time: memory,
    memwrite_time: memory,
    pages_scanned: found.reduce((sum, { scan }) => sum + scan.scanned, 0),
    pages_skipped_parent: counts.reduce((sum, { inParent }) => sum + inParent, 0),
    pages_written: counts.reduce((sum, { written }) => sum + written, 0),
    pages_lazy: 0,
    shpages_scanned: 0,
    shpages_skipped_parent: 0,
    shpages_written: 0,
    stops: tree.counters.stops,
    remote_calls: tree.counters.remoteCalls,
    tasks: tree.tasks.length,
    threads: tree.tasks.reduce((sum, task) => sum + task.threads.length, 0),
    pages_shared_by_fork: 0,
  };
}

function micro(ms: number): number {
  return Math.max(0, Math.round(ms * 1000));
}
