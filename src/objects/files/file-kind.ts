// What every kind of open file has in common: how its room is asked at dump and at restore. One file in this folder is one
// kind; registry.ts lists them.

import type { FdInfo } from "../../proc/fdinfo.ts";
import type { FileStat } from "../../proc/links.ts";
import type { FileEntry, InventoryEntry } from "../../images/schema/messages.generated.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { LockedConnection } from "../network/lock.ts";
import type { CollectedNamespaces } from "../namespaces/collect.ts";
import type { NamespaceKind } from "../namespaces/kinds.ts";
import type { Place } from "../mounts/places.ts";
import type { MountNamespaces } from "../mounts/collect.ts";
import type { FrozenTask } from "../task/task.ts";

/** One open file description, seen through one descriptor of one task that holds it. */
export interface OpenFile {
  readonly task: FrozenTask;
  /** Of a file in flight in a socket, whose `task` is the engine: a task that can receive it. */
  readonly near?: FrozenTask;
  /** A descriptor number of `task`; -1 for a file without one (mapped, executed, current directory). */
  readonly fd: number;
  /** /proc path of the link itself: /proc/PID/fd/N, /proc/PID/map_files/…, /proc/PID/cwd. */
  readonly procPath: string;
  /** Text of that link. */
  readonly target: string;
  readonly stat: FileStat;
  readonly info: FdInfo;
}

/** What a room may use while it writes an open file. */
export interface FilesDump {
  readonly images: ImageSetWriter;
  readonly options: FilesDumpOptions;
  /** The namespaces of the tree; undefined in tests of single files. */
  readonly namespaces?: CollectedNamespaces;
  /** The mount namespaces of the tree; undefined where all live in the engine's. */
  readonly mounts?: MountNamespaces | undefined;
  /** Adds a further entry to files.img (the path of a FIFO, say); the entry's id is in the answer. */
  addEntry(make: (id: number) => FileEntry): number;
  /** The engine's own copy of the description (pidfd_getfd), open until the end of the dump. */
  borrow(file: OpenFile): number;
  /**
   * The id of a file in flight in a socket's queue, of which the engine holds the descriptor `fd`, in the namespaces of `near`.
   * The descriptor belongs to the dump from now on. Only in a step of `afterTasks`.
   */
  describeInFlight(fd: number, near: FrozenTask): number;
  /** The description for which `isIt` answers yes, asked with a descriptor of a process, among those that have been seen. */
  findDescription(
    isIt: (place: { readonly pid: number; readonly fd: number }) => boolean,
  ): { readonly id: number; readonly type: number } | undefined;
  /** Defers a step until the descriptors of all tasks have been seen; it may find further files. */
  afterTasks(step: () => void): void;
  /** Defers a step to the end of collecting, when every description has been seen (pipe data, epoll targets). */
  later(step: () => void): void;
  /** Defers a step to the moment when the set is whole but for that: what can be seen of it outside, and what may still fail. */
  beforeCommit(step: () => void): void;
  /** Defers a step to the failure of the dump: takes back what was done outside of the images. */
  onAbort(step: () => void): void;
  /**
   * Defers a step to the end of the dump, whatever it is: before the tasks go on, when they are left stopped for somebody who ends
   * them, or when they have been killed and the engine's copies of their files are the last ones.
   */
  atEnd(
    step: (tasks: "alive" | "stopped" | "dead") => void,
    options?: {
      /** The step uses copies that the engine has. @default true */
      readonly needsCopies?: boolean;
    },
  ): void;
  /**
   * Keeps packets away from connections until the end of the dump or, when the tasks end, until the restore.
   * @throws RepriseError SYSCALL
   */
  lockConnections(connections: readonly LockedConnection[]): void;
  /** Adds fields to inventory.img. */
  note(fields: InventoryNotes): void;
  /** The inner pid of a pid in the engine's namespace, when it belongs to the tree. */
  innerPid(pid: number): number | undefined;
  /** The same of a thread, which may be a process's first. */
  innerThread?(tid: number): number | undefined;
}

/** What rooms may tell in inventory.img. */
export type InventoryNotes = Partial<Pick<InventoryEntry, "tcp_close">>;

/** What is done with TCP connections. */
export interface TcpDumpOptions {
  /** Save connections. */
  readonly established: boolean;
  /** Save connections as closed sockets. */
  readonly close: boolean;
  /** Let connections that no one has accepted yet go. */
  readonly skipInFlight: boolean;
}

export interface TcpRestoreOptions {
  readonly established: boolean;
  readonly close: boolean;
}

export interface FilesDumpOptions {
  /**
   * Datagram sockets may be connected to sockets outside of the tree that have a name; with a list, the sockets with these inodes
   * may be connected to whatever they are.
   * @default false
   */
  readonly extUnixSk?: boolean | readonly number[];
  /** Objects of outside, as --external names them: `file[MOUNT:INODE]`, `tty[RDEV:DEV]`, … @default [] */
  readonly external?: readonly string[];
  /**
   * Inode of the engine's own socket to whom asked for this dump. Where that is a task of the tree, its end is saved as one that gets
   * the answer when it comes back.
   */
  readonly requestSocket?: number;
  readonly tcp?: TcpDumpOptions;
  /** A terminal may have its other end outside: the restore makes a new one (--orphan-pts-master). @default false */
  readonly orphanPtsMaster?: boolean;
  readonly linkRemap: boolean;
  /**
   * No hard link is made where the restore can find a file by its handle: for tasks that go on, who shall not see a trace of the dump in
   * their file systems. @default false
   */
  readonly noLink?: boolean;
  /** Bytes up to which the content of a deleted file is put into the images. */
  readonly ghostLimit: number;
  readonly shellJob: boolean;
}

