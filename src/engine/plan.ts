// The restore plan: everything that can be decided from the images before the first process is made. Which files are opened,
// where the common work area goes, which pages come from where, who makes whom.

import { RepriseError } from "../errors.ts";
import type { LoadedSet, LoadedTask } from "../images/check-set.ts";
import { TASK_LEADERLESS } from "../images/check-task.ts";
import { placePages, type PlacedPages } from "../images/page-places.ts";
import type { PageRun } from "../images/pagemap.ts";
import type {
  CoreEntry,
  FdinfoEntry,
  FileEntry,
  FsEntry,
  MmEntry,
  TaskKobjIdsEntry,
  VmaEntry,
} from "../images/schema/messages.generated.ts";
import { notifiedProcess } from "../objects/files/mqueue.ts";
import { hasOwnerPart } from "../objects/io-uring/owned-ring.ts";
import { isForThreads } from "../objects/files/for-threads.ts";
import { checkRegularFiles } from "../objects/files/unchanged.ts";
import type { FilesRestoreOptions } from "../objects/files/file-kind.ts";
import { partPages } from "../objects/memory/lazy.ts";
import { planAioRing, type AioRing } from "../objects/memory/aio.ts";
import { planVdso, savedVdso, type VdsoPlan } from "../objects/memory/vdso.ts";
import { isMapped, VMA_FILE_PRIVATE, VMA_FILE_SHARED, VMA_SOCKET } from "../objects/memory/vma.ts";
import {
  planNamespaces,
  type NamespacesPlan,
  type NamespacesPlanOptions,
} from "../objects/namespaces/plan.ts";
import { planTreeMounts } from "../objects/mounts/mnt.ts";
import type { MountPlan } from "../objects/mounts/plan.ts";
import { LabelPlan, lsmOfCode, parseProfile, type Labels, type Lsm } from "../objects/task/lsm.ts";
import { readStatus } from "../proc/status.ts";
import { PAGE_SIZE, TASK_SIZE } from "../sys/abi/mman.ts";
import type { MemoryRange } from "../sys/memory.ts";
import { workAreaAt, type WorkArea } from "../tracee/seed.ts";
import { withoutInherited } from "./inherited.ts";
import { planMemory, type MemoryPlan } from "./inherit-memory.ts";
import { planPids, type PidPlan } from "./plan-pids.ts";
import { planTree, type TreePlan } from "./plan-tree.ts";
import { planSharing, sharedNames, type Sharing } from "./sharing.ts";
import { savedBytes, withoutKernelAreas } from "./saved-pages.ts";

export interface RestorePlanOptions extends FilesRestoreOptions, NamespacesPlanOptions {
  /** A lazy-pages daemon fills what can wait. */
  readonly lazyPages?: boolean;
  /** The security module of this kernel. */
  readonly lsm: Lsm;
  /** The profile that all tasks get. @default their own */
  readonly lsmProfile?: string;
  /** Take file locks again; without it they are left out, with a warning. */
  readonly fileLocks: boolean;
  /** The root task becomes a child of the engine's parent. @default false */
  readonly sibling?: boolean;
}

/** A live task to make. */
export interface TaskPlan {
  readonly pid: number;
  readonly core: CoreEntry;
  readonly threads: readonly { readonly tid: number; readonly core: CoreEntry }[];
  readonly ids: TaskKobjIdsEntry;
  readonly sharing: Sharing;
  readonly mm: MmEntry;
  readonly fs: FsEntry;
  readonly fdinfo: readonly FdinfoEntry[];
  /** Pages by the file that holds them: this set's, or one of its parents'. */
  readonly pages: readonly PlacedPages[];
  /** Memory that a lazy-pages daemon fills. */
  readonly later: readonly MemoryRange[];
  /** Undefined for a task that has none. */
  readonly vdso: VdsoPlan | undefined;
  readonly aioRings: readonly AioRing[];
  /** What of its memory it has from the task that made it. */
  readonly memory: MemoryPlan;
  /** How its first thread has ended, where others live: it ends again at the end (ended-leaders.ts). */
  readonly leaderExit: number | undefined;
}

