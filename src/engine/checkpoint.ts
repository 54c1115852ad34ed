// The dump, as a story: freeze the tree, look from outside, look from inside, write memory and images, commit, and only
// then end the tasks (or let them go on). Until the commit every error leaves the tasks running as they were.

import { RepriseError } from "../errors.ts";
import { log, refuseLosses } from "../log.ts";
import { ImageSetWriter } from "../images/image-set.ts";
import { NetworkLock, type NetworkLockMethod } from "../objects/network/lock.ts";
import { openNetNamespaces } from "../objects/network/net-namespaces.ts";
import type { CgroupDumpOptions } from "../objects/cgroups/dump.ts";
import { AlikeWatch } from "../objects/task/alike.ts";
import { LandlockWatch } from "../objects/task/landlock.ts";
import { cpuInfoEntry } from "../objects/cpu/cpu-info.ts";
import type { FilesDumpOptions } from "../objects/files/file-kind.ts";
import type { NamespacesDumpOptions } from "../objects/namespaces/room.ts";
import { collectYoungObjects } from "../sys/young-objects.ts";
import { endDummy } from "../tracee/dummy.ts";
import { cure, type Injection } from "../tracee/injection.ts";
import { AreasAhead } from "./areas-ahead.ts";
import { checkDumpArguments } from "./arguments.ts";
import { collectTree, type CollectedTree } from "./collect.ts";
import { dedup } from "./dedup.ts";
import { LookAhead, runningTasks } from "./look-ahead.ts";
import { freezeTree, noStops, releaseTree, type FrozenTree } from "./freeze.ts";
import type { TcpDumpOptions } from "../objects/files/file-kind.ts";
import type { DumpStats, EngineHooks, ProgressListener, ScriptAction } from "./progress.ts";
import { ComparedAhead } from "./compare-ahead.ts";
import { linkParent, ParentSet } from "./incremental.ts";
import { reapOwn } from "./kill-tree.ts";
import { Foreseen } from "./foresee.ts";
import { inventoryEntry } from "./inventory.ts";
import { machineEntry } from "./machine.ts";
import { lookInside } from "./look-inside.ts";
import { prepareRehearsal, rehearse } from "./rehearse.ts";
import { runningTree } from "./running-tree.ts";
import { SpacesAhead } from "./spaces-ahead.ts";
import { PageClient, type PageServerPlace } from "./page-client.ts";
import { asRepriseError } from "./system-error.ts";
import { WrittenAhead } from "./write-ahead.ts";
import { writeTree } from "./write.ts";
import { commitAndKill, commitAndLetGo, goOnAndCommit, unlock } from "./ends.ts";

export interface CheckpointOptions extends NamespacesDumpOptions {
  /** Root of the tree, in the engine's pid namespace. */
  readonly pid: number;
  readonly imagesDir: string;
  /** Where stats-dump is written. @default imagesDir */
  readonly workDir?: string;
  /**
   * What becomes of the tasks afterwards. Those that are left stopped are meant to be ended: the network lock stays, and so do
   * saved TCP connections in silence.
   * @default "killed"
   */
  readonly leave?: "killed" | "running" | "stopped";
  /** The tree belongs to a session and terminal of outside. @default false */
  readonly shellJob?: boolean;
  /** A terminal may have its other end outside: the restore makes a new one. @default false */
  readonly orphanPtsMaster?: boolean;
  /**
   * Give deleted files that have another hard link a name again; with `if needed` only those that the restore cannot find without
   * (which CRIU's cannot). @default false
   */
  readonly linkRemap?: boolean | "if needed";
  /** Refuse what would be lost in silence but for a warning. @default false */
  readonly strict?: boolean;
  /** Save file locks too; without it a lock is an error. @default false */
  readonly fileLocks?: boolean;
  /** Bytes up to which a deleted file's content is saved. @default 1 MiB */
  readonly ghostLimit?: number;
  /**
   * Datagram sockets may be connected to named sockets outside of the tree; with a list of inodes, those sockets to whatever
   * they are. @default false
   */
  readonly extUnixSk?: boolean | readonly number[];
  /** How packets are kept away from connections. @default "nftables" where the kernel has them, else "iptables" */
  readonly networkLock?: NetworkLockMethod;
  /** What is done with TCP connections; without it they are refused. */
  readonly tcp?: Partial<TcpDumpOptions>;
  /** The set before, relative to `imagesDir`, of a pre-dump or a dump: pages that it has are not written again. */
  readonly parentDir?: string;
  /** Send pages to a page server instead of writing them here. */
  readonly pageServer?: PageServerPlace;
  /** Leave pages that can wait in the tasks, which then stand still and give them to a lazy-pages daemon. */
  readonly lazyPages?: LazyServer;
  /** Punch what this set has itself out of the sets before it, which then are worth nothing alone. @default false */
  readonly autoDedup?: boolean;
  /** This set may become the parent of a later one. @default with `parentDir` */
  readonly trackMemory?: boolean;
  /** Inode of our own socket to whom asked for the dump, who may be in the tree. */
  readonly requestSocket?: number;
  /** Save what the processor can (cpuinfo.img). @default false */
  readonly cpuInfo?: boolean;
  /** How long stopping the tree may take. @default 10_000 */
  readonly timeoutMs?: number;
  /** What is saved of cgroups. @default { mode: "soft" } */
  readonly cgroups?: CgroupDumpOptions;
  /** cgroup directory that is frozen while the tree is seized. @default the root task's, if it is frozen */
  readonly freezeCgroup?: string;
  /** Look at everything, write nothing that stays, and let the tasks go on; the result has the plan. @default false */
  readonly dryRun?: boolean;
  readonly hooks?: EngineHooks;
  readonly onEvent?: ProgressListener;
}

