// For tests of this folder: an open file of a real process as a room sees it at dump, and a room's restore carried out in
// the test's own process.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ImageSetWriter } from "../../images/image-set-writer.ts";
import type {
  FileEntry,
  TtyDataEntry,
  TtyInfoEntry,
} from "../../images/schema/messages.generated.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { fdPath, readFdStat } from "../../proc/links.ts";
import { readProcLink } from "../../proc/procfs.ts";
import { readStat } from "../../proc/stat.ts";
import { F_DUPFD } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import type { FrozenTask } from "../task/task.ts";
import type { FileKind, FilesDump, FilesDumpOptions, FilesRestore, OpenFile } from "./file-kind.ts";

/** Descriptor `fd` of process `pid`, looked at now. */
export function openFileOf(pid: number, fd: number): OpenFile {
  const task = {
    pid,
    innerPid: pid,
    stat: readStat(pid),
    parent: undefined,
  } as unknown as FrozenTask;
  return {
    task,
    fd,
    procPath: fdPath(pid, fd),
    target: readProcLink(pid, `fd/${fd}`),
    stat: readFdStat(pid, fd),
    info: readFdInfo({ pid, fd }),
  };
}

/** A dump of single files, in a directory that goes away with it. */
export class DumpFixture implements FilesDump, Disposable {
  readonly images = new ImageSetWriter(mkdtempSync(join(tmpdir(), "reprise-files-")), {
    sync: "none",
  });
  readonly options: FilesDumpOptions;
  /** What `addEntry` made. */
  readonly entries: FileEntry[] = [];
  readonly #later: (() => void)[] = [];
  readonly #borrowed: number[] = [];
  readonly #pids: ReadonlyMap<number, number>;

  /** `pids`: the tree's pids, from the engine's to inner ones. */
  constructor(
    options: Partial<FilesDumpOptions> = {},
    pids: ReadonlyMap<number, number> = new Map(),
  ) {
    this.options = { linkRemap: false, ghostLimit: 0, shellJob: false, ...options };
    this.#pids = pids;
  }

  addEntry(make: (id: number) => FileEntry): number {
    const entry = make(1000 + this.entries.length);
    this.entries.push(entry);
    return entry.id;
  }

  /** There are no others. */
  findDescription(): undefined {
    return undefined;
  }

  borrow({ task, fd }: OpenFile): number {
    const pidfd = syscall("pidfd_open", task.pid, 0);
    const copy = syscall("pidfd_getfd", pidfd, fd, 0);
    trySyscall("close", pidfd);
    this.#borrowed.push(copy);
    return copy;
  }

  describeInFlight(): number {
    throw new Error("no file is in flight here");
  }

  afterTasks(step: () => void): void {
    this.#later.push(step);
  }

  later(step: () => void): void {
    this.#later.push(step);
  }

  beforeCommit(): void {
    // Nothing is committed here.
  }

  onAbort(): void {
    // Nothing outside of the images is touched here.
  }

  atEnd(): void {
    // No room of this fixture keeps anything to the end.
  }

  lockConnections(): void {
    // No connection is saved here.
  }

  note(): void {
    // There is no inventory.
  }

  innerPid(pid: number): number | undefined {
    return this.#pids.get(pid);
  }

  finish(): void {
    for (let step = this.#later.shift(); step !== undefined; step = this.#later.shift()) step();
  }

  [Symbol.dispose](): void {
    for (const fd of this.#borrowed) trySyscall("close", fd);
    rmSync(this.images.dir, { recursive: true, force: true });
  }
}

export interface RestoreFixture {
  readonly entries?: readonly FileEntry[];
  readonly ttyInfos?: readonly TtyInfoEntry[];
  readonly ttyData?: readonly TtyDataEntry[];
  readonly shellJob?: boolean;
  /** Where the file comes to lie; by default, where it was made. */
  readonly at?: number;
}

/** Where the engine keeps what is open; far above the descriptors of the test. */
const POOL = 400;
/** Where the numbers begin that rooms reserve. */
const RESERVED = 900;

/** Makes the files of entries in this process: open, the deferred steps, settle. Gives the descriptors. */
export function restoreHere(
  kind: FileKind,
  entries: readonly FileEntry[],
  more: RestoreFixture = {},
): number[] {
  const later: ((program: Program) => void)[] = [];
  const restore = {
    set: {
      rootPid: process.pid,
      tasks: new Map(),
      files: new Map([...entries, ...(more.entries ?? [])].map((entry) => [entry.id, entry])),
      regularFiles: new Map(
        (more.entries ?? []).flatMap(({ id, reg }) => (reg === undefined ? [] : [[id, reg]])),
      ),
      ttyInfos: new Map((more.ttyInfos ?? []).map((info) => [info.id, info])),
      ttyData: more.ttyData ?? [],
      remaps: [],
      skQueues: [],
    },
    options: { shellJob: more.shellJob ?? false, skipRwxCheck: false, fileValidation: "filesize" },
    rootPid: process.pid,
    open: (id: number) => placed(id),
    later: (step: (program: Program) => void) => later.push(step),
    inMountsOf: () => "",
    reserve: () => reserved++,
  } as unknown as FilesRestore;
  let reserved = RESERVED;
  const program = new Program();
  const made = new Map<number, ReturnType<FileKind["open"]>>();
  const placed = (id: number): ReturnType<FileKind["open"]> => {
    let fd = made.get(id);
    if (fd === undefined) {
      const entry = restore.set.files.get(id);
      if (entry === undefined) throw new Error(`no file ${id}`);
      // As the engine does it: what a room has opened lies elsewhere afterwards.
      const opened = kind.open(program, entry, restore);
      fd = program.call("fcntl", [opened, F_DUPFD, POOL]);
      if (typeof opened !== "number" || opened < RESERVED) program.call("close", [opened]);
      made.set(id, fd);
    }
    return fd;
  };
  for (const { id } of entries) placed(id);
  for (let step = later.shift(); step !== undefined; step = later.shift()) step(program);
  const result = runHere(program);
  const numbers = entries.map(({ id }) => number(result, made.get(id) ?? -1, more.at));
  const last = new Program();
  entries.forEach((entry, index) => kind.settle?.(last, entry, numbers[index] ?? -1, restore));
  if (last.length > 0) runHere(last);
  for (let fd = RESERVED; fd < reserved; fd++) trySyscall("close", fd);
  return numbers;
}

function number(
  result: ProgramResult,
  made: ReturnType<FileKind["open"]>,
  at: number | undefined,
): number {
  const fd = typeof made === "object" && made.kind === "ref" ? result.value(made) : Number(made);
  if (at === undefined) return fd;
  syscall("dup3", fd, at, 0);
  trySyscall("close", fd);
  return at;
}
