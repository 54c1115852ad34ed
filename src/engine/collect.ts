// Looking at a frozen tree from outside: memory areas, open files, namespaces, and which objects tasks share.

import { RepriseError } from "../errors.ts";
import { CgroupTable, type CgroupDumpOptions } from "../objects/cgroups/dump.ts";
import { LockTable } from "../objects/files/locks.ts";
import { FileTable, lookAtFd } from "../objects/files/table.ts";
import type { FilesDumpOptions, OpenFile } from "../objects/files/file-kind.ts";
import { SeccompTable } from "../objects/task/seccomp.ts";
import { refusePendingReturns } from "../objects/memory/breakpoints.ts";
import { ANONYMOUS_HUGE } from "../objects/memory/hugetlb.ts";
import {
  collectVmas,
  isSocketRing,
  type DumpedVma,
  type MappedFile,
} from "../objects/memory/vma.ts";
import {
  checkRingOwners,
  isRingArea,
  RING_LINK,
  ringOfArea,
  noteRingArea,
} from "../objects/io-uring/ring-memory.ts";
import { checkMappedIds } from "../objects/namespaces/user.ts";
import { collectNamespaces, type CollectedNamespaces } from "../objects/namespaces/collect.ts";
import { collectMounts, type MountNamespaces } from "../objects/mounts/collect.ts";
import type { NamespacesDumpOptions } from "../objects/namespaces/room.ts";
import type { NetworkLock } from "../objects/network/lock.ts";
import type { AlikeThreads, AlikeWatch } from "../objects/task/alike.ts";
import type { LandlockWatch } from "../objects/task/landlock.ts";
import { processNumber, type FrozenTask } from "../objects/task/task.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type {
  FileLockEntry,
  FsEntry,
  TaskKobjIdsEntry,
} from "../images/schema/messages.generated.ts";
import { readFdNumbers, readFds } from "../proc/fd.ts";
import { NOTHING_MORE, type FdInfo } from "../proc/fdinfo.ts";
import { FdDirectory } from "../tracee/fd-directory.ts";
import { mapFilePath, readFdStat, readLinkedFile } from "../proc/links.ts";
import { readSmaps, type SmapsVma } from "../proc/smaps.ts";
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import type { AreasAhead } from "./areas-ahead.ts";
import type { LookAhead } from "./look-ahead.ts";
import type { FrozenTree } from "./freeze.ts";
import { cgroupNamespaces, type SpacesAhead } from "./spaces-ahead.ts";
import { tellStrangers } from "./strangers.ts";
import { collectThreadPlaces } from "./thread-parts.ts";
import { ObjectIds, SharersCheck, type Shareable } from "./object-ids.ts";

/** A descriptor of a task: number, the id of its open file, close-on-exec. */
export interface CollectedFd {
  readonly fd: number;
  readonly id: number;
  readonly type: number;
  readonly cloexec: boolean;
}

/** A live task as seen from outside. */
export interface CollectedTask {
  readonly task: FrozenTask;
  readonly ids: TaskKobjIdsEntry;
  /** Its memory is another task's too (CLONE_VM), which has been collected: `vmas` are that one's. */
  readonly sharesMemory: boolean;
  /** Its directories and umask are another task's too (CLONE_FS), which has been collected. */
  readonly sharesDirectories: boolean;
  /** Directories and umask of threads that have their own. */
  readonly threadPlaces: ReadonlyMap<number, FsEntry>;
  readonly vmas: readonly DumpedVma[];
  readonly exeId: number;
  readonly cwdId: number;
  readonly rootId: number;
  /** Undefined when another task's table is this one's too (CLONE_FILES) and has been collected. */
  readonly fds: readonly CollectedFd[] | undefined;
}

export interface CollectedTree {
  readonly live: readonly CollectedTask[];
  readonly files: FileTable;
  readonly fileLocks: readonly FileLockEntry[];
  readonly seccomp: SeccompTable;
  readonly cgroups: CgroupTable;
  readonly rootIds: TaskKobjIdsEntry;
  readonly namespaces: CollectedNamespaces;
  readonly mounts: MountNamespaces;
  readonly namespaceOptions: NamespacesDumpOptions;
  /** Lines for people. */
  describe(): string[];
}

