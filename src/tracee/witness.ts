// A look at files that can be taken again: one program that reads them all, run once while nobody waits, and once more, in a
// fraction of a millisecond, when somebody does. What it brings then is what it brought before, or something has changed since. What
// is saved of such files must come from the first look itself (`text`, `names`): a value may change, and change back between.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_SYMLINK_NOFOLLOW,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NOATIME,
  O_NOFOLLOW,
  O_PATH,
  O_RDONLY,
} from "../sys/abi/fcntl.ts";
import { errnoName } from "../sys/errno.ts";
import { ResidentProgram } from "./local.ts";
import { Program, type Pointer, type Ref } from "./program.ts";

/** Something that is looked at. */
export interface Sight {
  /** Of the call; its result is a number of bytes, or a negative error number. */
  readonly ref: Ref;
  readonly output: Pointer;
  readonly size: number;
}

/** Most files of /proc, /sys and cgroups are shorter. */
const FILE_SIZE = 512;
const LIST_SIZE = 8 * 1024;
/** struct statx, what is asked for, and what of it may change: when the file was read; where the owner alone counts, all but that. */
const STATX_SIZE = 256;
const STATX_BASIC_STATS = 0x7ff;
const ATIME = [[64, 80]] as const;
const ALL_BUT_OWNER = [
  [0, 20],
  [30, STATX_SIZE],
] as const;
const UID = 20;
const GID = 24;
const MODE = 28;
const CTIME = 96;
/** struct linux_dirent64: the length of a record, the type and the name in it. */
const DIRENT_LENGTH = 16;
const DIRENT_TYPE = 18;
const DIRENT_NAME = 19;
const DT_DIR = 4;

const NSEC_PER_SEC = 1_000_000_000n;
const MAY_FAIL = { mayFail: true };

