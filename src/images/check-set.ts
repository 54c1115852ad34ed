// Everything that a restore needs from an image set, read and checked before a process is made. What
// comes out is plain data in which references resolve: later code need not ask again whether a file
// id exists or a mapping is page aligned. format.md's list of what `criu restore` demands is the
// floor; contents that the kernel would refuse are left to the kernel.
import { RepriseError } from "../errors.ts";
import { badSet } from "./bad-set.ts";
import { checkFiles, indexFiles, type FileIndex } from "./check-files.ts";
import { checkMappings, checkPages } from "./check-memory.ts";
import { checkCore, checkSeccomp, TASK_DEAD, TASK_LEADERLESS } from "./check-task.ts";
import type { ImageEntry } from "./image-file.ts";
import type { ImageSetReader } from "./image-set-reader.ts";
import type { Pagemap } from "./pagemap.ts";
import { CoreEntryMarch } from "./schema/messages.generated.ts";
import type {
  ApparmorEntry,
  CgroupEntry,
  CoreEntry,
  FdinfoEntry,
  FileLockEntry,
  FsEntry,
  GhostFileEntry,
  InventoryEntry,
  IpcVarEntry,
  MmEntry,
  MntEntry,
  NetDeviceEntry,
  NetnsEntry,
  PidnsEntry,
  PipeDataEntry,
  PstreeEntry,
  RemapFilePathEntry,
  SeccompEntry,
  SkPacketEntry,
  TaskKobjIdsEntry,
  TimensEntry,
  TtyDataEntry,
  UsernsEntry,
  UtsnsEntry,
} from "./schema/messages.generated.ts";

export interface LoadedTask {
  readonly pid: number;
  readonly pstree: PstreeEntry;
  /** The leader's. A zombie has `tc` alone. */
  readonly core: CoreEntry;
  readonly isZombie: boolean;
  /** By thread id, the leader among them, in the order of pstree. Empty for a zombie. */
  readonly threads: ReadonlyMap<number, CoreEntry>;
  /** The five of a live task; a zombie has none of them. */
  readonly live: LiveTask | undefined;
}

export interface LiveTask {
  readonly ids: TaskKobjIdsEntry;
  /** It has no memory of its own: `mm` is that of an earlier task with the same `vm_id` (CLONE_VM), and its pages are there. */
  readonly sharesMemory: boolean;
  /** `fs` is that of an earlier task with the same `fs_id` (CLONE_FS). */
  readonly sharesDirectories: boolean;
  readonly mm: MmEntry;
  readonly fs: FsEntry;
  readonly fdinfo: readonly FdinfoEntry[];
  readonly pagemap: Pagemap;
}

/** Namespaces of the tasks' ids that have images. */
export interface LoadedNamespaces {
  readonly uts: ReadonlyMap<number, UtsnsEntry>;
  readonly user: ReadonlyMap<number, UsernsEntry>;
  readonly pid: ReadonlyMap<number, PidnsEntry>;
  readonly ipc: ReadonlyMap<number, IpcVarEntry>;
  readonly net: ReadonlyMap<
    number,
    { readonly netns: NetnsEntry; readonly devices: readonly NetDeviceEntry[] }
  >;
  readonly mounts: ReadonlyMap<number, readonly MntEntry[]>;
}

export interface LoadedSet extends FileIndex {
  /** For content that is read when it is needed: pages, payload, ghosts, TCP streams. */
  readonly reader: ImageSetReader;
  readonly inventory: InventoryEntry;
  /** Parents before children, the root first. */
  readonly pstree: readonly PstreeEntry[];
  readonly rootPid: number;
  readonly tasks: ReadonlyMap<number, LoadedTask>;
  readonly remaps: readonly RemapFilePathEntry[];
  readonly pipesData: readonly ImageEntry<PipeDataEntry>[];
  readonly fifoData: readonly ImageEntry<PipeDataEntry>[];
  readonly skQueues: readonly ImageEntry<SkPacketEntry>[];
  readonly ttyData: readonly TtyDataEntry[];
  readonly fileLocks: readonly FileLockEntry[];
  readonly seccomp: SeccompEntry | undefined;
  readonly apparmor: ApparmorEntry | undefined;
  readonly timens: TimensEntry | undefined;
  readonly cgroup: CgroupEntry | undefined;
  readonly namespaces: LoadedNamespaces;
}

/** The kernel's PID_MAX_LIMIT on 64-bit systems. */
const MAX_PID = 4_194_304;

/**
 * Reads and checks a set. Reads no page and no payload.
 * @throws RepriseError IMAGE_MISSING naming the file, IMAGE_VERSION, BAD_IMAGE naming what is wrong.
 */
