// The descriptors of one process, looked at many at a time. The kernel's way to /proc/PID/fdinfo/N is several lookups each time; from an
// open directory it is one, and a table of the interpreter reads dozens with one call through the FFI. For a few descriptors neither
// opening the directories nor building the table would pay.

import { parseFdInfo, readFdInfo, type FdInfo } from "../proc/fdinfo.ts";
import { readFdStat, type FileStat } from "../proc/links.ts";
import { readProcLink } from "../proc/procfs.ts";
import { AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";
import { parseStatx, readLink, readShortText, readStat, STATX } from "../sys/files.ts";
import { ResidentProgram } from "./local.ts";
import { Program, type Pointer, type Ref } from "./program.ts";

export class FdDirectory implements Disposable {
  readonly #pid: number;
  #links: number | undefined;
  #infos: number | undefined;
  readonly #knownInfos = new Map<number, string>();
  readonly #knownStats = new Map<number, FileStat>();
  readonly #knownTargets = new Map<number, string>();

  constructor(pid: number) {
    this.#pid = pid;
  }

  /** Reads what will be asked of many descriptors. What cannot be read, or not at once, is left to be asked for. */
  prepare(fds: readonly number[], what: readonly ("infos" | "stats" | "targets")[]): void {
    if (fds.length < WORTH_IT) return;
    const keep = (known: Map<number, string>): Take => {
      return (fd, bytes) => known.set(fd, bytes.toString("utf8"));
    };
    if (what.includes("targets"))
      manyLinks().read(this.#openLinks(), fds, keep(this.#knownTargets));
    if (what.includes("stats"))
      manyStats().read(this.#openLinks(), fds, (fd, bytes) =>
        this.#knownStats.set(fd, parseStatx(viewOf(bytes))),
      );
    if (what.includes("infos")) manyInfos().read(this.#openInfos(), fds, keep(this.#knownInfos));
  }

  /**
   * Those of some descriptors of which fdinfo says something else than when they were prepared (or says it at length): what it says now
   * is what `info` gives from here on.
   */
  changedInfos(fds: readonly number[]): readonly number[] {
    if (fds.length < WORTH_IT) {
      this.#knownInfos.clear();
      return fds;
    }
    const same = new Set<number>();
    const again = new Map<number, string>();
    manyInfos().read(this.#openInfos(), fds, (fd, bytes) => {
      const text = bytes.toString("utf8");
      if (this.#knownInfos.get(fd) === text) same.add(fd);
      else again.set(fd, text);
    });
    return fds.filter((fd) => {
      if (same.has(fd)) return false;
      const text = again.get(fd);
      if (text === undefined) this.#knownInfos.delete(fd);
      else this.#knownInfos.set(fd, text);
      return true;
    });
  }

  /** As readFdInfo. Whatever goes wrong is told in its words. */
  info(fd: number): FdInfo {
    const text = this.#knownInfos.get(fd) ?? readShortText(`${fd}`, this.#openInfos());
    return typeof text === "string" ? parseFdInfo(text) : readFdInfo({ pid: this.#pid, fd });
  }

  /** As readFdStat. */
  stat(fd: number): FileStat {
    const stat = this.#knownStats.get(fd) ?? readStat(`${fd}`, this.#openLinks());
    return typeof stat === "number" ? readFdStat(this.#pid, fd) : stat;
  }

  /** What the link of a descriptor says. */
  target(fd: number): string {
    const target = this.#knownTargets.get(fd) ?? readLink(`${fd}`, this.#openLinks());
    return typeof target === "string" ? target : readProcLink(this.#pid, `fd/${fd}`);
  }

  /** Closes the directories; they are opened again when they are needed. */
  [Symbol.dispose](): void {
    for (const fd of [this.#links ?? -1, this.#infos ?? -1]) if (fd >= 0) trySyscall("close", fd);
    this.#links = undefined;
    this.#infos = undefined;
  }

  #openLinks(): number {
    this.#links ??= openDirectory(`/proc/${this.#pid}/fd`);
    return this.#links;
  }

  #openInfos(): number {
    this.#infos ??= openDirectory(`/proc/${this.#pid}/fdinfo`);
    return this.#infos;
  }
}

/** The descriptor, or an error number, with which every later call fails. */
function openDirectory(path: string): number {
  const bytes = Buffer.from(`${path}\0`);
  return trySyscall("openat", AT_FDCWD, bytes, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

/** Fewer are read one by one. */
const WORTH_IT = 32;
/** How many are read with one call. */
const SLOTS = 64;
/** Room for the name of a descriptor, a decimal number. */
const NAME_SIZE = 16;

/** Is given a window that is valid until it returns. */
type Take = (fd: number, bytes: Buffer) => void;

/** One of the files to be read: calls that start at a directory, and the one whose result is the number of bytes. */
interface Slot {
  readonly beginning: Ref;
  readonly result: Ref;
}

/** A table that reads as many files of an open directory as it has slots. */
class ManyFiles {
  readonly #program: ResidentProgram;
  readonly #slots: readonly Slot[];
  readonly #names: Pointer;
  readonly #output: Pointer;
  readonly #room: number;
  readonly #entries: number;
  readonly #isWhole: (result: number) => boolean;

  constructor(
    { room, isWhole }: { readonly room: number; readonly isWhole: (result: number) => boolean },
    look: (program: Program, name: Pointer, output: Pointer) => Slot,
  ) {
    const program = new Program();
    this.#room = room;
    this.#isWhole = isWhole;
    this.#names = program.data(Buffer.alloc(SLOTS * NAME_SIZE));
    this.#output = program.output(SLOTS * room);
    this.#slots = Array.from({ length: SLOTS }, (_, index) =>
      look(program, this.#name(index), this.#place(index)),
    );
    this.#entries = program.length / SLOTS;
    this.#program = new ResidentProgram(program);
  }

  read(directory: number, fds: readonly number[], take: Take): void {
    const resident = this.#program;
    const beginnings = this.#slots.map(({ beginning }) => beginning);
    resident.setArgument(beginnings, 0, directory);
    const names = resident.bytes(this.#names, SLOTS * NAME_SIZE);
    for (let first = 0; first < fds.length; first += SLOTS) {
      const count = Math.min(SLOTS, fds.length - first);
      for (let slot = 0; slot < count; slot += 1)
        names.write(`${fds[first + slot]}\0`, slot * NAME_SIZE, "latin1");
      resident.runAgain(count * this.#entries);
      for (let slot = 0; slot < count; slot += 1) {
        const result = resident.value((this.#slots[slot] as Slot).result);
        if (!this.#isWhole(result)) continue;
        const size = result === 0 ? this.#room : result;
        take(fds[first + slot] as number, resident.bytes(this.#place(slot), size));
      }
    }
  }

  #name(index: number): Pointer {
    return { ...this.#names, offset: this.#names.offset + index * NAME_SIZE };
  }

  #place(index: number): Pointer {
    return { ...this.#output, offset: this.#output.offset + index * this.#room };
  }
}

const MAY_FAIL = { mayFail: true };
let infos: ManyFiles | undefined;
let links: ManyFiles | undefined;
let stats: ManyFiles | undefined;

/** Longer ones are read alone. A read that brings less than half a page has brought all (see readShortText). */
const INFO_ROOM = 512;
const LINK_ROOM = 256;

function manyInfos(): ManyFiles {
  const isWhole = (result: number): boolean => result > 0 && result < INFO_ROOM;
  infos ??= new ManyFiles({ room: INFO_ROOM, isWhole }, (program, name, output) => {
    const beginning = program.call("openat", [0, name, O_RDONLY | O_CLOEXEC, 0], MAY_FAIL);
    const result = program.call("read", [beginning, output, INFO_ROOM], MAY_FAIL);
    program.call("close", [beginning], MAY_FAIL);
    return { beginning, result };
  });
  return infos;
}

function manyLinks(): ManyFiles {
  const isWhole = (result: number): boolean => result > 0 && result < LINK_ROOM;
  links ??= new ManyFiles({ room: LINK_ROOM, isWhole }, (program, name, output) => {
    const call = program.call("readlinkat", [0, name, output, LINK_ROOM], MAY_FAIL);
    return { beginning: call, result: call };
  });
  return links;
}

function manyStats(): ManyFiles {
  const isWhole = (result: number): boolean => result === 0;
  stats ??= new ManyFiles({ room: STATX.size, isWhole }, (program, name, output) => {
    const call = program.call("statx", [0, name, 0, STATX.basic, output], MAY_FAIL);
    return { beginning: call, result: call };
  });
  return stats;
}

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