export interface RestorePlan {
  readonly set: LoadedSet;
  readonly options: RestorePlanOptions;
  readonly tree: TreePlan;
  readonly tasks: ReadonlyMap<number, TaskPlan>;
  /** Files that somebody uses, in order of their ids. */
  readonly files: readonly FileEntry[];
  /** Files that are in flight in sockets and that no task has, but for epolls and pidfds. */
  readonly inFlight: readonly FileEntry[];
  /** Some of the files are handles of threads, which are made when the threads are there. */
  readonly hasThreadHandles: boolean;
  /** Some have a part that is left for the end: late-parts.ts. */
  readonly hasLateParts: boolean;
  readonly area: WorkArea;
  /** First descriptor number above all that the tasks use. */
  readonly firstFreeFd: number;
  readonly namespaces: NamespacesPlan;
  /** The mounts of the tree; undefined when it lives in the engine's mount namespace. */
  readonly mounts: MountPlan | undefined;
  /** The tasks' numbers are those of another pid namespace than the engine's. */
  readonly hasInnerPids: boolean;
  readonly pids: PidPlan;
  readonly pages: number;
  /** Labels of security modules, by the threads' numbers; threads without one are left out. */
  readonly labels: ReadonlyMap<number, Labels>;
  /** Whether the label of a process is set before it has its threads. */
  readonly labelsFirst: boolean;
  /** Lines for people: what `--explain` prints. */
  describe(): string[];
}

/**
 * Plans a restore.
 *
 * @throws RepriseError for everything that would make it fail: missing or changed files, another kernel's vdso, …
 */
export function planRestore(set: LoadedSet, options: RestorePlanOptions): RestorePlan {
  const namespaces = planNamespaces(set, options);
  const loaded = [...set.tasks.values()];
  const shared = sharedNames(loaded);
  const treeTasks = loaded.map((task) => ({
    ...treeTask(task),
    shares: shared.get(task.pid) ?? [],
  }));
  const tree = planTree(treeTasks, {
    shellJob: options.shellJob,
    freePid: 1 + Math.max(...loaded.flatMap(numbersOf)),
  });
  const saved = new Map(
    loaded
      .filter((task) => task.live !== undefined)
      .map((task) => [task.pid, planTask(set, task, options)]),
  );
  const memory = planMemory(tree, saved, set.reader.dir);
  const sharing = planSharing(tree, saved);
  const tasks = new Map(
    [...saved].map(([pid, task]) => [
      pid,
      {
        ...task,
        memory: memory.get(pid) as MemoryPlan,
        sharing: sharing.get(pid) as Sharing,
      },
    ]),
  );
  for (const task of tasks.values()) checkTask(task);
  const files = usedFiles(set, [...tasks.values()]);
  const mounts = planTreeMounts(set, namespaces, options);
  // In a mount namespace of its own the tree's files are there when the mounts are.
  if (mounts === undefined) {
    const { skipRwxCheck, fileValidation } = options;
    const own = withoutInherited(files, set, options.inheritFds);
    checkRegularFiles(own, set, { skipRwxCheck, fileValidation });
  }
  const pages = [...tasks.values()].reduce((sum, task) => sum + countPages(task), 0);
  const plan: Omit<RestorePlan, "describe"> = {
    set,
    options,
    tree,
    tasks,
    files,
    inFlight: filesInFlight(set, files),
    hasThreadHandles: files.some((file) => isForThreads(file, set)),
    hasLateParts: files.some(
      (entry) => hasOwnerPart(entry) || notifiedProcess(entry) !== undefined,
    ),
    area: chooseWorkArea([...tasks.values()], set),
    firstFreeFd: 1 + highestDescriptor(tasks.values()),
    namespaces,
    mounts,
    hasInnerPids: namespaces.ofRoot("pid") !== undefined,
    pids: planPids(set, namespaces, tree),
    pages,
    ...planLabels(set, [...tasks.values()], options),
  };
  return { ...plan, describe: () => describePlan(plan) };
}

/** Of all tasks; one of the standard ones at least. A tree may have more of them than a call takes arguments. */
function highestDescriptor(tasks: Iterable<TaskPlan>): number {
  let highest = 2;
  for (const { fdinfo } of tasks) for (const { fd } of fdinfo) highest = Math.max(highest, fd);
  return highest;
}

function planLabels(
  { inventory }: LoadedSet,
  tasks: readonly TaskPlan[],
  { lsm, lsmProfile }: RestorePlanOptions,
): Pick<RestorePlan, "labels" | "labelsFirst"> {
  const plan = new LabelPlan({
    host: lsm,
    image: lsmOfCode(inventory.lsmtype),
    wanted: lsmProfile === undefined ? undefined : parseProfile(lsmProfile),
  });
  const labels = new Map<number, Labels>();
  for (const { pid, threads } of tasks) {
    for (const { tid, core } of threads) {
      const own = plan.of(core.thread_core?.creds, pid);
      if (Object.keys(own).length > 0) labels.set(tid, own);
    }
  }
  return { labels, labelsFirst: plan.isEarly };
}

function treeTask(task: LoadedTask): {
  pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  zombie: boolean;
} {
  const { pid, ppid, pgid, sid } = task.pstree;
  return { pid, ppid, pgid, sid, zombie: task.isZombie };
}