export class Witness implements Disposable {
  readonly #program = new Program();
  readonly #fds: number[] = [];
  readonly #files: Sight[] = [];
  /** Calls that find nothing more in a directory. */
  readonly #ends: Ref[] = [];
  /** What does not count of a struct statx. */
  readonly #moving: {
    readonly sight: Sight;
    readonly parts: typeof ATIME | typeof ALL_BUT_OWNER;
  }[] = [];
  readonly #steps: { readonly ref: Ref; readonly what: string }[] = [];
  #resident: ResidentProgram | undefined;
  #first: Buffer | undefined;

  /** The content of a file, which is opened now; undefined when there is none. Throws the system's errors. */
  file(path: string, size = FILE_SIZE): Sight | undefined {
    const fd = openIfThere(path);
    return fd === undefined ? undefined : this.opened(this.keep(fd), size);
  }

  /** The content of an open file. */
  opened(fd: number, size = FILE_SIZE): Sight {
    const output = this.#program.output(size);
    const ref = this.#program.call("pread64", [fd, output, size, 0], MAY_FAIL);
    const sight = { ref, output, size };
    this.#files.push(sight);
    return sight;
  }

  /**
   * Who owns a file, and its mode. It may be missing. One that is there is looked at by a descriptor, which takes no walk along its path:
   * that it goes, or another one comes, is seen by `list`.
   */
  owner(path: string): Sight {
    const fd = openIfThere(path, O_PATH | O_NOFOLLOW);
    return fd === undefined
      ? this.#statx({ directory: AT_FDCWD, path: this.#program.string(path) }, ALL_BUT_OWNER)
      : this.#statx({ directory: this.keep(fd), path: this.#program.string("") }, ALL_BUT_OWNER);
  }

  /** All that stat tells of a file in an open directory, but for when it was read. */
  entry(directory: number, name: Buffer): Sight {
    const path = this.#program.data(Buffer.concat([name, Buffer.of(0)]), 1);
    return this.#statx({ directory, path }, ATIME);
  }

  /** The content of a file in an open directory, which is opened now and has `size` bytes. Throws the system's errors. */
  content(directory: number, name: Buffer, size: number): Sight {
    const path = Buffer.concat([Buffer.from(`/proc/self/fd/${directory}/`), name]);
    const fd = openSync(path, O_RDONLY | O_CLOEXEC | O_NOATIME);
    this.#fds.push(fd);
    const output = this.#program.output(size);
    return { ref: this.#program.call("pread64", [fd, output, size, 0], MAY_FAIL), output, size };
  }

  /** The names in a directory, which is opened now. Throws the system's errors. */
  list(path: string | Buffer, size = LIST_SIZE): Sight {
    const fd = openSync(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    this.#fds.push(fd);
    this.#program.call("lseek", [fd, 0, 0], MAY_FAIL);
    const output = this.#program.output(size);
    const ref = this.#program.call("getdents64", [fd, output, size], MAY_FAIL);
    const rest = this.#program.output(size);
    this.#ends.push(this.#program.call("getdents64", [fd, rest, size], MAY_FAIL));
    return { ref, output, size };
  }

  /** What `looks` adds is looked at in another namespace. The descriptors must stay open: see `keep`. */
  within(
    namespace: { readonly fd: number; readonly home: number; readonly flag: number },
    looks: () => void,
  ): void {
    const go = (to: number, what: string): void => {
      const ref = this.#program.call("setns", [to, namespace.flag], MAY_FAIL);
      this.#steps.push({ ref, what });
    };
    go(namespace.fd, "enter a namespace");
    looks();
    go(namespace.home, "come back from a namespace");
  }

  /** Closes a descriptor in the end. */
  keep(fd: number): number {
    this.#fds.push(fd);
    return fd;
  }

  /** Takes the first look; false when there is more than it has room for. */
  take(): boolean {
    this.#resident ??= new ResidentProgram(this.#program);
    this.#first = Buffer.from(this.#run(this.#resident));
    return (
      this.#files.every((sight) => this.result(sight) < sight.size) &&
      this.#ends.every((ref) => this.#resident?.value(ref) === 0)
    );
  }

  /** Whether another look brings the same. */
  holds(): boolean {
    if (this.#resident === undefined || this.#first === undefined) return false;
    return this.#run(this.#resident).equals(this.#first);
  }

  /** Whether there was something to see in the last look. */
  isThere(sight: Sight): boolean {
    return this.result(sight) >= 0;
  }

  /** Number of bytes in the last look, or a negative error number. */
  result({ ref }: Sight): number {
    return this.#resident?.value(ref) ?? 0;
  }

  /** The text of a file that is there. */
  text(sight: Sight): string {
    return this.#bytes(sight).toString("utf8", 0, this.result(sight));
  }

  /** The names in a directory that is there, but for . and .. */
  names(sight: Sight, wanted: "all" | "directories" = "all"): string[] {
    const bytes = this.#bytes(sight);
    const names: string[] = [];
    for (let at = 0, next = 0; at < this.result(sight); at = next) {
      next = at + bytes.readUInt16LE(at + DIRENT_LENGTH);
      if (wanted === "directories" && bytes[at + DIRENT_TYPE] !== DT_DIR) continue;
      names.push(bytes.toString("utf8", at + DIRENT_NAME, bytes.indexOf(0, at + DIRENT_NAME)));
    }
    return names.filter((name) => name !== "." && name !== "..");
  }

  /** Owner and mode of a file that is there. */
  permissions(sight: Sight): { mode: number; uid: number; gid: number } {
    const bytes = this.#bytes(sight);
    return {
      mode: bytes.readUInt16LE(MODE),
      uid: bytes.readUInt32LE(UID),
      gid: bytes.readUInt32LE(GID),
    };
  }

  /** When a file that is there was changed last: its ctime, in nanoseconds. */
  changed(sight: Sight): bigint {
    const bytes = this.#bytes(sight);
    return bytes.readBigInt64LE(CTIME) * NSEC_PER_SEC + BigInt(bytes.readUInt32LE(CTIME + 8));
  }

  /** The bytes of a file that is there: a window, until the next look. */
  bytes(sight: Sight): Buffer {
    return this.#bytes(sight).subarray(0, Math.max(0, this.result(sight)));
  }

  [Symbol.dispose](): void {
    this.#resident?.[Symbol.dispose]();
    this.#resident = undefined;
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }

  #statx(
    { directory, path }: { readonly directory: number; readonly path: Pointer },
    parts: typeof ATIME | typeof ALL_BUT_OWNER,
  ): Sight {
    const output = this.#program.output(STATX_SIZE);
    const flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
    const args = [directory, path, flags, STATX_BASIC_STATS, output];
    const sight = { ref: this.#program.call("statx", args, MAY_FAIL), output, size: STATX_SIZE };
    this.#moving.push({ sight, parts });
    return sight;
  }

  #run(resident: ResidentProgram): Buffer {
    resident.runAgain();
    for (const { ref, what } of this.#steps) {
      const result = resident.value(ref);
      if (result >= 0) continue;
      throw new RepriseError("SYSCALL", `cannot ${what}: setns: ${errnoName(-result)}`, {
        syscall: "setns",
        errno: errnoName(-result),
      });
    }
    for (const { sight, parts } of this.#moving) {
      const bytes = resident.bytes(sight.output, sight.size);
      for (const [start, end] of parts) bytes.fill(0, start, end);
    }
    return resident.brought;
  }

  #bytes({ output, size }: Sight): Buffer {
    return this.#resident?.bytes(output, size) ?? Buffer.alloc(0);
  }
}

function openIfThere(path: string, flags = O_RDONLY): number | undefined {
  try {
    return openSync(path, flags | O_CLOEXEC);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