export function loadImageSet(reader: ImageSetReader): LoadedSet {
  const { inventory } = reader;
  checkInventory(reader);
  const pstree = reader.read("pstree");
  if (pstree.length === 0) reader.readOne("pstree");
  checkTree(pstree);
  const files = indexFiles(reader);
  const seccomp = reader.read("seccomp")[0];
  const shared: SharedParts = { mm: new Map(), fs: new Map() };
  const tasks = new Map(
    pstree.map((entry) => [entry.pid, loadTask(reader, entry, { files, shared })]),
  );
  checkRoot(tasks.get(pstree[0]?.pid ?? 0));
  const set: LoadedSet = {
    ...files,
    reader,
    inventory,
    pstree,
    rootPid: pstree[0]?.pid ?? 0,
    tasks,
    remaps: reader.read("remap-fpath"),
    pipesData: reader.readWithPayload("pipes-data"),
    fifoData: reader.readWithPayload("fifo-data"),
    skQueues: reader.readWithPayload("sk-queues"),
    ttyData: reader.read("tty-data"),
    fileLocks: reader.read("filelocks"),
    seccomp,
    apparmor: reader.read("apparmor")[0],
    timens: loadClocks(reader, tasks.get(pstree[0]?.pid ?? 0)),
    cgroup: reader.read("cgroup")[0],
    namespaces: loadNamespaces(reader, tasks),
  };
  checkFiles(set);
  checkSeccomp(set);
  checkCgroupSets(set);
  return set;
}

/**
 * A deleted file's description and the places of its content in the image.
 * @throws RepriseError IMAGE_MISSING, BAD_IMAGE.
 */
export function loadGhost(reader: ImageSetReader, id: number): ImageEntry<GhostFileEntry> {
  reader.openRaw("ghost-file", id)[Symbol.dispose]();
  const [ghost] = reader.readWithPayload("ghost-file", id);
  if (ghost === undefined) throw badSet(`ghost file ${id} has no entry`);
  return ghost;
}

/**
 * The saved pages of a memfd or another shared memory object; undefined when it has none.
 * @throws RepriseError BAD_IMAGE, IMAGE_MISSING for the pages file.
 */
export function loadSharedPagemap(reader: ImageSetReader, shmid: number): Pagemap | undefined {
  const pagemap = reader.readPagemap("pagemap-shmem", shmid);
  if (pagemap !== undefined) checkPages(reader, { kind: "pagemap-shmem", id: shmid, pagemap });
  return pagemap;
}

function checkInventory({ inventory, isPreDump }: ImageSetReader): void {
  if (isPreDump) {
    throw new RepriseError("BAD_IMAGE", "cannot restore from a pre-dump: it holds only memory", {
      hint: "Restore from the dump that came after it.",
    });
  }
  if (inventory.fdinfo_per_id !== true) {
    throw new RepriseError(
      "IMAGE_VERSION",
      "cannot read image set: it is too old (fdinfo_per_id unset)",
    );
  }
  if (inventory.root_ids === undefined) throw badSet("inventory.img has no root_ids");
  if (inventory.root_cg_set === 0) throw badSet("inventory.img has root_cg_set 0");
}

function checkTree(pstree: readonly PstreeEntry[]): void {
  const pids = new Set<number>();
  for (const [index, { pid, ppid, pgid, sid }] of pstree.entries()) {
    if (pid === 0 || pid > MAX_PID) throw badSet(`pstree.img: impossible pid ${pid}`);
    if (pgid > MAX_PID || sid > MAX_PID)
      throw badSet(`pstree.img: impossible session of pid ${pid}`);
    if (pids.has(pid)) throw badSet(`pstree.img: pid ${pid} is there twice`);
    if (index === 0 && ppid !== 0) throw badSet(`pstree.img: the root, pid ${pid}, has a parent`);
    if (index > 0 && !pids.has(ppid))
      throw badSet(`pstree.img: pid ${pid}: no parent ${ppid} before it`);
    pids.add(pid);
  }
}

/** Nobody can dump a tree whose root has ended, and nobody would be there to make it. */
function checkRoot(root: LoadedTask | undefined): void {
  if (root?.isZombie === true) throw badSet(`core-${root.pid}.img: the root of the tree is dead`);
}

/** What tasks may have in common, by the numbers of the ids images. */
interface SharedParts {
  readonly mm: Map<number, MmEntry>;
  readonly fs: Map<number, FsEntry>;
}

interface KnownParts {
  readonly files: FileIndex;
  readonly shared: SharedParts;
}

function loadTask(reader: ImageSetReader, pstree: PstreeEntry, known: KnownParts): LoadedTask {
  const { pid } = pstree;
  const core = loadCore(reader, pid);
  const isZombie = core.tc?.task_state === TASK_DEAD;
  checkCore(core, { pid, role: isZombie ? "zombie" : "leader" });
  if (isZombie) return { pid, pstree, core, isZombie, threads: new Map(), live: undefined };
  const threads = loadThreads(reader, pstree, core);
  if (core.tc?.task_state === TASK_LEADERLESS && threads.size < 2)
    throw badSet(`core-${pid}.img: the only thread has ended`);
  return { pid, pstree, core, isZombie, threads, live: loadLive(reader, pid, known) };
}

function loadCore(reader: ImageSetReader, id: number): CoreEntry {
  const core = reader.readOne("core", id);
  if (core.mtype !== CoreEntryMarch.X86_64) {
    const machine = Object.entries(CoreEntryMarch).find(([, number]) => number === core.mtype);
    throw badSet(`core-${id}.img is of another machine: ${machine?.[0] ?? core.mtype}`);
  }
  return core;
}