/** How a lazy-pages daemon reaches the tasks after a dump. */
export interface LazyServer {
  /** Called when the images are complete: waits for the one connection. */
  connect(): number;
  /** Whether the other side closes the connection, so that no port stays in TIME_WAIT here. */
  readonly waitForEnd: boolean;
}

export interface CheckpointResult {
  readonly stats: DumpStats;
  /** What was found, in lines for people; with `dryRun`. */
  readonly plan?: readonly string[];
}

const DEFAULT_TIMEOUT_MS = 10_000;
const DEFAULT_GHOST_LIMIT = 1024 * 1024;
/** Bytes of young objects, of which a small tree leaves 3 MB; V8 has room for 16 (bin/criu). */
const MANY_OBJECTS = 5 * 1024 * 1024;

/**
 * Saves a process tree into a directory of images.
 *
 * @throws RepriseError; the tasks then go on as before, and the directory holds no images.
 */
export async function checkpoint(options: CheckpointOptions): Promise<CheckpointResult> {
  checkDumpArguments(options);
  const begun = performance.now();
  const { heapUsed } = process.memoryUsage();
  const since = (): number => performance.now() - begun;
  refuseLosses(options.strict === true ? refuseLoss : undefined);
  prepareRehearsal();
  const machine = machineEntry();
  options.hooks?.script?.("pre-dump", options.pid);
  const images = makeDirectory(options);
  let tree: FrozenTree | undefined;
  let work: readonly Injection[] = [];
  let collected: CollectedTree | undefined;
  let lock: NetworkLock | undefined;
  let spaces: SpacesAhead | undefined;
  let early: LookAhead | undefined;
  let ahead = WrittenAhead.nothing(images);
  try {
    const running = runningTree(options.pid);
    const foreseen = new Foreseen(running);
    foreseen.prepareImages(images, { connections: options.tcp?.established === true });
    foreseen.prepareKernelTypes();
    await rehearse(machine);
    const isWhole =
      options.parentDir === undefined &&
      options.lazyPages === undefined &&
      images.remotePages === undefined &&
      !options.dryRun;
    const freeze = {
      timeoutMs: options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
      freezeCgroup: options.freezeCgroup,
      others: running.slice(1),
    };
    // Those of short stops before the one that counts, of trees with much memory at work.
    const counters = noStops();
    ahead = isWhole
      ? await WrittenAhead.of(running, images, { ...freeze, counters })
      : WrittenAhead.nothing(images);
    const files = filesOptions(options);
    const { external = [], emptyNet = false, mounts, cgroups = { mode: "soft" } } = options;
    const spacesOptions = {
      external,
      emptyNet,
      cgroups,
      ...(mounts === undefined ? {} : { mounts }),
    };
    using landlock = new LandlockWatch();
    const first = runningTasks(running);
    using alike = AlikeWatch.of(first.map(({ status }) => status));
    using areas = AreasAhead.of(first);
    if (options.dryRun !== true) {
      const tasks = ahead.isEmpty ? first : runningTasks(runningTree(options.pid));
      landlock.prepare(tasks.map(({ status }) => status));
      spaces = SpacesAhead.of(tasks, images, spacesOptions);
      if (isWhole && spaces !== undefined)
        early = LookAhead.of(tasks, images, { ...files, spaces, written: ahead });
    }
    const parent =
      options.parentDir === undefined ? ParentSet.none() : ParentSet.of(options.imagesDir);
    using compared =
      options.dryRun === true
        ? ComparedAhead.nothing()
        : ComparedAhead.of(options.pid, { ...freeze, counters, parent });
    if (counters.stops > 0)
      log.info(`${counters.stops} stops before the freeze, since much memory changes`);
    // What was left behind up to here would be collected while the tree stands still.
    if (process.memoryUsage().heapUsed - heapUsed > MANY_OBJECTS) await collectYoungObjects();
    const freezing = performance.now();
    tree = freezeTree(options.pid, { ...freeze, whenStopped: () => areas.begin() });
    const frozenAt = performance.now();
    lock = NetworkLock.forDump({
      method: options.networkLock,
      ...openNetNamespaces(tree.tasks, external),
    });
    const isToldOfLock = lock.isElsewhere ? beginScript("network-lock", options) : undefined;
    // While whoever is told of the lock does something about it.
    try {
      ahead.compare(tree);
      if (early?.holds(tree) === false) {
        log.debug("the open files are looked at again: a task woke up");
        early.discard();
        early = undefined;
      }
      if (spaces?.holds(tree, { slept: early?.knows(tree) === true }) === false) {
        log.debug("namespaces and mounts are looked at again: they have changed");
        early?.discard();
        early = undefined;
        spaces.discard();
        spaces = undefined;
      }
      lock.lockNamespaces();
    } finally {
      isToldOfLock?.();
    }
    const threads = tree.tasks.reduce((sum, task) => sum + task.threads.length, 0);
    options.onEvent?.({ kind: "frozen", tasks: tree.tasks.length, threads, ms: since() });
    log.info(
      `froze ${tree.tasks.length} tasks with ${threads} threads in ${(frozenAt - freezing).toFixed(3)} ms`,
    );

    const phase = phases(frozenAt);
    const added = options.hooks?.queryExternal?.() ?? [];
    if (added.length > 0) {
      early?.discard();
      early = undefined;
      spaces?.discard();
      spaces = undefined;
    }
    collected = collectTree(tree, images, {
      ...files,
      ...spacesOptions,
      lock,
      fileLocks: options.fileLocks ?? false,
      external: [...external, ...added],
      ahead: early,
      spaces,
      landlock,
      alike,
      areas,
    });
    phase("looked at the tree from outside");
    const inside = lookInside(tree, collected, { landlock, alike });
    work = inside.injections;
    options.onEvent?.({ kind: "collected", ms: since() });
    cure(work);
    work = [];
    phase("looked at it from inside");
    const leave = options.leave ?? "killed";
    // Who goes on does not wait for images to be encoded, but for what shall happen to all of them in this state.
    const goesOnFirst =
      leave === "running" &&
      options.hooks?.script === undefined &&
      options.dryRun !== true &&
      options.lazyPages === undefined;
    if (goesOnFirst) images.holdBack();
    const memory = await writeTree(tree, collected, inside, images, {
      parent,
      ahead,
      compared,
      spaces,
      lock,
      leaveLazyPages: options.lazyPages !== undefined,
    });
    ahead.end();
    images.remotePages?.finish();
    if (options.cpuInfo === true) images.write("cpuinfo", 0, [cpuInfoEntry()]);
    options.onEvent?.({ kind: "memory", pages: memory.pagesWritten, ms: since() });
    phase("wrote its memory and images");

    if (options.dryRun === true) {
      const stats = memory.stats(tree, { frozenAt, begun: freezing });
      images.abort();
      collected.files.abort();
      collected.files.close();
      unlock(lock, options);
      releaseTree(tree, { leaveStopped: false });
      return { stats, plan: collected.describe() };
    }
    const tracked = options.trackMemory ?? options.parentDir !== undefined;
    const inventory = inventoryEntry(collected, { lock, uptime: tracked, machine });
    const frozen = tree;
    const end = goesOnFirst ? goOnAndCommit : leave === "killed" ? commitAndKill : commitAndLetGo;
    const stats = end(options, {
      tree,
      images,
      files: collected.files,
      lock,
      landlock,
      memory,
      inventory,
      phase,
      tell: (kind) => options.onEvent?.({ kind, ms: since() }),
      stats: () => memory.stats(frozen, { frozenAt, begun: freezing }),
    });
    if (leave === "killed") await reapOwn(frozen);
    collected.files.close();
    ahead[Symbol.dispose]();
    spaces?.[Symbol.dispose]();
    if (options.autoDedup === true && parent.exists) giveBack(options.imagesDir);
    return { stats };
  } catch (error) {
    undo({
      images,
      ahead,
      early,
      spaces,
      collected,
      work,
      tree,
      unlock: () => lock !== undefined && unlock(lock, options),
    });
    throw asRepriseError(error, `dump pid ${options.pid}`);
  }
}

