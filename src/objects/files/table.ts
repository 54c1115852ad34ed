// The table of open files of the whole tree: which descriptors of which tasks are one open file description, and the ids of
// files.img. Identity is the kernel's to tell (kcmp); it is asked only for files that look alike from outside.

import { openSync } from "node:fs";
import { dirname } from "node:path";
import { encodeAhead } from "../../images/codec.ts";
import type { FileEntry } from "../../images/schema/messages.generated.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { FdDirectory } from "../../tracee/fd-directory.ts";
import { readFdInfo, type FdInfo } from "../../proc/fdinfo.ts";
import { fdPath, readFdStat, type FileStat } from "../../proc/links.ts";
import { readProcLink, readProcStat } from "../../proc/procfs.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { KCMP_FILE } from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { KernelOrder, openPidfd } from "../../sys/process.ts";
import type { FrozenTask } from "../task/task.ts";
import type { FilesDumpOptions, InventoryNotes, OpenFile } from "./file-kind.ts";
import { copyWithOwners, type OwnerLook } from "./owner.ts";
import type { LockedConnection, NetworkLock } from "../network/lock.ts";
import { SocketsAhead, type CopiesDump, type SocketWriter } from "../sockets/sockets-ahead.ts";
import { peersFirst } from "../sockets/unix-order.ts";
import type { CollectedNamespaces } from "../namespaces/collect.ts";
import type { MountNamespaces } from "../mounts/collect.ts";
import type { MappedFile } from "../memory/vma.ts";
import { kindOf } from "./registry.ts";

interface Known {
  readonly pid: number;
  readonly fd: number;
  readonly file: OpenFile;
  readonly id: number;
  readonly type: number;
}

/** A file that has been described. */
export interface Described {
  readonly file: OpenFile;
  readonly id: number;
  readonly type: number;
}

export type DescribeSockets = (look: SocketWriter["look"]) => readonly Described[];

export interface FileTableOptions extends FilesDumpOptions {
  readonly namespaces?: CollectedNamespaces;
  /** Where connections are locked; not there yet while tasks run. */
  readonly lock?: NetworkLock;
  /** The mount namespaces of the tree. @default all tasks live in the engine's */
  readonly mounts?: MountNamespaces;
  innerPid(pid: number): number | undefined;
  innerThread?(tid: number): number | undefined;
}

export class FileTable implements CopiesDump {
  readonly images: ImageSetWriter;
  options: FileTableOptions;
  namespaces?: CollectedNamespaces;
  mounts: MountNamespaces | undefined;
  /** Ids of files that are mapped, by what an area shows of them. */
  readonly mappedAreas = new Map<string, MappedFile>();
  readonly #entries: FileEntry[] = [];
  readonly #descriptions = new Map<string, KernelOrder<Known>>();
  readonly #paths = new Map<string, number>();
  /** By their ids. */
  readonly #files = new Map<number, OpenFile>();
  /** One of those that are the same file, with the same name, unchanged. */
  readonly #states = new Map<string, OpenFile>();
  readonly #afterTasks: (() => void)[] = [];
  readonly #later: (() => void)[] = [];
  readonly #lastSteps: (() => void)[] = [];
  readonly #aborts: (() => void)[] = [];
  readonly #ends: ((tasks: "alive" | "stopped" | "dead") => void)[] = [];
  /** Something that is done in the end, whatever that is, uses them. */
  #needsCopies = false;
  #inventory: InventoryNotes = {};
  readonly #borrowed: number[] = [];
  readonly #copies = new WeakMap<OpenFile, number>();
  readonly #pidfds = new Map<number, number>();
  /** The engine in the place of a task, for files in flight. */
  readonly #inFlight = new Map<FrozenTask, FrozenTask>();
  #sockets: SocketsAhead | undefined;
  /** Waits for what sockets that were written while tasks ran tell now; those that have changed. */
  #changedSockets: (() => readonly OpenFile[]) | undefined;
  #nextId = 1;

