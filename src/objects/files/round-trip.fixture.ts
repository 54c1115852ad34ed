// For tests of this folder: descriptors of the test's own process through a whole image set and back: the table of open
// files, the images on disk, the opening program.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { indexFiles } from "../../images/check-files.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { ImageSetReader } from "../../images/image-set-reader.ts";
import { ImageSetWriter } from "../../images/image-set-writer.ts";
import { AT_FDCWD, F_DUPFD, O_DIRECTORY, O_RDONLY } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Argument } from "../../tracee/program.ts";
import type { EngineCopies, FilesDumpOptions, FilesRestore } from "./file-kind.ts";
import { openFileOf } from "./live-file.fixture.ts";
import { checkFiles, kindOfType } from "./registry.ts";
import { NetworkLock } from "../network/lock.ts";
import { FileTable } from "./table.ts";

/** Open files of an image set, to be made in this process. */
export class FilesOfSet implements Disposable {
  readonly dir: string;
  readonly ids: readonly number[];
  readonly set: LoadedSet;
  readonly #opened: number[] = [];

  /** `tasks`: those of the tree besides this process, by pid. */
  constructor(dir: string, ids: readonly number[], tasks: readonly number[] = []) {
    this.dir = dir;
    this.ids = ids;
    this.set = loadFiles(new ImageSetReader(dir), tasks);
  }

  /** Makes the files again in this process; descriptors in the order of the ids. */
  restore(): number[] {
    const wanted = this.ids.flatMap((id) => this.set.files.get(id) ?? []);
    checkFiles(wanted, this.set, CHECKS);
    const imagesFd = syscall("openat", -100, Buffer.from(`${this.dir}\0`), O_DIRECTORY, 0);
    const first: (() => void)[] = [];
    const later: ((program: Program) => void)[] = [];
    const inEngine: ((copies: EngineCopies) => void)[] = [];
    const releases: (() => void)[] = [];
    let reserved = FIRST_RESERVED;
    const program = new Program();
    const made = new Map<number, Argument>();
    const restore: FilesRestore = {
      set: this.set,
      options: { shellJob: false, ...CHECKS },
      openImage: (into, name) => into.call("openat", [imagesFd, into.string(name), O_RDONLY, 0]),
      inMountsOf: () => "",
      temporaryPlace: (_, path) => ({ directory: AT_FDCWD, path, prefix: "" }),
      open: (id) => {
        const entry = this.set.files.get(id);
        if (entry === undefined) throw new Error(`no file ${id}`);
        const fd = made.get(id) ?? kindOfType(entry.type).open(program, entry, restore);
        made.set(id, fd);
        return fd;
      },
      first: (step) => void first.push(step),
      later: (step) => void later.push(step),
      // One process has nothing to wait for.
      lastly: (step) => void later.push(step),
      reserve: () => reserved++,
      inEngine: (step) => void inEngine.push(step),
      whenThere: () => {
        throw new Error("there is no tree");
      },
      atEnd: ({ release }) => void releases.push(release),
    };
    for (const id of this.ids) restore.open(id);
    for (let step = later.shift(); step !== undefined; step = later.shift()) step(program);
    try {
      for (const step of first) step();
      const result = runHere(program);
      const numbers = this.ids.map((id) => {
        const fd = made.get(id);
        const number = typeof fd === "object" && fd.kind === "ref" ? result.value(fd) : Number(fd);
        // The next restore in this process has the same reserved numbers.
        return number < FIRST_RESERVED ? number : syscall("fcntl", number, F_DUPFD, 0);
      });
      this.#opened.push(...numbers);
      const file = (id: number): number => numbers[this.ids.indexOf(id)] ?? -1;
      for (const step of inEngine) step({ file, reserved: (fd) => fd });
      for (const step of releases) step();
      this.#settle(numbers, restore);
      return numbers;
    } finally {
      for (let fd = FIRST_RESERVED; fd < reserved; fd++) trySyscall("close", fd);
      trySyscall("close", imagesFd);
    }
  }

  [Symbol.dispose](): void {
    for (const fd of new Set(this.#opened)) trySyscall("close", fd);
  }

  #settle(numbers: readonly number[], restore: FilesRestore): void {
    const program = new Program();
    this.ids.forEach((id, index) => {
      const entry = this.set.files.get(id);
      if (entry === undefined) return;
      kindOfType(entry.type).settle?.(program, entry, numbers[index] ?? -1, restore);
    });
    if (program.length > 0) runHere(program);
  }
}

interface SaveOptions extends Partial<FilesDumpOptions> {
  /** Tasks of the tree besides this process, by pid. */
  readonly tasks?: readonly number[];
}

/** Descriptors of this process in an image set, whose directory goes away with this object. */
export class SavedFiles extends FilesOfSet {
  /** Saves the descriptors; `ids` are in their order. A dump that fails is taken back. */
  constructor(fds: readonly number[], { tasks = [], ...options }: SaveOptions = {}) {
    const dir = mkdtempSync(join(tmpdir(), "reprise-set-"));
    super(dir, save(dir, fds, options), tasks);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

function save(dir: string, fds: readonly number[], options: Partial<FilesDumpOptions>): number[] {
  const images = new ImageSetWriter(dir, { sync: "none" });
  const table = new FileTable(images, {
    linkRemap: false,
    ghostLimit: 1024 * 1024,
    shellJob: false,
    ...options,
    lock: NetworkLock.forDump({ method: "skip", namespaces: [] }),
    innerPid: (pid) => (pid === process.pid ? pid : undefined),
  });
  try {
    const ids = fds.map((fd) => table.describe(openFileOf(process.pid, fd)).id);
    table.finish();
    table.prepareCommit();
    images.commit({ img_version: 2, fdinfo_per_id: true });
    return ids;
  } catch (error) {
    table.abort();
    images.abort();
    rmSync(dir, { recursive: true });
    throw error;
  } finally {
    table.close();
  }
}

const FIRST_RESERVED = 900;
const CHECKS = { skipRwxCheck: false, fileValidation: "buildid" } as const;

/** What the opening of files needs of a set; the rest is not there. */
function loadFiles(reader: ImageSetReader, tasks: readonly number[]): LoadedSet {
  const files = {
    ...indexFiles(reader),
    reader,
    rootPid: process.pid,
    tasks: new Map(tasks.map((pid) => [pid, { pid, live: undefined }])),
    remaps: reader.read("remap-fpath"),
    pipesData: reader.readWithPayload("pipes-data"),
    fifoData: reader.readWithPayload("fifo-data"),
    skQueues: reader.readWithPayload("sk-queues"),
  };
  return files as unknown as LoadedSet;
}