export interface CollectOptions extends FilesDumpOptions, NamespacesDumpOptions {
  /** Whether tasks may hold file locks. */
  readonly fileLocks: boolean;
  readonly lock: NetworkLock;
  readonly cgroups: CgroupDumpOptions;
  /** Files that were looked at before the tree was frozen. */
  readonly ahead?: LookAhead | undefined;
  /** Its namespaces and mounts, looked at then. */
  readonly spaces?: SpacesAhead | undefined;
  /** Whose helpers may be in the tree's pid namespace. */
  readonly landlock?: LandlockWatch;
  /** What is known of threads. */
  readonly alike?: AlikeWatch;
  readonly areas?: AreasAhead;
}

/** Collects a frozen tree. Throws RepriseError UNSUPPORTED naming what cannot be saved. */
export function collectTree(
  tree: FrozenTree,
  images: ImageSetWriter,
  options: CollectOptions,
): CollectedTree {
  const inner = new Map(
    tree.tasks.flatMap((task) => [
      [task.pid, task.innerPid],
      [processNumber(task), task.innerPid],
    ]),
  );
  const alive = tree.tasks.filter(({ state }) => state !== "zombie");
  const { spaces } = options;
  const namespaces =
    spaces?.namespaces ?? collectNamespaces(alive, { external: options.external ?? [] });
  const mounts = spaces?.mounts ?? collectMounts(namespaces, options);
  const filesOptions = {
    ...options,
    namespaces,
    mounts,
    innerPid: (pid: number) => inner.get(pid),
    innerThread: (tid: number) => innerThread(tree, tid),
  };
  const files = options.ahead?.files ?? new FileTable(images, filesOptions);
  try {
    if (options.ahead !== undefined) files.complete(filesOptions);
    const ids = new ObjectIds(namespaces);
    const locks = new LockTable({ isAllowed: options.fileLocks });
    const seccomp = new SeccompTable();
    const cgroups = new CgroupTable(options.cgroups);
    checkTree(tree, options);
    checkMappedIds(alive, namespaces);
    tellStrangers(tree, mounts, options.landlock);
    for (const task of alive) cgroups.add(task, options.alike?.threads(task)?.placed);
    cgroups.addNamespaces(cgroupNamespaces(namespaces));
    const places = new Map<number, TaskPlaces>();
    const relatives = new SharersCheck();
    const live = alive.map((task) =>
      collectTask(task, {
        files,
        ids,
        locks,
        seccomp,
        places,
        relatives,
        ahead: options.ahead,
        alike: options.alike?.threads(task),
        areas: options.areas,
      }),
    );
    checkRingOwners(
      files,
      live.map(({ task, fds = [] }) => ({ pid: task.pid, ids: fds.map(({ id }) => id) })),
    );
    return {
      live,
      files,
      fileLocks: locks.entries(),
      seccomp,
      cgroups,
      rootIds: ids.own,
      namespaces,
      mounts,
      namespaceOptions: options,
      describe: () => describeTree(tree, live),
    };
  } catch (error) {
    files.abort();
    files.close();
    throw error;
  }
}

function innerThread({ tasks }: FrozenTree, tid: number): number | undefined {
  for (const { threads, endedLeader, innerPid } of tasks) {
    if (endedLeader?.pid === tid) return innerPid;
    for (const thread of threads) if (thread.tid === tid) return thread.innerTid;
  }
  return undefined;
}

/** What the tasks of a tree may share. */
interface Tables {
  readonly files: FileTable;
  readonly ids: ObjectIds;
  readonly locks: LockTable;
  readonly seccomp: SeccompTable;
  /** Of tasks by the numbers of their memory and of their directories. */
  readonly places: Map<number, TaskPlaces>;
  readonly relatives: SharersCheck;
  readonly ahead: LookAhead | undefined;
  readonly alike: AlikeThreads | undefined;
  readonly areas: AreasAhead | undefined;
}