/** What a room may use while it builds the program that opens the files of the whole tree. */
export interface FilesRestore {
  /** The opening task is the root of another user namespace, and nobody to files of outside: it may not open those once more. */
  readonly isForeigner?: boolean;
  readonly set: LoadedSet;
  readonly options: FilesRestoreOptions;
  /** Adds the call that opens an image file for its payload; whoever reads sets the position. */
  openImage(program: Program, name: string): Argument;
  /**
   * The descriptor, in all tasks, of a namespace by its number in the images; undefined for one that no task of the tree lives
   * in, and for the root's own namespaces of which no file is open.
   */
  namespaceFd?(kind: NamespaceKind, id: number): number | undefined;
  /** Runs something of the engine's where paths are those of the root task. Undefined in tests of single files. */
  inRootMounts?<T>(action: () => T): T;
  /**
   * Has the program go on in the mount namespace in which `mntId` (of an entry) is a mount: the root task's when it is not known. Calls
   * by absolute paths then lead where the entry means.
   *
   * @returns prefix for these paths, seen from the engine
   */
  inMountsOf(program: Program, mntId: number | undefined): string;
  /** Where a file of an entry with this mnt_id, and this path, can be made for a moment, also on a mount that is read-only. */
  temporaryPlace(mntId: number | undefined, path: string): Place;
  /** Opens another entry (the regular file behind a FIFO) and gives its descriptor. */
  open(id: number): Argument;
  /** Adds a step that the engine runs just before the opening program. */
  first(step: () => void): void;
  /** Adds calls to the end of the opening program: removing a ghost's name, filling a pipe. */
  later(step: (program: Program) => void): void;
  /** Adds calls to the root task's last program, when all tasks have their memory, files and directories. */
  lastly(step: (program: Program) => void): void;
  /**
   * A descriptor number that no task uses, for a pair's second end or for a helper; closed by the engine at the end. `open` may return
   * it: the description then keeps this number, and is not copied to another.
   */
  reserve(): number;
  /** Adds a step that the engine runs itself when the opening program has run. */
  inEngine(step: (copies: EngineCopies) => void): void;
  /** Adds a step that the engine runs when all tasks are there, or their threads, too. */
  whenThere(what: "tasks" | "threads", step: (standing: StandingTree) => void): void;
  /** Adds steps for the end of the restore: just before the tasks are let go, or when it has failed. */
  atEnd(steps: { readonly release: () => void; readonly failed?: () => void }): void;
}

/** The tree when all of its tasks, or threads, are there. */
export interface StandingTree {
  readonly copies: EngineCopies;
  /** Number in the engine's pid namespace of a process or thread of the tree; undefined for what is no task of it. */
  readonly outerTid: (tid: number) => number | undefined;
}

/** The engine's own copies of descriptors of the opening program; closed at the end of the restore. */
export interface EngineCopies {
  /** Of an entry's file. */
  file(id: number): number;
  /** Of a reserved number. */
  reserved(fd: number): number;
}

export interface FilesRestoreOptions {
  /** Connect datagram sockets to sockets outside of the tree again. @default false */
  readonly extUnixSk?: boolean;
  readonly tcp?: TcpRestoreOptions;
  /**
   * Takes the master of a new terminal whose other end is a task's and whose own end was outside (--orphan-pts-master). Without it
   * such a terminal is the engine's own (`shellJob`).
   */
  readonly orphanMaster?: (fd: number) => void;
  readonly shellJob: boolean;
  readonly skipRwxCheck: boolean;
  readonly fileValidation: "filesize" | "buildid";
}

/** A kind of open file: its room's functions. */
export interface FileKind {
  /** For messages: "eventfd", "pipe". */
  readonly name: string;
  /** fd_types of the images. */
  readonly type: number;
  /** Is this description of our kind? Asked in the order of the registry. */
  recognise(file: OpenFile, dump: FilesDump): boolean;
  /**
   * Writes the description: its entry for files.img under `id`, and its own images through `dump`.
   * Throws RepriseError UNSUPPORTED naming pid, fd and object for what cannot be saved.
   */
  write(file: OpenFile, id: number, dump: FilesDump): FileEntry;
  /**
   * Adds the calls that make the description again. They run once, in the root task, as root, before the other tasks are
   * forked; every task inherits the descriptors and takes what is its own by dup3.
   *
   * @returns the descriptor: a number, or a reference to a call's result.
   */
  open(program: Program, entry: FileEntry, restore: FilesRestore): Argument;
  /**
   * The descriptor from which areas of this file are mapped.
   * @default the file's own
   */
  mapped?(program: Program, entry: FileEntry, restore: FilesRestore): Argument;
  /** What --inherit-fd may call this description: `pipe:[7]`, a path, … */
  inheritKeys?(entry: FileEntry, set: LoadedSet): readonly string[];
  /**
   * Adds the calls that make the description from a descriptor that the caller of the restore brings.
   * @default the descriptor's own description
   */
  openInherited?(program: Program, entry: FileEntry, fd: number, restore: FilesRestore): Argument;
  /**
   * Adds calls that need all descriptors of a task in their final places (an epoll's targets). Runs in the first task that
   * holds the description, on its final descriptor number.
   */
  settle?(program: Program, entry: FileEntry, fd: number, restore: FilesRestore): void;
  /**
   * `settle` runs for every descriptor of every task that holds the description, not once: for a file that can only be made
   * when all tasks are there, so that no one descriptor can be inherited by all (pidfd).
   */
  readonly settleEach?: boolean;
}