/** Begins a step; it is over when the function that is given returns. */
function beginScript(action: ScriptAction, { hooks, pid }: CheckpointOptions): () => void {
  return hooks?.beginScript?.(action, pid) ?? ((): void => hooks?.script?.(action, pid));
}

function filesOptions(options: CheckpointOptions): FilesDumpOptions {
  return {
    shellJob: options.shellJob ?? false,
    orphanPtsMaster: options.orphanPtsMaster ?? false,
    linkRemap: (options.linkRemap ?? false) !== false,
    noLink: options.leave === "running" || options.linkRemap === "if needed",
    ghostLimit: options.ghostLimit ?? DEFAULT_GHOST_LIMIT,
    extUnixSk: options.extUnixSk ?? false,
    ...(options.requestSocket === undefined ? {} : { requestSocket: options.requestSocket }),
    tcp: { established: false, close: false, skipInFlight: false, ...options.tcp },
    external: options.external ?? [],
  };
}

/** Logs how long each part took. */
function phases(start: number): (done: string) => void {
  let last = start;
  return (done) => {
    const now = performance.now();
    log.debug(`${done} in ${(now - last).toFixed(3)} ms`);
    last = now;
  };
}

/** What --strict makes of something that no image will hold. */
function refuseLoss(text: string): never {
  throw new RepriseError("UNSUPPORTED", `cannot dump without a loss: ${text}`, {
    hint: "Leave --strict out to have it lost.",
  });
}