function numbersOf({ pstree, threads }: LoadedTask): number[] {
  return [pstree.pid, pstree.pgid, pstree.sid, ...threads.keys()];
}

function planTask(set: LoadedSet, task: LoadedTask, options: RestorePlanOptions): PlannedAlone {
  const live = task.live as NonNullable<LoadedTask["live"]>;
  const plan = {
    pid: task.pid,
    core: task.core,
    leaderExit: task.core.tc?.task_state === TASK_LEADERLESS ? task.core.tc.exit_code : undefined,
    threads: [...task.threads].map(([tid, core]) => ({ tid, core })),
    ids: live.ids,
    mm: live.mm,
    fs: live.fs,
    fdinfo: live.fdinfo,
    sharesMemory: live.sharesMemory,
    ...planPages(set, live, { pid: task.pid, lazyPages: options.lazyPages ?? false }),
  };
  // Who has another task's memory has nothing to fill it with.
  if (live.sharesMemory) return { ...plan, vdso: undefined, aioRings: [] };
  return {
    ...plan,
    pages: withoutKernelAreas(plan.pages, plan.mm.vmas),
    vdso: vdsoOf(set, plan),
    aioRings: aioRingsOf(set, plan),
  };
}

function planPages(
  set: LoadedSet,
  { pagemap, mm }: NonNullable<LoadedTask["live"]>,
  { pid, lazyPages }: { readonly pid: number; readonly lazyPages: boolean },
): Pick<TaskPlan, "pages" | "later"> {
  const source = { kind: "pagemap", id: pid, pagemap } as const;
  if (!lazyPages) return { pages: placePages(set.reader, source), later: [] };
  const left: PageRun[] = [];
  const placed = placePages(set.reader, source, (run) => left.push(run));
  const { now, later } = partPages(placed, left, mm.vmas);
  return { pages: now, later };
}

/** A task before it is compared with the others. */
type PlannedAlone = Omit<TaskPlan, "memory" | "sharing"> & { readonly sharesMemory: boolean };

/** A task with all of its saved pages, those of the kernel's areas too. */
type SavedTask = Omit<PlannedAlone, "vdso" | "aioRings">;

/** What this version cannot bring back, and a vdso of another kernel. */
function checkTask(task: TaskPlan): void {
  const refuse = (what: string): never => {
    throw new RepriseError("UNSUPPORTED", `cannot restore pid ${task.pid}: ${what}`, {
      pid: task.pid,
    });
  };
  const filtered = task.threads.some(({ core }) => (core.thread_core?.seccomp_mode ?? 0) !== 0);
  // A tracer under seccomp cannot suspend it in others, so the restore would stumble over the task's own filters.
  if (filtered && (readStatus(process.pid).seccomp ?? 0) !== 0)
    refuse("it ran under seccomp, and so does this restore");
}

/** How a task gets its vdso: the code of the saved one is in its pages. */
function vdsoOf(set: LoadedSet, task: SavedTask): VdsoPlan | undefined {
  const layout = savedVdso(task.mm.vmas);
  if (layout === undefined) return undefined;
  const code = savedBytes(set.reader, task.pages, {
    address: layout.address + layout.vvarSize,
    length: layout.vdsoSize,
  });
  const instructions = task.threads.map(({ core }) => core.thread_info?.gpregs.ip ?? 0n);
  return planVdso(task.pid, { layout, code, vmas: task.mm.vmas, instructions });
}

/** Whether tasks live in other user namespaces than the engine. */
export function hasUsers({ namespaces }: Pick<RestorePlan, "namespaces">): boolean {
  return namespaces.all.some(({ kind }) => kind === "user");
}

function aioRingsOf(set: LoadedSet, task: SavedTask): AioRing[] {
  return task.mm.aios.map((entry) => {
    const range = { address: entry.id, length: entry.ring_len };
    return planAioRing(task.pid, entry, savedBytes(set.reader, task.pages, range));
  });
}

function usedFiles(set: LoadedSet, tasks: readonly TaskPlan[]): FileEntry[] {
  const used = new Set<number>();
  for (const { mm, fs, fdinfo, threads } of tasks) {
    used.add(mm.exe_file_id).add(fs.cwd_id).add(fs.root_id);
    for (const { core } of threads) {
      const own = core.thread_core?.reprise?.fs;
      if (own !== undefined) used.add(own.cwd_id).add(own.root_id);
    }
    for (const { id } of fdinfo) used.add(id);
    for (const vma of mm.vmas) if (mapsFile(vma)) used.add(vma.shmid);
  }
  return [...used]
    .sort((a, b) => a - b)
    .map((id) => {
      const entry = set.files.get(id);
      if (entry === undefined)
        throw new RepriseError("BAD_IMAGE", `cannot restore: files.img has no file ${id}`);
      return entry;
    });
}

