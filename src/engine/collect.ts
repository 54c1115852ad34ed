// Looking at a frozen tree from outside: memory areas, open files, namespaces, and which objects tasks share.

import { RepriseError } from "../errors.ts";
import { CgroupTable, type CgroupDumpOptions } from "../objects/cgroups/dump.ts";
import { LockTable } from "../objects/files/locks.ts";
import { FileTable, lookAtFd } from "../objects/files/table.ts";
import type { FilesDumpOptions, OpenFile } from "../objects/files/file-kind.ts";
import { SeccompTable } from "../objects/task/seccomp.ts";
import { refusePendingReturns } from "../objects/memory/breakpoints.ts";
import { ANONYMOUS_HUGE } from "../objects/memory/hugetlb.ts";
import { collectVmas, isSocketRing, type DumpedVma } from "../objects/memory/vma.ts";
import {
  collectNamespaces,
  type CollectedNamespaces,
  type NamespaceIds,
} from "../objects/namespaces/collect.ts";
import { collectMounts, type MountNamespaces } from "../objects/mounts/collect.ts";
import type { NamespacesDumpOptions } from "../objects/namespaces/room.ts";
import type { NetworkLock } from "../objects/network/lock.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type { FileLockEntry, TaskKobjIdsEntry } from "../images/schema/messages.generated.ts";
import { readFdNumbers } from "../proc/fd.ts";
import type { FdInfo } from "../proc/fdinfo.ts";
import { mapFilePath, readFdStat, readLinkedFile } from "../proc/links.ts";
import { readSmaps, type SmapsVma } from "../proc/smaps.ts";
import { KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_VM } from "../sys/abi/sched.ts";
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { KernelOrder } from "../sys/process.ts";
import type { LookAhead } from "./look-ahead.ts";
import type { FrozenTree } from "./freeze.ts";

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
}

