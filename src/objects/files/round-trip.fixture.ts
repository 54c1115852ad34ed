// For tests of this folder: descriptors of the test's own process through a whole image set and back: the table of open
// files, the images on disk, the opening program.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { indexFiles } from "../../images/check-files.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { ImageSetReader } from "../../images/image-set-reader.ts";
import { ImageSetWriter } from "../../images/image-set-writer.ts";
import { O_DIRECTORY } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Argument } from "../../tracee/program.ts";
import type { FilesDumpOptions, FilesRestore } from "./file-kind.ts";
import { openFileOf } from "./live-file.fixture.ts";
import { checkFiles, kindOfType } from "./registry.ts";
import { FileTable } from "./table.ts";

interface SaveOptions extends Partial<FilesDumpOptions> {
  /** Tasks of the tree besides this process, by pid. */
  readonly tasks?: readonly number[];
}

/** An image set of open files in a directory that goes away with it. */
export class SavedFiles implements Disposable {
  readonly dir = mkdtempSync(join(tmpdir(), "reprise-set-"));
  /** Ids in the order of the descriptors that were given. */
  readonly ids: readonly number[];
  readonly set: LoadedSet;
  readonly #opened: number[] = [];

  /** Saves descriptors of this process. A dump that fails is taken back. */
  constructor(fds: readonly number[], { tasks = [], ...options }: SaveOptions = {}) {
    const images = new ImageSetWriter(this.dir, { sync: "none" });
    const table = new FileTable(images, {
      linkRemap: false,
      ghostLimit: 1024 * 1024,
      shellJob: false,
      ...options,
      innerPid: (pid) => (pid === process.pid ? pid : undefined),
    });
    try {
      this.ids = fds.map((fd) => table.describe(openFileOf(process.pid, fd)).id);
      table.finish();
    } catch (error) {
      table.abort();
      images.abort();
      rmSync(this.dir, { recursive: true });
      throw error;
    } finally {
      table.close();
    }
    images.commit({ img_version: 2, fdinfo_per_id: true });
    this.set = loadFiles(new ImageSetReader(this.dir), tasks);
  }

  /** Makes the files again in this process; descriptors in the order of the ids. */
  restore(): number[] {
    checkFiles([...this.set.files.values()], this.set, CHECKS);
    const imagesFd = syscall("openat", -100, Buffer.from(`${this.dir}\0`), O_DIRECTORY, 0);
    const later: ((program: Program) => void)[] = [];
    let reserved = FIRST_RESERVED;
    const program = new Program();
    const made = new Map<number, Argument>();
    const restore: FilesRestore = {
      set: this.set,
      options: { shellJob: false, ...CHECKS },
      imagesFd,
      open: (id) => {
        const entry = this.set.files.get(id);
        if (entry === undefined) throw new Error(`no file ${id}`);
        const fd = made.get(id) ?? kindOfType(entry.type).open(program, entry, restore);
        made.set(id, fd);
        return fd;
      },
      later: (step) => void later.push(step),
      reserve: () => reserved++,
    };
    for (const id of this.ids) restore.open(id);
    for (let step = later.shift(); step !== undefined; step = later.shift()) step(program);
    try {
      const result = runHere(program);
      const numbers = this.ids.map((id) => {
        const fd = made.get(id);
        return typeof fd === "object" && fd.kind === "ref" ? result.value(fd) : Number(fd);
      });
      this.#opened.push(...numbers);
      this.#settle(numbers, restore);
      return numbers;
    } finally {
      for (let fd = FIRST_RESERVED; fd < reserved; fd++) trySyscall("close", fd);
      trySyscall("close", imagesFd);
    }
  }

  [Symbol.dispose](): void {
    for (const fd of new Set(this.#opened)) trySyscall("close", fd);
    rmSync(this.dir, { recursive: true, force: true });
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
  };
  return files as unknown as LoadedSet;
}
