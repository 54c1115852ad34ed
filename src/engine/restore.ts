// The restore, as a story: read and check the images, plan, start the seed, open the files of the whole tree once, make the
// tree, fill every task in parallel, make the threads, and let all go together. Until that moment every task dies with the
// engine, and every error leaves nothing behind.

import { openSync, rmSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { loadImageSet, type LoadedSet } from "../images/check-set.ts";
import { prepareCrc32 } from "../images/crc32.ts";
import { ImageSetReader } from "../images/image-set.ts";
import type { Placement } from "../objects/cgroups/placement.ts";
import { CgroupRestore, type CgroupRestoreOptions } from "../objects/cgroups/restore.ts";
import type { TcpRestoreOptions } from "../objects/files/file-kind.ts";
import { linksToRemove } from "../objects/files/path-for-opening.ts";
import { NetworkLock, savedConnections } from "../objects/network/lock.ts";
import type { NamespacesRestoreOptions } from "../objects/namespaces/room.ts";
import { hostLsm } from "../objects/task/lsm.ts";
import type { CpuCapabilities } from "../objects/cpu/cpu-info.ts";
import { identifyClocks } from "../objects/namespaces/time.ts";
import { punchPlaces } from "../objects/memory/dedup.ts";
import { pathBytes } from "../objects/files/path.ts";
import { checkRegularFiles } from "../objects/files/unchanged.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { trySyscall } from "../sys/ffi.ts";
import { waitForAll } from "../sys/process.ts";
import { crc32OfZlib } from "../sys/zlib.ts";
import type { TraceCounters } from "../tracee/tracee.ts";
import { checkImagesDir } from "./arguments.ts";
import { beginWaiting, finishLateParts } from "./late-parts.ts";
import { enterCgroups, spreadTasks, spreadThreads } from "./enter-cgroups.ts";
import { waitForFreePids } from "./free-pids.ts";
import { handOver } from "./hand-over.ts";
import type { LazyDaemon } from "./lazy-wire.ts";
import { warnOfMisfits } from "./misfits.ts";
import { openFiles, type OpenedFiles } from "./open-files.ts";
import { withoutInherited } from "./inherited.ts";
import { planRestore, type RestorePlan } from "./plan.ts";
import type { EngineHooks, ProgressListener, RestoreStats } from "./progress.ts";
import { fillTasks, fillThreads } from "./fill.ts";
import { BulkFill } from "./bulk-fill.ts";
import { growTree } from "./grow.ts";
import { startRoot } from "./grow-root.ts";
import { settleTree } from "./tree-ends.ts";
import type { Growth } from "./growth.ts";
import { setupNamespaces } from "./namespaces.ts";
import { release } from "./release.ts";
import { writeRestoreStats } from "./stats.ts";
import { asRepriseError } from "./system-error.ts";
import { makeTimesForChildren } from "./time-for-children.ts";
import { waitForExit } from "./wait-exit.ts";

export interface RestoreOptions extends NamespacesRestoreOptions {
  readonly imagesDir: string;
  /** Where stats-restore is written. @default imagesDir */
  readonly workDir?: string;
  /** The tree takes over the engine's session and terminal where it was in one of outside. @default false */
  readonly shellJob?: boolean;
  /** The root becomes a child of the process that started this one, instead of our own. @default false */
  readonly sibling?: boolean;
  /** Leave the tasks stopped. @default false */
  readonly leaveStopped?: boolean;
  /** Make the tree in a new pid namespace, beside a running original. @default only if it was in one of its own */
  readonly newPidNamespace?: boolean;
  /** Plan and check only; the result has the plan. @default false */
  readonly dryRun?: boolean;
  /** Do not compare permission bits of files. @default false */
  readonly skipRwxCheck?: boolean;
  /** Remove the hard links that the dump left for deleted names (link_remap.N), as CRIU does: the set is spent then. @default false */
  readonly removeLinks?: boolean;
  /** Let the lazy-pages daemon that listens in `workDir` fill memory when it is touched. @default false */
  readonly lazyPages?: boolean;
  /** The label of a security module that all tasks get: `apparmor:PROFILE`, `selinux:CONTEXT` or `none:`. @default their own */
  readonly lsmProfile?: string;
  /** Give back the disk space of the pages that were read: the set is spent then. @default false */
  readonly autoDedup?: boolean;
  /** Connect datagram sockets to sockets outside of the tree again. @default false */
  readonly extUnixSk?: boolean;
  /** What is done with saved TCP connections; without it they are refused. */
  readonly tcp?: Partial<TcpRestoreOptions>;
  /** How files are compared with those that were saved. @default "buildid" */
  readonly fileValidation?: "filesize" | "buildid";
  /** What of the processor is compared with the one of the images, to warn. @default state and instructions */
  readonly processor?: CpuCapabilities;
  /** Take file locks again. @default true */
  readonly fileLocks?: boolean;
  /** Cgroups of the tree. @default { mode: "soft" } */
  readonly cgroups?: CgroupRestoreOptions;
  /** Where the caller put the engine, for the tree to be there. */
  readonly placement?: Placement | undefined;
  /** Terminals whose other end was outside get a new one, which `hooks.orphanMaster` takes. @default false */
  readonly orphanPtsMaster?: boolean;
  readonly hooks?: EngineHooks;
  readonly onEvent?: ProgressListener;
}

export interface RestoreResult {
  /** The root task in the engine's pid namespace; 0 after a dry run. */
  readonly pid: number;
  readonly stats: RestoreStats;
  /** What would be done, in lines for people; with `dryRun`. */
  readonly plan?: readonly string[];
  /** Waits for the end of the root task: its exit code, or 128 and the signal's number. */
  wait(): Promise<number>;
}

/**
 * Brings a saved tree back. Its root becomes a child of this process (or, as a sibling, of our parent).
 *
 * @throws RepriseError; nothing is left behind then.
 */
export async function restore(options: RestoreOptions): Promise<RestoreResult> {
  checkImagesDir(options);
  const begun = performance.now();
  const since = (): number => performance.now() - begun;
  const set = readImages(options.imagesDir);
  await warnOfMisfits(set, options.processor);
  const plan = planRestore(set, {
    shellJob: options.shellJob ?? false,
    skipRwxCheck: options.skipRwxCheck ?? false,
    fileValidation: options.fileValidation ?? "buildid",
    extUnixSk: options.extUnixSk ?? false,
    tcp: { established: false, close: false, ...options.tcp },
    fileLocks: options.fileLocks ?? true,
    sibling: options.sibling ?? false,
    ...(options.orphanPtsMaster !== true || options.hooks?.orphanMaster === undefined
      ? {}
      : { orphanMaster: (fd: number) => options.hooks?.orphanMaster?.(fd) }),
    lazyPages: options.lazyPages ?? false,
    lsm: hostLsm(),
    ...(options.lsmProfile === undefined ? {} : { lsmProfile: options.lsmProfile }),
    clocks: identifyClocks(),
    external: options.external ?? [],
    emptyNet: options.emptyNet ?? false,
    weakSysctls: options.weakSysctls ?? false,
    ...(options.mounts === undefined ? {} : { mounts: options.mounts }),
    join: options.join ?? [],
    inheritFds: options.inheritFds ?? new Map<string, number>(),
    ...(options.root === undefined ? {} : { root: options.root }),
    ...(options.newPidNamespace === undefined ? {} : { newPidNamespace: options.newPidNamespace }),
  });
  options.onEvent?.({ kind: "planned", tasks: plan.tree.nodes.length, ms: since() });
  const counters: TraceCounters = { stops: 0, remoteCalls: 0 };
  const cgroups = new CgroupRestore(set, {
    mode: "soft",
    ...options.cgroups,
    placement: options.placement,
  });
  if (options.dryRun === true) {
    return {
      pid: 0,
      stats: statsOf(plan, counters, { forking: 0, total: 0 }),
      plan: [...plan.describe(), ...cgroups.describe()],
      wait: () => Promise.resolve(0),
    };
  }
  options.hooks?.script?.("pre-restore");
  if (!plan.hasInnerPids) await waitForFreePids(plan);

  let growth: Growth | undefined;
  let files: OpenedFiles | undefined;
  let lock: NetworkLock | undefined;
  let daemon: LazyDaemon | undefined;
  let bulk: BulkFill | undefined;
  try {
    bulk = BulkFill.of(plan, options.imagesDir);
    cgroups.prepare();
    growth = startRoot(plan, counters);
    enterCgroups(plan, growth, cgroups);
    lock = networkLock(plan, growth);
    // A namespace that is to stay empty is left to the scripts first; in others no packet comes in before all is there.
    if (!lock.isWhole || options.emptyNet === true) {
      setupNamespaces(plan, growth, options.hooks);
      // Connections that are closed send nothing; those of a tree that still runs, or that is yet to come back, are left alone.
      const closes = options.tcp?.close === true || set.inventory.tcp_close === true;
      lock.takeOver(closes ? [] : savedConnections(set.files.values()));
    } else {
      lock.takeOver([]);
      setupNamespaces(plan, growth, options.hooks);
    }
    checkOwnFiles(plan, growth);
    files = openFiles(plan, growth);
    growTree(plan, growth, files);
    spreadTasks(plan, growth, cgroups);
    makeTimesForChildren(plan, growth);
    const forking = since();
    options.onEvent?.({ kind: "tree", ms: since() });
    await bulk?.fill(plan, growth);
    files.standing("tasks");
    const faults = fillTasks(plan, growth, { files, bulk });
    files.standing("threads");
    await bulk?.close();
    bulk = undefined;
    if (options.lazyPages === true)
      daemon = handOver(plan, growth, { workDir: options.workDir ?? options.imagesDir, faults });
    settleTree(plan, growth);
    spreadThreads(plan, growth, cgroups);
    cgroups.finish();
    fillThreads(plan, growth, files);
    finishLateParts(plan, growth, files);
    const root = growth.outerPid(plan.tree.root.pid);
    options.hooks?.script?.("post-restore", root);
    if (lock.isElsewhere) options.hooks?.script?.("network-unlock", root);
    lock.unlock();
    options.hooks?.script?.("pre-resume", root);
    removeLinks(set, growth, { isSpent: options.removeLinks === true });
    files.release();
    growth.ends.splice(0).forEach((end) => end.release());
    beginWaiting(plan, growth);
    files.close();
    daemon?.finish();
    release(plan, growth, { leaveStopped: options.leaveStopped ?? false });
    const stats = statsOf(plan, counters, { forking, total: since() });
    if (options.autoDedup === true) giveBack(plan, options.imagesDir);
    writeRestoreStats(options.workDir ?? options.imagesDir, stats);
    options.onEvent?.({ kind: "restored", pid: root, ms: since() });
    try {
      options.hooks?.script?.("post-resume", root);
    } catch (error) {
      log.warn(`the post-resume script failed: ${String(error)}`); // the tree runs: CRIU only logs this, too
    }
    // In a new pid namespace our child is its init, which ends as the root does.
    const child = growth.init?.tid ?? root;
    return { pid: root, stats, wait: () => waitForExit(child) };
  } catch (error) {
    tearDown(growth);
    await bulk?.close();
    daemon?.close();
    cgroups.giveUp();
    files?.giveUp();
    growth?.ends.splice(0).forEach((end) => end.failed?.());
    files?.close();
    lock?.giveUp();
    const failure = asRepriseError(error, "restore the tree");
    // Says who has the number, if it is not free.
    if (
      failure instanceof RepriseError &&
      failure.syscall === "clone3" &&
      failure.errno === "EEXIST" &&
      !plan.hasInnerPids
    )
      await waitForFreePids(plan, { thorough: true });
    throw failure;
  }
}

/** In a mount namespace of its own the tree's files are there only now. */
function checkOwnFiles(plan: RestorePlan, growth: Growth): void {
  const places = growth.mountPlaces;
  if (places === undefined) return;
  const root = ({ mnt_id }: { mnt_id?: number | undefined }): string => places.prefixOf(mnt_id);
  const files = withoutInherited(plan.files, plan.set, plan.options.inheritFds);
  checkRegularFiles(files, plan.set, { ...plan.options, root });
}

function readImages(dir: string): LoadedSet {
  prepareCrc32(crc32OfZlib);
  const reader = new ImageSetReader(dir);
  reader.verify();
  return loadImageSet(reader);
}

/** The root task's network namespace is locked if it is not the engine's. */
function networkLock(plan: RestorePlan, growth: Growth): NetworkLock {
  const { root } = plan.tree;
  const namespace = plan.namespaces.ofRoot("net");
  const path = `/proc/${growth.outerPid(root.pid)}/ns/net`;
  return NetworkLock.forRestore(plan.set.inventory, {
    namespaces: namespace?.origin.how === "new" ? [openSync(path, "r")] : [],
    shared:
      namespace === undefined || namespace.origin.how === "new" ? undefined : openSync(path, "r"),
    rootPid: root.pid,
  });
}

function giveBack(plan: RestorePlan, imagesDir: string): void {
  try {
    for (const task of plan.tasks.values()) punchPlaces(imagesDir, task.pages);
  } catch (error) {
    log.warn(`the set keeps its pages: ${String(error)}`); // the tree runs
  }
}

function removeLinks(
  set: LoadedSet,
  { mountPlaces: places }: Growth,
  { isSpent }: { readonly isSpent: boolean },
): void {
  const isSaved = (mntId: number | undefined): boolean => places?.isMade(mntId) ?? false;
  for (const { name, mnt_id } of linksToRemove(set, { isSpent, isSaved })) {
    const path = (places?.prefixOf(mnt_id) ?? "") + name;
    try {
      rmSync(pathBytes(path), { force: true });
    } catch (error) {
      log.warn(`cannot remove ${path}, which the dump left: ${String(error)}`);
    }
  }
}

/** A script may have brought processes of its own into the tree's pid namespace, and not wait for them. */
const END_PATIENCE_MS = 10_000;

/** Kills whatever was made. Should the engine die before, the kernel does it (PTRACE_O_EXITKILL). */
function tearDown(growth: Growth | undefined): void {
  if (growth === undefined) return;
  const threads = [...growth.tracees.values()].map(({ tid }) => tid);
  const pids = growth.madePids();
  for (const pid of pids) trySyscall("kill", pid, SIGKILL);
  const left = waitForAll([...new Set([...threads, ...pids])], END_PATIENCE_MS);
  if (left.length > 0) log.warn(`killed, and not reaped yet: pid ${left.join(", pid ")}`);
}

function statsOf(
  plan: RestorePlan,
  counters: TraceCounters,
  times: { forking: number; total: number },
): RestoreStats {
  const shared = [...plan.tasks.values()].reduce((sum, { memory }) => sum + memory.sharedPages, 0);
  return {
    forking_time: Math.round(times.forking * 1000),
    restore_time: Math.round(times.total * 1000),
    pages_restored: plan.pages - shared,
    pages_compared: shared,
    pages_skipped_cow: shared,
    stops: counters.stops,
    remote_calls: counters.remoteCalls,
    tasks: plan.tree.nodes.filter(({ role }) => role !== "helper").length,
    threads: [...plan.tasks.values()].reduce((sum, task) => sum + task.threads.length, 0),
  };
}