  constructor(images: ImageSetWriter, options: FileTableOptions) {
    this.images = images;
    this.options = options;
    if (options.namespaces !== undefined) this.namespaces = options.namespaces;
    this.mounts = options.mounts;
  }

  /**
   * For files that were described while tasks ran: what others may have changed since. False when one has been locked meanwhile
   * (fdinfo tells it of this file alone; /proc/locks makes all processors wait for each other: 8 ms), or has another name or none.
   */
  refresh(directories: ReadonlyMap<number, FdDirectory>): boolean {
    if (!this.#keptNames()) return false;
    this.#changedSockets = this.#sockets?.compare();
    const before = [...this.#descriptions.values()].flatMap(({ items }) => items);
    const infos = changedInfos(
      before.filter(({ file }) => !isSocket(file)),
      directories,
    );
    if ([...infos.values()].some(({ locks }) => locks.length > 0)) return false;
    const isSame = ({ file: { info } }: Known, { pos, flags }: FdInfo): boolean =>
      info.pos === pos && info.flags === flags;
    if ([...infos].every(([known, info]) => isSame(known, info))) return true;
    const places = new Map(this.#entries.map((entry, index) => [entry.id, index]));
    this.#descriptions.clear();
    for (const known of before) {
      const { file, id, type } = known;
      const { pos, flags } = infos.get(known) ?? file.info;
      const place = places.get(id) ?? -1;
      const entry = this.#entries[place];
      const isOther = infos.has(known);
      if (isOther && entry?.reg !== undefined)
        this.#entries[place] = { ...entry, reg: { ...entry.reg, pos, flags: flags & ~O_CLOEXEC } };
      const now = isOther ? { ...file, info: { ...file.info, pos, flags } } : file;
      if (isOther) this.#copies.set(now, this.borrow(file));
      this.#lookingLike(now).findOrAdd({ ...placeOf(now), file: now, id, type });
    }
    return true;
  }

  /** Whether all described files have their names still; what their sizes are now is noted. */
  #keptNames(): boolean {
    const looked = new Map<string, FileStat>();
    const directories = new Set<string>();
    let isChanged = false;
    // One look at each file, and at each state of it that was seen: thousands may lead to one.
    for (const [place, file] of this.#states) {
      const name = place.slice(0, place.lastIndexOf(":"));
      const now = looked.get(name) ?? lookAgain(file, directories);
      if (now === undefined) return false;
      looked.set(name, now);
      if (now.ctimeNs !== file.stat.ctimeNs) isChanged = true;
    }
    if (!isChanged) return true;
    for (const [index, entry] of this.#entries.entries()) {
      const file = this.#files.get(entry.id);
      if (file === undefined || isSocket(file)) continue;
      const now = looked.get(placeOfFile(file));
      assert(now !== undefined, "every file was looked at again");
      if (entry.reg === undefined || now.ctimeNs === file.stat.ctimeNs) continue;
      // What was built anew has another build id.
      if (now.mtimeNs !== file.stat.mtimeNs && entry.reg.build_id.length > 0) return false;
      const size = entry.reg.size === undefined ? {} : { size: Number(now.size) };
      this.#entries[index] = { ...entry, reg: { ...entry.reg, ...size, mode: now.mode } };
    }
    return true;
  }

  /**
   * Begins to look at sockets of a process that runs. What is returned describes those of which `refresh` can tell whether they have
   * changed; `look` gives the rest of what is to be seen of one, or nothing.
   */
  beginSockets(pid: number, fds: readonly number[]): DescribeSockets {
    this.#sockets ??= new SocketsAhead(this);
    const describe = this.#sockets.begin(pid, fds);
    return (look) => {
      const described: Described[] = [];
      describe({ look, write: (file) => void described.push({ file, ...this.describe(file) }) });
      return described;
    };
  }

  /** For files that were described while tasks run: those that do not change are ready to be written. */
  encodeAhead(): void {
    for (const entry of this.#entries) encodeAhead("file_entry", entry);
  }

  /** For files that were described while tasks ran: what was not known then. */
  complete(options: FileTableOptions): void {
    this.options = options;
    this.mounts = options.mounts;
    if (options.namespaces !== undefined) this.namespaces = options.namespaces;
  }

  /** A socket of which there is something else to tell than before. */
  #writeAgain(before: OpenFile): void {
    const { task, fd } = before;
    // It was asked once for each descriptor.
    const alike = this.#descriptions.get(looks(before))?.items ?? [];
    const known = alike.find((one) => one.file === before);
    if (known === undefined) return;
    this.#descriptions.delete(looks(before));
    const file = lookAtFd(task, fd, { stat: readFdStat(task.pid, fd) });
    this.#copies.set(file, this.borrow(before));
    this.#files.set(known.id, file);
    for (const one of alike)
      this.#lookingLike(file).findOrAdd(one === known ? { ...known, file } : one);
    const place = this.#entries.findIndex(({ id }) => id === known.id);
    this.#entries[place] = kindOf(file, this).write(file, known.id, this);
  }

  /** Id and type of an open file that a descriptor leads to; the first sight of a description writes it. */
  describe(file: OpenFile): { readonly id: number; readonly type: number } {
    return this.#lookingLike(file).findOrMake(placeOf(file), () => ({
      ...placeOf(file),
      file,
      ...this.#write(file),
    }));
  }

  /** The id of a file that is mapped: one entry a file and open mode. */
  describeMapped(file: OpenFile): number {
    const key = `${file.stat.devMajor}:${file.stat.devMinor}:${file.stat.inode}:${file.info.flags}:${file.target}`;
    const known = this.#paths.get(key);
    if (known !== undefined) return known;
    const { id } = this.#write(file);
    this.#paths.set(key, id);
    return id;
  }

  /** A new entry for a file without a descriptor that is never shared (current directory, root). */
  describeAlone(file: OpenFile): number {
    return this.#write(file).id;
  }

  addEntry(make: (id: number) => FileEntry): number {
    const id = this.#nextId++;
    this.#entries.push(make(id));
    return id;
  }

  borrow(file: OpenFile): number {
    const known = this.#copies.get(file);
    if (known !== undefined) return known;
    const fd = file.fd < 0 ? this.#openPath(file) : this.#copy(file);
    this.#copies.set(file, fd);
    return fd;
  }

  /** Copies descriptors of a process, as far as they can be copied, and looks at their owners. */
  copyMany(pid: number, fds: readonly number[]): ReadonlyMap<number, OwnerLook> {
    const copies = copyWithOwners(pid, fds);
    for (const { copy } of copies.values()) this.keepCopy(copy);
    return copies;
  }

  keepCopy(copy: number): void {
    this.#borrowed.push(copy);
  }

  isCopyOf(copy: number, file: OpenFile): void {
    this.#copies.set(file, copy);
  }

  #copy(file: OpenFile): number {
    const pidfd = this.#pidfds.get(file.task.pid) ?? openPidfd(file.task.pid);
    this.#pidfds.set(file.task.pid, pidfd);
    const fd = trySyscall("pidfd_getfd", pidfd, file.fd, 0);
    if (fd < 0) {
      throw new RepriseError(
        "SYSCALL",
        `cannot look into fd ${file.fd} of pid ${file.task.pid} (${file.target}): pidfd_getfd: ${errnoName(-fd)}`,
        {
          pid: file.task.pid,
          fd: file.fd,
          syscall: "pidfd_getfd",
          errno: errnoName(-fd),
        },
      );
    }
    this.#borrowed.push(fd);
    return fd;
  }

  describeInFlight(fd: number, near: FrozenTask): number {
    this.#borrowed.push(fd);
    const task = this.#inFlight.get(near) ?? { ...near, pid: process.pid };
    this.#inFlight.set(near, task);
    const file = { ...lookAtFd(task, fd, { stat: readFdStat(process.pid, fd) }), near };
    if (file.info.locks.length > 0 && this.#lookingLike(file).find(placeOf(file)) === undefined) {
      log.loss(
        `pid ${near.pid}: a file in flight in a socket (${file.target}), which no task has, loses its locks`,
      );
    }
    return this.describe(file).id;
  }

  findDescription(
    isIt: (place: { readonly pid: number; readonly fd: number }) => boolean,
  ): { readonly id: number; readonly type: number } | undefined {
    for (const { items } of this.#descriptions.values()) {
      const found = items.find(isIt);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  afterTasks(step: () => void): void {
    this.#afterTasks.push(step);
  }

  later(step: () => void): void {
    this.#later.push(step);
  }

  beforeCommit(step: () => void): void {
    this.#lastSteps.push(step);
  }

  onAbort(step: () => void): void {
    this.#needsCopies = true;
    this.#aborts.push(step);
  }

  atEnd(
    step: (tasks: "alive" | "stopped" | "dead") => void,
    { needsCopies = true }: { readonly needsCopies?: boolean } = {},
  ): void {
    this.#ends.push(step);
    if (needsCopies) this.#needsCopies = true;
  }

  lockConnections(connections: readonly LockedConnection[]): void {
    assert(this.options.lock !== undefined, "connections were looked at while tasks ran");
    this.options.lock.lockConnections(connections);
  }

  note(fields: InventoryNotes): void {
    this.#inventory = { ...this.#inventory, ...fields };
  }

  /** What the rooms tell in inventory.img. */
  get inventory(): InventoryNotes {
    return this.#inventory;
  }

  /** Runs the steps of the end: before the tasks go on, or after they have been killed. */
  end(tasks: "alive" | "stopped" | "dead"): void {
    for (const step of this.#ends.splice(0)) step(tasks);
  }

  innerPid(pid: number): number | undefined {
    return this.options.innerPid(pid);
  }

  innerThread(tid: number): number | undefined {
    return this.options.innerThread?.(tid);
  }

  /** Runs the deferred steps and writes files.img. */
  finish(): void {
    for (const file of this.#changedSockets?.() ?? []) this.#writeAgain(file);
    for (let step = this.#afterTasks.shift(); step !== undefined; step = this.#afterTasks.shift())
      step();
    for (let step = this.#later.shift(); step !== undefined; step = this.#later.shift()) step();
    this.images.write("files", 0, peersFirst(this.#entries.toSorted((a, b) => a.id - b.id)));
  }

  /** Does outside of the images what the set needs there (hard links for --link-remap): just before it is committed. */
  prepareCommit(): void {
    for (const step of this.#lastSteps.splice(0)) step();
  }

  /** Takes back what rooms did outside of the images. */
  abort(): void {
    this.end("alive");
    for (const step of this.#aborts.splice(0)) step();
  }

  /**
   * Closes the engine's copies before the tasks are killed, where nothing needs them any more: who is the last to have thousands of sockets
   * has to end them.
   */
  closeCopies(): void {
    if (!this.#needsCopies) closeAll(this.#borrowed.splice(0));
  }

  #noteState(file: OpenFile): void {
    const state = `${placeOfFile(file)}:${file.stat.ctimeNs}`;
    if (!this.#states.has(state)) this.#states.set(state, file);
  }

  /** Closes the engine's copies of the tasks' files. */
  close(): void {
    this.#sockets?.[Symbol.dispose]();
    closeAll([...this.#borrowed.splice(0), ...this.#pidfds.values()]);
    this.#pidfds.clear();
    this.mounts?.close();
  }

  /** A mapped file has no descriptor; its /proc link opens the same file. */
  #openPath(file: OpenFile): number {
    const fd = openSync(file.procPath, "r");
    this.#borrowed.push(fd);
    return fd;
  }

  #lookingLike(file: OpenFile): KernelOrder<Known> {
    const key = looks(file);
    const known = this.#descriptions.get(key) ?? new KernelOrder<Known>(KCMP_FILE);
    this.#descriptions.set(key, known);
    return known;
  }

  #write(file: OpenFile): { readonly id: number; readonly type: number } {
    const id = this.#nextId++;
    const kind = kindOf(file, this);
    this.#files.set(id, file);
    if (!isSocket(file)) this.#noteState(file);
    this.#entries.push(kind.write(file, id, this));
    return { id, type: kind.type };
  }
}

/** Whether it is a socket, which has no name of its own. */
export function isSocket({ target }: Pick<OpenFile, "target">): boolean {
  return target.startsWith("socket:[");
}

/** Reads everything about one descriptor of a task. */
export function lookAtFd(
  task: FrozenTask,
  fd: number,
  from:
    | { readonly stat: FileStat }
    | { readonly directory: FdDirectory; /** Where it is known. */ readonly info?: FdInfo },
): OpenFile {
  const { pid } = task;
  const procPath = fdPath(pid, fd);
  if ("stat" in from) {
    const target = readProcLink(pid, `fd/${fd}`);
    return { task, fd, procPath, target, stat: from.stat, info: readFdInfo({ pid, fd }) };
  }
  const { directory, info = directory.info(fd) } = from;
  return { task, fd, procPath, target: directory.target(fd), stat: directory.stat(fd), info };
}

/** What fdinfo says now of those of which it says something else than when they were looked at. */
function changedInfos(
  known: readonly Known[],
  directories: ReadonlyMap<number, FdDirectory>,
): ReadonlyMap<Known, FdInfo> {
  const ofTasks = new Map<number, Map<number, Known>>();
  for (const one of known) {
    const ofTask = ofTasks.get(one.pid);
    if (ofTask === undefined) ofTasks.set(one.pid, new Map([[one.fd, one]]));
    else ofTask.set(one.fd, one);
  }
  const changed = new Map<Known, FdInfo>();
  for (const [pid, ofTask] of ofTasks) {
    const directory = directories.get(pid);
    assert(directory !== undefined, `the descriptors of pid ${pid} were looked at`);
    for (const fd of directory.changedInfos([...ofTask.keys()]))
      changed.set(ofTask.get(fd) as Known, directory.info(fd));
  }
  return changed;
}

function placeOfFile({ stat, target }: OpenFile): string {
  return `${stat.devMajor}:${stat.devMinor}:${stat.inode}:${target}`;
}

/** What two descriptors of one description have in common for sure. */
function looks({ stat, info, target }: OpenFile): string {
  // Of a socket there is but one description, whatever became of its flags since it was looked at.
  if (isSocket({ target })) return target;
  // All eventfds are of one inode, and thousands would have to be compared.
  const number = info.eventfd?.id ?? "";
  return `${stat.devMajor}:${stat.devMinor}:${stat.inode}:${info.pos}:${info.flags & ~O_CLOEXEC}:${info.mntId}:${number}:${target}`;
}

/** The stat of a file that may be in other hands, too; undefined when it has not the name that it had. */
function lookAgain(
  { stat: before, target, task, procPath }: OpenFile,
  directories: Set<string>,
): FileStat | undefined {
  const name = procPath.slice(`/proc/${task.pid}/`.length);
  const now = readProcStat(task.pid, name);
  // The change time tells of another name, but not of one that a directory above has: one file in each is asked for.
  const isSame = now.ctimeNs === before.ctimeNs && now.nlink === before.nlink;
  const directory = dirname(target);
  if (isSame && directories.has(directory)) return now;
  directories.add(directory);
  return readProcLink(task.pid, name) === target ? now : undefined;
}

function placeOf({ task, fd }: OpenFile): { readonly pid: number; readonly fd: number } {
  return { pid: task.pid, fd };
}

/** Copies have numbers that follow each other: they are closed together. */
function closeAll(fds: readonly number[]): void {
  const sorted = fds.toSorted((a, b) => a - b);
  for (let first = 0; first < sorted.length;) {
    let last = first;
    while (sorted[last + 1] === (sorted[last] as number) + 1) last += 1;
    syscall("close_range", sorted[first], sorted[last], 0);
    first = last + 1;
  }
}