function collectTask(task: FrozenTask, tables: Tables): CollectedTask {
  const { files, seccomp, ahead } = tables;
  seccomp.add(task);
  const { ids, seen } = tables.ids.of(task);
  tables.relatives.check(task, ids);
  refuseSharedInNamespace(task, ids, { root: tables.ids.own, seen });
  const memory = seen.vm ? tables.places.get(ids.vm_id) : undefined;
  const directories = seen.fs ? tables.places.get(ids.fs_id) : undefined;
  const areas = (): readonly SmapsVma[] => tables.areas?.read(task.pid) ?? readSmaps(task.pid);
  const places =
    ahead?.places(task) ?? collectPlaces(task, areas(), files, { memory, directories });
  tables.places.set(ids.vm_id, memory ?? places).set(ids.fs_id, directories ?? places);
  if (places.vmas.some(({ uprobes }) => uprobes)) refusePendingReturns(task);
  using directory = new FdDirectory(task.pid);
  const looking = { ...tables, directory };
  const numbers = seen.files ? undefined : (ahead?.numbers(task) ?? readFdNumbers(task.pid));
  const unknown = numbers?.filter((fd) => ahead?.find(task, fd) === undefined);
  directory.prepare(unknown ?? [], ["infos", "stats", "targets"]);
  const fds = numbers?.map((fd) => collectFd(task, fd, looking));
  const threadPlaces = collectThreadPlaces(
    task,
    (procPath) => files.describeAlone(withoutFd(task, procPath, O_RDONLY | O_DIRECTORY)),
    tables.alike?.placed,
  );
  return {
    task,
    ids,
    sharesMemory: seen.vm,
    sharesDirectories: seen.fs,
    threadPlaces,
    ...places,
    fds,
  };
}

/**
 * Some namespaces are entered only by a task that has its directories, or its memory, for itself (setns(2)), which one that is made
 * with CLONE_FS or CLONE_VM has not.
 */
function refuseSharedInNamespace(
  { pid }: FrozenTask,
  ids: TaskKobjIdsEntry,
  { root, seen }: { root: TaskKobjIdsEntry; seen: Record<Shareable, boolean> },
): void {
  const differs = (...fields: readonly (keyof TaskKobjIdsEntry)[]): boolean =>
    fields.some((field) => ids[field] !== root[field]);
  const what =
    seen.fs && differs("mnt_ns_id", "user_ns_id")
      ? "current directory"
      : seen.vm && differs("time_ns_id")
        ? "memory"
        : undefined;
  if (what === undefined) return;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump pid ${pid}: it shares its ${what} with another process, and is in other namespaces than the root task`,
    { pid, hint: "Such processes (made by clone with CLONE_FS or CLONE_VM) cannot be made again." },
  );
}

/** What a task maps, and where it is. */
export type TaskPlaces = Pick<CollectedTask, "vmas" | "exeId" | "cwdId" | "rootId">;

/** Describes what a task has besides its descriptors, but for what it shares with another task. */
export function collectPlaces(
  task: FrozenTask,
  areas: readonly SmapsVma[],
  files: FileTable,
  { memory, directories }: Record<"memory" | "directories", TaskPlaces | undefined> = NOT_SHARED,
): TaskPlaces {
  const directory = (name: string): number =>
    files.describeAlone(withoutFd(task, `/proc/${task.pid}/${name}`, O_RDONLY | O_DIRECTORY));
  return {
    vmas: memory?.vmas ?? collectVmas(task, areas, mappedFileIds(task, files)),
    exeId:
      memory?.exeId ?? files.describeMapped(withoutFd(task, `/proc/${task.pid}/exe`, O_RDONLY)),
    cwdId: directories?.cwdId ?? directory("cwd"),
    rootId: directories?.rootId ?? directory("root"),
  };
}

const NOT_SHARED = { memory: undefined, directories: undefined };

function collectFd(
  task: FrozenTask,
  fd: number,
  { files, locks, ahead, directory }: Tables & { readonly directory: FdDirectory },
): CollectedFd {
  const known = ahead?.find(task, fd);
  if (known !== undefined) return { fd, ...known };
  const file = lookAtFd(task, fd, { directory });
  const { id, type } = files.describe(file);
  locks.add(file, id);
  return { fd, id, type, cloexec: (file.info.flags & O_CLOEXEC) !== 0 };
}

/** A file that a task uses without a descriptor. */
export function withoutFd(task: FrozenTask, procPath: string, flags: number): OpenFile {
  const link = readLinkedFile(task.pid, procPath.slice(`/proc/${task.pid}/`.length));
  return {
    task,
    fd: -1,
    procPath,
    target: link.target,
    stat: link.stat,
    info: plainInfo(flags, link.stat.inode),
  };
}

/** fdinfo of a file that has no descriptor. */
function plainInfo(flags: number, ino: bigint): FdInfo {
  return {
    pos: 0n,
    flags,
    mntId: -1,
    ino,
    ...NOTHING_MORE,
  };
}

function mappedFileIds(
  task: FrozenTask,
  files: FileTable,
): (area: SmapsVma, openFlags: number) => MappedFile {
  const seen = files.mappedAreas;
  return (area, openFlags) => {
    // Areas of one file lie side by side, and tasks map the same libraries: one look at a file is enough for all of them. What a
    // socket or a ring has mapped leads to no file.
    const owner = isSocketRing(area) || isRingArea(area) ? task.pid : "";
    const key = `${owner}:${areaKey(area)}:${openFlags}`;
    let known = seen.get(key);
    if (known === undefined) {
      known = lookAtMapped(task, area, { files, openFlags });
      seen.set(key, known);
    }
    if (!isRingArea(area)) return known;
    return { ...known, offset: noteRingArea(files, known.id, { pid: task.pid, area }) };
  };
}

function lookAtMapped(
  task: FrozenTask,
  area: SmapsVma,
  { files, openFlags }: { readonly files: FileTable; readonly openFlags: number },
): MappedFile {
  if (isSocketRing(area)) return { id: files.describe(socketOfRing(task, area)).id, memfd: false };
  if (isRingArea(area)) {
    const rings = (): OpenFile[] => openRings(task);
    const ring = ringOfArea(task.pid, area, { rings, dump: files });
    return { id: files.describe(ring).id, memfd: false };
  }
  return { id: mappedFileId(task, area, { files, openFlags }), memfd: isMemfd(area) };
}

/** The io_uring rings that a task has open. */
function openRings(task: FrozenTask): OpenFile[] {
  return readFds(task.pid)
    .filter(({ target }) => target === RING_LINK)
    .map(({ fd }) => lookAtFd(task, fd, { stat: readFdStat(task.pid, fd) }));
}

/** The same for areas of one file, in all tasks: an inode that is mapped is not given to another file. */
export function areaKey({ devMajor, devMinor, inode, path }: SmapsVma): string {
  return `${devMajor}:${devMinor}:${inode}:${path}`;
}

function mappedFileId(
  task: FrozenTask,
  area: SmapsVma,
  { files, openFlags }: { readonly files: FileTable; readonly openFlags: number },
): number {
  const name = mapFilePath(task.pid, area);
  const link = readLinkedFile(task.pid, name.slice(`/proc/${task.pid}/`.length));
  return files.describeMapped({
    task,
    fd: -1,
    procPath: name,
    target: link.target,
    stat: link.stat,
    info: plainInfo(openFlags, link.stat.inode),
  });
}

/** A socket can be looked into only through a descriptor. */
function socketOfRing(task: FrozenTask, area: SmapsVma): OpenFile {
  for (const fd of readFdNumbers(task.pid)) {
    const stat = readFdStat(task.pid, fd);
    if (stat.inode === area.inode) return lookAtFd(task, fd, { stat });
  }
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump pid ${task.pid}: it has the ring of a packet socket in memory (${area.path}) that it has closed`,
    { pid: task.pid, hint: "Let the process unmap it before the dump." },
  );
}