function makeDirectory({
  imagesDir,
  parentDir,
  pageServer,
  pid,
}: CheckpointOptions): ImageSetWriter {
  try {
    const images = new ImageSetWriter(imagesDir, { sync: "none" });
    if (parentDir !== undefined) linkParent(imagesDir, parentDir);
    if (pageServer !== undefined) images.remotePages = new PageClient(pageServer);
    return images;
  } catch (error) {
    throw asRepriseError(error, `dump pid ${pid}`);
  }
}

/** After the commit: a dump that fails must leave the older sets whole. */
function giveBack(imagesDir: string): void {
  try {
    log.info(`gave back ${dedup(imagesDir)} bytes of the older sets`);
  } catch (error) {
    log.warn(`the older sets keep their pages: ${String(error)}`);
  }
}

interface Unfinished {
  readonly images: ImageSetWriter;
  readonly ahead: WrittenAhead;
  readonly early: LookAhead | undefined;
  readonly spaces: SpacesAhead | undefined;
  readonly collected: CollectedTree | undefined;
  readonly work: readonly Injection[];
  readonly tree: FrozenTree | undefined;
  readonly unlock: () => void;
}

/** Takes everything back; each step is tried even when one before it failed. */
function undo({
  images,
  ahead,
  early,
  spaces,
  collected,
  work,
  tree,
  unlock: unlockNetwork,
}: Unfinished): void {
  const steps: (() => void)[] = [
    () => cure(work),
    unlockNetwork,
    () => tree !== undefined && releaseTree(tree, { leaveStopped: false }),
    () => collected?.files.abort(),
    () => collected?.files.close(),
    () => early?.discard(),
    () => spaces?.discard(),
    () => ahead.end(),
    () => ahead[Symbol.dispose](),
    () => images.abort(),
    endDummy,
  ];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      log.warn(
        `while taking the dump back: ${error instanceof RepriseError ? error.message : String(error)}`,
      );
    }
  }
}