/** Collects a frozen tree. Throws RepriseError UNSUPPORTED naming what cannot be saved. */
export function collectTree(
  tree: FrozenTree,
  images: ImageSetWriter,
  options: CollectOptions,
): CollectedTree {
  const inner = new Map(tree.tasks.map((task) => [task.pid, task.innerPid]));
  const alive = tree.tasks.filter(({ state }) => state !== "zombie");
  const namespaces = collectNamespaces(alive, { external: options.external ?? [] });
  const mounts = collectMounts(namespaces, options);
  const filesOptions = {
    ...options,
    namespaces,
    mounts,
    innerPid: (pid: number) => inner.get(pid),
  };
  const files = options.ahead?.files ?? new FileTable(images, filesOptions);
  try {
    if (options.ahead !== undefined) files.complete(filesOptions);
    const ids = new ObjectIds(namespaces);
    const locks = new LockTable({ isAllowed: options.fileLocks });
    const seccomp = new SeccompTable();
    const cgroups = new CgroupTable(options.cgroups);
    checkTree(tree, options);
    for (const task of alive) cgroups.add(task);
    cgroups.addNamespaces(
      namespaces.all.filter(({ kind, role }) => kind === "cgroup" && role === "nested"),
    );
    const live = alive.map((task) =>
      collectTask(task, { files, ids, locks, seccomp, ahead: options.ahead }),
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

/** What the tasks of a tree may share. */
interface Tables {
  readonly files: FileTable;
  readonly ids: ObjectIds;
  readonly locks: LockTable;
  readonly seccomp: SeccompTable;
  readonly ahead: LookAhead | undefined;
}

function collectTask(task: FrozenTask, tables: Tables): CollectedTask {
  const { files, ids, seccomp, ahead } = tables;
  seccomp.add(task);
  const shared = ids.of(task);
  const places = ahead?.places(task) ?? collectPlaces(task, readSmaps(task.pid), files);
  if (places.vmas.some(({ uprobes }) => uprobes)) refusePendingReturns(task);
  const fds = shared.filesSeen
    ? undefined
    : (ahead?.numbers(task) ?? readFdNumbers(task.pid)).map((fd) => collectFd(task, fd, tables));
  return { task, ids: shared.ids, ...places, fds };
}

/** What a task maps, and where it is. */
export type TaskPlaces = Pick<CollectedTask, "vmas" | "exeId" | "cwdId" | "rootId">;

/** Describes what a task has besides its descriptors. */
export function collectPlaces(
  task: FrozenTask,
  areas: readonly SmapsVma[],
  files: FileTable,
): TaskPlaces {
  return {
    vmas: collectVmas(task, areas, mappedFileIds(task, files)),
    exeId: files.describeMapped(withoutFd(task, `/proc/${task.pid}/exe`, O_RDONLY)),
    cwdId: files.describeAlone(withoutFd(task, `/proc/${task.pid}/cwd`, O_RDONLY | O_DIRECTORY)),
    rootId: files.describeAlone(withoutFd(task, `/proc/${task.pid}/root`, O_RDONLY | O_DIRECTORY)),
  };
}

function collectFd(task: FrozenTask, fd: number, { files, locks, ahead }: Tables): CollectedFd {
  const known = ahead?.find(task, fd);
  if (known !== undefined) return { fd, ...known };
  const file = lookAtFd(task, fd, readFdStat(task.pid, fd));
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
    eventfd: undefined,
    epoll: [],
    sigmask: undefined,
    inotify: [],
    fanotify: [],
    timerfd: undefined,
    pidfd: undefined,
    locks: [],
    ttyIndex: undefined,
    iff: undefined,
    extra: [],
  };
}

function mappedFileIds(
  task: FrozenTask,
  files: FileTable,
): (area: SmapsVma, openFlags: number) => { id: number; memfd: boolean } {
  const seen = files.mappedAreas;
  return (area, openFlags) => {
    // Areas of one file lie side by side, and tasks map the same libraries: one look at a file is enough for all of them. What a
    // socket has mapped leads to no file.
    const owner = isSocketRing(area) ? task.pid : "";
    const key = `${owner}:${areaKey(area)}:${openFlags}`;
    let known = seen.get(key);
    if (known === undefined) {
      known = isSocketRing(area)
        ? { id: files.describe(socketOfRing(task, area)).id, memfd: false }
        : { id: mappedFileId(task, area, { files, openFlags }), memfd: isMemfd(area) };
      seen.set(key, known);
    }
    return known;
  };
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
    if (stat.inode === area.inode) return lookAtFd(task, fd, stat);
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
  if (!options.shellJob && root.stat.session !== root.pid) {
    const inTree = tree.tasks.some(({ pid }) => pid === root.stat.session);
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

/** Gives equal numbers to shared objects: address spaces and descriptor tables. */
class ObjectIds {
  readonly own: TaskKobjIdsEntry;
  readonly #namespaces: { idsOf(pid: number): NamespaceIds };
  /** Objects that each task must have for itself. */
  readonly #unshared = [
    ["memory", new KernelOrder<FrozenTask>(KCMP_VM)],
    ["current directory and umask", new KernelOrder<FrozenTask>(KCMP_FS)],
    ["signal handlers", new KernelOrder<FrozenTask>(KCMP_SIGHAND)],
  ] as const;
  readonly #tables = new KernelOrder<{ readonly pid: number; readonly id: number }>(KCMP_FILES);
  #next = 2;

  constructor(namespaces: CollectedNamespaces) {
    this.#namespaces = namespaces;
    this.own = { vm_id: 1, files_id: 1, fs_id: 1, sighand_id: 1, ...namespaces.own };
  }

  of(task: FrozenTask): { ids: TaskKobjIdsEntry; filesSeen: boolean } {
    this.#refuseShared(task);
    const own = this.#next++;
    const sharer = this.#tables.findOrAdd({ pid: task.pid, id: own });
    const filesId = sharer?.id ?? own;
    return {
      ids: {
        vm_id: own,
        files_id: filesId,
        fs_id: own,
        sighand_id: own,
        ...this.#namespaces.idsOf(task.pid),
      },
      filesSeen: sharer !== undefined,
    };
  }

  #refuseShared(task: FrozenTask): void {
    for (const [what, seen] of this.#unshared) {
      const other = seen.findOrAdd(task);
      if (other === undefined) continue;
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump pid ${task.pid}: it shares its ${what} with pid ${other.pid}`,
        {
          pid: task.pid,
          hint: "Processes made by vfork or clone with CLONE_VM, CLONE_FS or CLONE_SIGHAND cannot be saved; a vfork lasts only until exec, so try again.",
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