/** Memfds, and shared anonymous memory, which the kernel keeps in a file named /dev/zero that nobody can reach. */
function isMemfd(area: SmapsVma): boolean {
  return (
    area.path.startsWith("/memfd:") ||
    area.path.startsWith(`${ANONYMOUS_HUGE} `) ||
    area.path === "/dev/zero (deleted)" ||
    area.path.startsWith("[anon_shmem:")
  );
}

/** The session and the groups must be inside of the tree, or the tree a job of somebody's shell. */
function checkTree(tree: FrozenTree, options: FilesDumpOptions): void {
  const root = tree.tasks[0] as FrozenTask;
  if (!options.shellJob && root.stat.session !== processNumber(root)) {
    const inTree = tree.tasks.some((task) => processNumber(task) === root.stat.session);
    if (!inTree) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump pid ${root.pid}: its session (${root.stat.session}) has its leader outside of the tree`,
        {
          pid: root.pid,
          hint: "It was started from a shell: use --shell-job, or start it in a session of its own (setsid).",
        },
      );
    }
  }
}

function describeTree(tree: FrozenTree, live: readonly CollectedTask[]): string[] {
  const lines = tree.tasks.map(
    (task) =>
      `task ${task.innerPid} ${task.stat.comm} (${task.state}), ${task.threads.length} threads, parent ${task.parent?.innerPid ?? "outside"}`,
  );
  for (const { task, vmas, fds } of live) {
    lines.push(
      `  pid ${task.innerPid}: ${vmas.length} memory areas, ${fds?.length ?? 0} descriptors`,
    );
  }
  return lines;
}