function loadThreads(
  reader: ImageSetReader,
  { pid, threads: tids }: PstreeEntry,
  leader: CoreEntry,
): Map<number, CoreEntry> {
  if (tids[0] !== pid) throw badSet(`pstree.img: the first thread of pid ${pid} is not itself`);
  const threads = new Map([[pid, leader]]);
  for (const tid of tids.slice(1)) {
    if (tid === 0 || tid > MAX_PID)
      throw badSet(`pstree.img: impossible thread ${tid} of pid ${pid}`);
    if (threads.has(tid)) throw badSet(`pstree.img: thread ${tid} of pid ${pid} is there twice`);
    const core = loadCore(reader, tid);
    checkCore(core, { pid: tid, role: "thread" });
    threads.set(tid, core);
  }
  return threads;
}

function loadLive(reader: ImageSetReader, pid: number, { files, shared }: KnownParts): LiveTask {
  const ids = reader.readOne("ids", pid);
  const fdinfo = reader.read("fdinfo", ids.files_id);
  const ownFs = reader.readOne("fs", pid);
  const fs = ownFs.shared === true ? shared.fs.get(ids.fs_id) : ownFs;
  if (fs === undefined) throw badSet(`fs-${pid}.img: no task before it has these directories`);
  shared.fs.set(ids.fs_id, fs);
  const parts = { ids, fs, fdinfo, sharesDirectories: fs !== ownFs };
  const ownMm = reader.readOne("mm", pid);
  const mm = ownMm.reprise?.shared === true ? shared.mm.get(ids.vm_id) : ownMm;
  if (mm === undefined) throw badSet(`mm-${pid}.img: no task before it has this memory`);
  if (mm !== ownMm) return { ...parts, mm, pagemap: NO_PAGES, sharesMemory: true };
  shared.mm.set(ids.vm_id, mm);
  const pagemap = reader.readPagemap("pagemap", pid);
  if (pagemap === undefined) throw reader.missing("pagemap", pid);
  checkMappings(mm, { pid, files });
  checkPages(reader, { kind: "pagemap", id: pid, pagemap, mm });
  return { ...parts, mm, pagemap, sharesMemory: false };
}

const NO_PAGES: Pagemap = { pagesId: 0, runs: [], pagesSize: 0 };

type Tasks = ReadonlyMap<number, LoadedTask>;

function namespaceIds(tasks: Tasks, name: keyof TaskKobjIdsEntry): Set<number> {
  const ids = [...tasks.values()].map((task) => task.live?.ids[name]);
  return new Set(ids.filter((id) => id !== undefined));
}

function loadNamespaces(reader: ImageSetReader, tasks: Tasks): LoadedNamespaces {
  const owners = reader.inventory.reprise?.namespaces.map(({ owner }) => owner) ?? [];
  const load = <T>(field: keyof TaskKobjIdsEntry, read: (id: number) => T | undefined) => {
    const found = new Map<number, T>();
    // User namespaces own others even where no task lives in them.
    const ids = [...namespaceIds(tasks, field), ...(field === "user_ns_id" ? owners : [])];
    for (const id of new Set(ids)) {
      const value = read(id);
      if (value !== undefined) found.set(id, value);
    }
    return found;
  };
  return {
    uts: load("uts_ns_id", (id) => reader.read("utsns", id)[0]),
    user: load("user_ns_id", (id) => reader.read("userns", id)[0]),
    pid: load("pid_ns_id", (id) => reader.read("pidns", id)[0]),
    ipc: load("ipc_ns_id", (id) => reader.read("ipcns-var", id)[0]),
    net: load("net_ns_id", (id) => {
      const netns = reader.read("netns", id)[0];
      return netns === undefined ? undefined : { netns, devices: reader.read("netdev", id) };
    }),
    mounts: load("mnt_ns_id", (id) => {
      const mounts = reader.read("mountpoints", id);
      return mounts.length === 0 ? undefined : mounts;
    }),
  };
}

/** Clocks of the root task's time namespace, or of the host's, which CRIU stores as number 0. */
function loadClocks(reader: ImageSetReader, root: LoadedTask | undefined): TimensEntry | undefined {
  for (const id of [root?.live?.ids.time_ns_id ?? 0, 0]) {
    const clocks = reader.read("timens", id)[0];
    if (clocks !== undefined) return clocks;
  }
  return undefined;
}

function checkCgroupSets({ tasks, cgroup, inventory }: LoadedSet): void {
  const known = new Set(cgroup?.sets.map((set) => set.id));
  if (inventory.root_cg_set !== undefined) known.add(inventory.root_cg_set);
  for (const { threads } of tasks.values()) {
    for (const [tid, core] of threads) {
      const set = core.thread_core?.cg_set ?? core.tc?.cg_set;
      if (set !== undefined && !known.has(set)) {
        throw badSet(`thread ${tid}: its cgroup set ${set} is not in cgroup.img`);
      }
    }
  }
}
