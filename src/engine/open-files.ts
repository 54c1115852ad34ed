// Opening the files of the whole tree: one program in the root task makes every open file description once. All descriptors
// lie above those of the tasks; the other tasks inherit them when they are forked, and take what is theirs by dup3.

import { closeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { FileEntry, VmaEntry } from "../images/schema/messages.generated.ts";
import type { EngineCopies, FilesRestore, StandingTree } from "../objects/files/file-kind.ts";
import { ownNames, removeTemporaryNames } from "../objects/files/temporary-names.ts";
import { inNamespace } from "../objects/namespaces/enter.ts";
import type { NamespaceKind } from "../objects/namespaces/kinds.ts";
import { pipeWriter } from "../objects/files/pipe.ts";
import { kindOfType } from "../objects/files/registry.ts";
import { readFdNumbers } from "../proc/fd.ts";
import type { MountPlaces, Place } from "../objects/mounts/places.ts";
import { VMA_FILE_SHARED } from "../objects/memory/vma.ts";
import { collectLimits } from "../objects/task/limits.ts";
import { AT_FDCWD, F_DUPFD, O_ACCMODE, O_RDONLY, O_RDWR } from "../sys/abi/fcntl.ts";
import { PROT_WRITE } from "../sys/abi/mman.ts";
import { CLONE_NEWNS, RLIMIT_NOFILE } from "../sys/abi/sched.ts";
import { makeRoomForDescriptors } from "../sys/descriptors.ts";
import { syscall } from "../sys/ffi.ts";
import { Program, type Argument, type ProgramResult, type Ref } from "../tracee/program.ts";
import { entriesRun, runPrograms } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { firstPoolFd, type Growth } from "./growth.ts";
import { roomyJob } from "./helpers.ts";
import { guardNames } from "./guard.ts";
import { openImage, type ImageFiles } from "./image-files.ts";
import { namespaceFd } from "./namespaces.ts";
import { inheritedKey } from "./inherited.ts";
import { mapsFile, type RestorePlan } from "./plan.ts";

/** Open files of a tree, by their ids. */
export interface OpenedFiles {
  /** Descriptor of a file in every task of the tree. */
  fd(id: number): number;
  /** Descriptor of the file that an area is made from, opened for what the area needs. */
  mappedFd(vma: VmaEntry): number;
  /** Descriptor in all tasks of the writing end of a pipe of the tree. */
  pipeWriter(pipeId: number): number | undefined;
  /** Adds the calls that need a task's descriptors in their final places. */
  settle(program: Program, entry: FileEntry, fd: number): void;
  /** Runs what rooms do when all tasks are there, or their threads. */
  standing(what: "tasks" | "threads"): void;
  /** Adds what rooms do in the root task when all tasks are filled. */
  addLast(program: Program): void;
  /** Runs what rooms do just before the tasks are let go. */
  release(): void;
  /** Takes back what rooms did outside of the tasks; does nothing after `close`. */
  giveUp(): void;
  /** Closes the engine's copies of the tasks' files. */
  close(): void;
}

/** Opens everything in the root task. */
export function openFiles(plan: RestorePlan, growth: Growth): OpenedFiles {
  const opener = new Opener(plan, growth);
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  return opener.run(root);
}

/** Descriptors for which nobody has to look at the limit. */
const ALWAYS_ALLOWED = 256;

/** Numbers below ours for those that a step takes for a moment (F_DUPFD). */
const ROOM_FOR_IMAGES = 64;

class Opener implements FilesRestore {
  readonly set: RestorePlan["set"];
  readonly isForeigner: boolean;
  readonly options: RestorePlan["options"];
  readonly #images: ImageFiles;
  readonly #growth: Growth;
  readonly #plan: RestorePlan;
  readonly #program = new Program();
  readonly #opened = new Map<number, Argument>();
  readonly #mapped = new Map<string, Argument>();
  readonly #first: (() => void)[] = [];
  readonly #later: ((program: Program) => void)[] = [];
  readonly #last: ((program: Program) => void)[] = [];
  readonly #inEngine: ((copies: EngineCopies) => void)[] = [];
  readonly #standing = {
    tasks: [] as ((standing: StandingTree) => void)[],
    threads: [] as ((standing: StandingTree) => void)[],
  };
  readonly #ends: { readonly release: () => void; readonly failed?: () => void }[] = [];
  readonly #places: MountPlaces | undefined;
  /** The mount namespace that the program is in at its end; undefined: the root task's. */
  #namespace: number | undefined;
  /** Descriptors that the root task may have. */
  #limit: number | undefined;
  /** Numbers from here on are ours to give. */
  readonly #firstReserved: number;
  #nextReserved: number;

  constructor(plan: RestorePlan, growth: Growth) {
    const { images } = growth;
    this.#growth = growth;
    this.#places = growth.mountPlaces;
    this.#plan = plan;
    this.set = plan.set;
    this.isForeigner = plan.namespaces.ofRoot("user") !== undefined;
    this.options = plan.options;
    this.#images = images;
    // Every number from there on is given by us, without a gap: the limit on open files counts the highest.
    const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
    const highest = readFdNumbers(root.tid).at(-1) ?? 0;
    this.#firstReserved = Math.max(firstPoolFd(plan), highest + 1) + ROOM_FOR_IMAGES;
    this.#nextReserved = this.#firstReserved;
  }

  run(root: Tracee): OpenedFiles {
    for (const entry of this.#plan.files) this.open(entry.id);
    for (const { mm } of this.#plan.tasks.values()) {
      for (const vma of mm.vmas) if (mapsFile(vma)) this.#openMapped(vma);
    }
    for (const step of this.#later) step(this.#program);
    this.#places?.finish(this.#program, (mntId) => void this.inMountsOf(this.#program, mntId));
    this.inMountsOf(this.#program, undefined);
    const result = this.#runIn(root);
    const number = (argument: Argument | undefined, id: number): number => {
      if (argument === undefined)
        throw new RepriseError("INTERNAL", `internal error: file ${id} was not opened`);
      return typeof argument === "number" ? argument : (result?.value(argument as Ref) ?? -1);
    };
    const fds = new Map([...this.#opened].map(([id, argument]) => [id, number(argument, id)]));
    const mapped = new Map([...this.#mapped].map(([key, argument]) => [key, number(argument, -1)]));
    const copies = new Copies(root.tid, (id) => fds.get(id) ?? number(undefined, id));
    const giveUp = (): void => this.#ends.splice(0).forEach(({ failed }) => failed?.());
    try {
      // Sockets are finished in the engine.
      if (this.#inEngine.length > 0) makeRoomForDescriptors(fds.size);
      for (const step of this.#inEngine) step(copies);
    } catch (error) {
      giveUp();
      copies.close();
      throw error;
    }
    return {
      standing: (what) => {
        const outerTid = (tid: number): number | undefined => this.#growth.tracees.get(tid)?.tid;
        for (const step of this.#standing[what]) step({ copies, outerTid });
      },
      addLast: (program) => this.#last.forEach((step) => step(program)),
      release: () => this.#ends.forEach((end) => end.release()),
      giveUp,
      close: () => {
        this.#ends.length = 0;
        copies.close();
      },
      fd: (id) => fds.get(id) ?? number(undefined, id),
      pipeWriter: (pipeId) => pipeWriter(this, pipeId),
      mappedFd: (vma) => mapped.get(mappingKey(vma)) ?? number(undefined, vma.shmid),
      settle: (program, entry, fd) => kindOfType(entry.type).settle?.(program, entry, fd, this),
    };
  }

  #runIn(root: Tracee): ProgramResult | undefined {
    const { job: opening, done } = roomyJob(this.#plan, root, this.#program);
    const unguard = guardNames(this.#plan, this.#growth, ownNames(this));
    let isBegun = false;
    try {
      for (const step of this.#first) step();
      isBegun = true;
      const [result] = runPrograms([opening]);
      done();
      return result;
    } catch (error) {
      removeTemporaryNames(this, isBegun ? entriesRun(opening) : 0);
      throw error;
    } finally {
      unguard();
    }
  }

  open(id: number): Argument {
    const known = this.#opened.get(id);
    if (known !== undefined) return known;
    const entry = this.set.files.get(id);
    if (entry === undefined)
      throw new RepriseError("BAD_IMAGE", `cannot restore: files.img has no file ${id}`);
    const moved = this.#make(entry);
    this.#opened.set(id, moved);
    return moved;
  }

  /** CRIU gives one entry to a descriptor and a mapping of a file; what the mapping needs stands with the area. */
  #openMapped(vma: VmaEntry): void {
    const key = mappingKey(vma);
    if (this.#mapped.has(key)) return;
    const entry = this.set.files.get(vma.shmid);
    const elsewhere = entry && kindOfType(entry.type).mapped?.(this.#program, entry, this);
    if (elsewhere !== undefined) {
      this.#mapped.set(key, elsewhere);
      return;
    }
    const own = entry?.reg ?? entry?.memfd;
    const access = accessOf(vma);
    const same = own === undefined || (own.flags & O_ACCMODE) === access;
    const fd =
      entry === undefined || same
        ? this.open(vma.shmid)
        : this.#make({
            ...entry,
            ...(entry.reg === undefined ? {} : { reg: { ...entry.reg, flags: access } }),
            ...(entry.memfd === undefined ? {} : { memfd: { ...entry.memfd, flags: access } }),
          });
    this.#mapped.set(key, fd);
  }

  /** Opens a file of an entry, above the descriptors of the tasks. */
  #make(entry: FileEntry): Argument {
    this.inMountsOf(this.#program, entry.reg?.mnt_id ?? entry.usk?.mnt_id);
    const fd = this.#inherit(entry) ?? kindOfType(entry.type).open(this.#program, entry, this);
    if (this.#isReserved(fd)) return fd;
    const number = this.reserve();
    this.#program.call("dup3", [fd, number, 0], {
      label: () => `keep file ${entry.id} open`,
    });
    this.#program.call("close", [fd]);
    return number;
  }

  #isReserved(fd: Argument): boolean {
    return typeof fd === "number" && fd >= this.#firstReserved && fd < this.#nextReserved;
  }

  namespaceFd(kind: NamespaceKind, id: number): number | undefined {
    return namespaceFd(this.#plan, this.#growth, { kind, id });
  }

  inRootMounts<T>(action: () => T): T {
    if (this.#plan.namespaces.ofRoot("mnt") === undefined) return action();
    return inNamespace("mnt", { pid: this.#growth.outerPid(this.#plan.tree.root.pid) }, action);
  }

  openImage(program: Program, name: string): Argument {
    return openImage(program, this.#images, name);
  }

  /** From a descriptor that the caller brought for this file. */
  #inherit(entry: FileEntry): Argument | undefined {
    const { inheritedFds } = this.#growth;
    const key = inheritedKey(entry, this.set, inheritedFds);
    if (key === undefined) return undefined;
    const kind = kindOfType(entry.type);
    const fd = inheritedFds.get(key) ?? -1;
    log.debug(`file ${entry.id} (${kind.name}) is the inherited ${key}`);
    return (
      kind.openInherited?.(this.#program, entry, fd, this) ??
      this.#program.call("fcntl", [fd, F_DUPFD, 0], { label: `take over ${key}` })
    );
  }

  inMountsOf(program: Program, mntId: number | undefined): string {
    if (this.#places === undefined) return "";
    const wanted = this.#places.namespaceOf(mntId);
    if (wanted !== this.#namespace) {
      const fd = this.#places.namespaceFd(wanted);
      program.call("setns", [fd, CLONE_NEWNS], { label: "go to another mount namespace" });
      this.#namespace = wanted;
    }
    return this.#places.prefixOf(mntId);
  }

  temporaryPlace(mntId: number | undefined, path: string): Place {
    return this.#places?.onSource(mntId, path) ?? { directory: AT_FDCWD, path, prefix: "" };
  }

  first(step: () => void): void {
    this.#first.push(step);
  }

  later(step: (program: Program) => void): void {
    this.#later.push(step);
  }

  lastly(step: (program: Program) => void): void {
    this.#last.push(step);
  }

  reserve(): number {
    const number = this.#nextReserved++;
    if (number < ALWAYS_ALLOWED) return number;
    const root = this.#growth.outerPid(this.#plan.tree.root.pid);
    this.#limit ??= Number(collectLimits(root)[RLIMIT_NOFILE]?.cur);
    if (number >= this.#limit) {
      throw new RepriseError("SYSCALL", `cannot open the files of the tree: dup3: EBADF`, {
        hint: `The limit on open files is too low: it takes about twice as many as a task has (ulimit -Hn; it is ${this.#limit}).`,
      });
    }
    return number;
  }

  inEngine(step: (copies: EngineCopies) => void): void {
    this.#inEngine.push(step);
  }

  whenThere(what: "tasks" | "threads", step: (standing: StandingTree) => void): void {
    this.#standing[what].push(step);
  }

  atEnd(steps: { readonly release: () => void; readonly failed?: () => void }): void {
    this.#ends.push(steps);
  }
}

/** Copies of the root task's descriptors (pidfd_getfd), each made once. */
class Copies implements EngineCopies {
  readonly #pid: number;
  readonly #numberOf: (id: number) => number;
  readonly #made = new Map<number, number>();
  #pidfd: number | undefined;

  constructor(pid: number, numberOf: (id: number) => number) {
    this.#pid = pid;
    this.#numberOf = numberOf;
  }

  file(id: number): number {
    return this.reserved(this.#numberOf(id));
  }

  reserved(fd: number): number {
    const known = this.#made.get(fd);
    if (known !== undefined) return known;
    this.#pidfd ??= syscall("pidfd_open", this.#pid, 0);
    const copy = syscall("pidfd_getfd", this.#pidfd, fd, 0);
    this.#made.set(fd, copy);
    return copy;
  }

  close(): void {
    for (const fd of this.#made.values()) closeSync(fd);
    this.#made.clear();
    if (this.#pidfd !== undefined) closeSync(this.#pidfd);
    this.#pidfd = undefined;
  }
}

function mappingKey(vma: VmaEntry): string {
  return `${vma.shmid}:${accessOf(vma)}`;
}

/** Access mode that an area's file needs; old images leave it to be guessed. */
function accessOf(vma: VmaEntry): number {
  if (vma.fdflags !== undefined && (vma.status & VMA_FILE_SHARED) !== 0)
    return vma.fdflags & O_ACCMODE;
  const writes = (vma.status & VMA_FILE_SHARED) !== 0 && (vma.prot & PROT_WRITE) !== 0;
  return writes ? O_RDWR : O_RDONLY;
}