/** What an epoll watches is a task's, and a pidfd is made when its process is there: their rooms see to those. */
function filesInFlight(set: LoadedSet, held: readonly FileEntry[]): FileEntry[] {
  if (set.skQueues.length === 0) return [];
  const known = new Set(held.map(({ id }) => id));
  const ids = set.skQueues.flatMap(({ value }) => value.scm.flatMap(({ rights }) => rights));
  return [...new Set(ids)].flatMap((id) => {
    const entry = known.has(id) ? undefined : set.files.get(id);
    const isOther = entry?.epfd !== undefined || entry?.pidfd !== undefined;
    return entry === undefined || isOther ? [] : [entry];
  });
}

/** Whether an area is made from a file of files.img. */
export function mapsFile(vma: VmaEntry): boolean {
  return isMapped(vma) && (vma.status & (VMA_FILE_PRIVATE | VMA_FILE_SHARED | VMA_SOCKET)) !== 0;
}

function countPages(task: TaskPlan): number {
  return (
    task.pages.reduce(
      (sum, file) => sum + file.places.reduce((bytes, { length }) => bytes + length, 0),
      0,
    ) / PAGE_SIZE
  );
}

/** Room for programs: calls for files, areas, threads and pages, each well below this many bytes. */
const BYTES_PER_OBJECT = 1024;
const AREA_MINIMUM = 16 * 1024 * 1024;
/** Below this are addresses that the kernel may refuse (vm.mmap_min_addr) or that a heap may grow into. */
const LOWEST_HOLE = 0x1000_0000;
/** Space left free around the work area, so that no stack or heap touches it. */
const MARGIN = 64 * 1024 * 1024;

/** A range that no task of the tree uses: the work area is at the same address in all of them. */
function chooseWorkArea(tasks: readonly TaskPlan[], set: LoadedSet): WorkArea {
  // The first task of those that share something does it for all.
  const shared =
    set.fileLocks.length + sumOf([...set.files.values()], ({ epfd }) => epfd?.tfd.length ?? 0);
  const objects =
    shared +
    Math.max(
      0,
      ...tasks.map(
        ({ mm, fdinfo, threads, pages, core }) =>
          mm.vmas.length +
          fdinfo.length +
          4 * threads.length +
          sumOf(pages, ({ places }) => places.length) +
          sumOf(threads, (thread) => thread.core.thread_core?.signals_p?.signals.length ?? 0) +
          (core.tc?.signals_s?.signals.length ?? 0) +
          (core.tc?.timers?.posix.length ?? 0),
      ),
    );
  // Tasks in one address space have a part each.
  const parts = Math.max(...tasks.map(({ sharing }) => sharing.memoryOf.length));
  const size =
    parts *
    Math.max(
      AREA_MINIMUM,
      Math.ceil((objects * BYTES_PER_OBJECT * 4) / AREA_MINIMUM) * AREA_MINIMUM,
    );
  const used = tasks
    .flatMap(({ mm }) => mm.vmas.filter(({ end }) => end <= TASK_SIZE))
    .sort((a, b) => a.start - b.start);
  let from = LOWEST_HOLE;
  for (const { start, end } of [...used, { start: TASK_SIZE, end: TASK_SIZE }]) {
    if (start - from >= size + 2 * MARGIN) return workAreaAt(from + MARGIN, size);
    from = Math.max(from, end);
  }
  throw new RepriseError(
    "UNSUPPORTED",
    "cannot restore the tree: no address range is free in all of its tasks",
  );
}

function sumOf<T>(list: readonly T[], value: (item: T) => number): number {
  return list.reduce((total, item) => total + value(item), 0);
}

function describePlan(plan: Omit<RestorePlan, "describe">): string[] {
  const lines = [
    `${plan.tasks.size} tasks, ${plan.pages} pages, ${plan.files.length} files, work area at ${plan.area.address.toString(16)}`,
  ];
  for (const node of plan.tree.nodes) {
    const task = plan.tasks.get(node.pid);
    const made =
      node === plan.tree.root
        ? "made by the engine"
        : `child of ${node.ppid}${node.viaSibling ? ", made by a sibling" : ""}`;
    const session = node.leadsSession
      ? ", leads a session"
      : node.leadsGroup
        ? ", leads a group"
        : "";
    const content =
      task === undefined
        ? ""
        : `: ${task.threads.length} threads, ${task.mm.vmas.length} areas, ${countPages(task)} pages, ${task.fdinfo.length} descriptors`;
    lines.push(
      `${node.role} ${node.pid} ${task?.core.tc?.comm ?? ""} (${made}${session})${content}`,
    );
  }
  return lines;
}
