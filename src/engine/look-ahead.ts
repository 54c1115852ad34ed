// Looking at sleeping tasks from outside before the tree is frozen: their memory areas, and their files as far as these are plain
// ones that have their name, no lock and no owner. What others may change of a file through a descriptor of their own, position
// and flags, is read once more at the end. All of it is dropped when a task woke up (sleepers.ts) or one of the files was locked
// meanwhile.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { asRepriseError } from "./system-error.ts";
import { encodeAhead } from "../images/codec.ts";
import { FdTypes } from "../images/schema/messages.generated.ts";
import type { ImageSetWriter } from "../images/image-set.ts";
import type { FilesDump, FilesDumpOptions, OpenFile } from "../objects/files/file-kind.ts";
import { hasOwner, noteOwnerless, type OwnerLook } from "../objects/files/owner.ts";
import { locate } from "../objects/files/path.ts";
import { isPlainDevice } from "../objects/files/memory-device.ts";
import { FileTable, isSocket, lookAtFd } from "../objects/files/table.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readFdNumbers } from "../proc/fd.ts";
import { FdDirectory } from "../tracee/fd-directory.ts";
import type { FdInfo } from "../proc/fdinfo.ts";
import { fdPath, mapFilePath } from "../proc/links.ts";
import { readSmaps, type SmapsVma } from "../proc/smaps.ts";
import { readStatIfAlive, type TaskStat } from "../proc/stat.ts";
import { readStatusIfAlive, type TaskStatus } from "../proc/status.ts";
import { KCMP_FILE, KCMP_FILES, KCMP_FS, KCMP_VM } from "../sys/abi/sched.ts";
import { O_CLOEXEC, O_PATH, O_RDONLY, S_IFMT, S_IFREG } from "../sys/abi/fcntl.ts";
import { KernelOrder, type KernelObject } from "../sys/process.ts";
import { sharersAmong } from "./common-memory.ts";
import { areaKey, collectPlaces, withoutFd, type TaskPlaces } from "./collect.ts";
import type { FrozenTree } from "./freeze.ts";
import { Sleeper } from "./sleepers.ts";
import type { SpacesAhead } from "./spaces-ahead.ts";
import type { WrittenAhead } from "./write-ahead.ts";

/** File systems whose files are not what their names say. */
const NOT_PLAIN = ["/proc/", "/sys/", "/memfd:", "/dev/"];

/** What a descriptor leads to. */
export interface EarlyFd {
  readonly id: number;
  readonly type: number;
  readonly cloexec: boolean;
}

/** A descriptor that was described, and as what. */
interface KnownFd extends KernelObject {
  readonly as: Omit<EarlyFd, "cloexec">;
}

/** A descriptor that may lead to a plain file. */
interface PlainLook {
  readonly fd: number;
  readonly info: FdInfo;
  /** Descriptions of which fdinfo says the same. */
  readonly known: KernelOrder<KnownFd> | undefined;
  readonly owner: OwnerLook | undefined;
}

/** So many are copied by one call. */
const MANY = 32;

interface EarlyTable {
  readonly sleeper: Sleeper;
  readonly directory: FdDirectory;
  /** Every descriptor, and what is known of it already. */
  readonly fds: ReadonlyMap<number, EarlyFd | undefined>;
  /** Undefined when there is more to it than plain files. */
  readonly places: TaskPlaces | undefined;
}

interface LookAheadOptions extends FilesDumpOptions {
  readonly spaces: SpacesAhead;
  readonly written: WrittenAhead;
}

/** Files that were described before the tasks were stopped. */
export class LookAhead {
  readonly files: FileTable;
  readonly #tables = new Map<number, EarlyTable>();
  readonly #known = new Map<string, KernelOrder<KnownFd>>();
  readonly #written: WrittenAhead;
  /** Mapped files that have their names. */
  readonly #named = new Set<string>();

  /** Undefined when there is nothing that would be worth it. */
  static of(
    tasks: readonly FrozenTask[],
    images: ImageSetWriter,
    options: LookAheadOptions,
  ): LookAhead | undefined {
    let ahead: LookAhead | undefined;
    try {
      // What another task may change, too, holds only if that one sleeps as well: not worth the trouble.
      const pids = new Set(tasks.map(({ pid }) => pid));
      if (sharersAmong(pids, [KCMP_VM, KCMP_FILES, KCMP_FS]).size > 0) return undefined;
      ahead = new LookAhead(images, options);
      for (const task of tasks) ahead.#look(task);
      ahead.files.encodeAhead();
      if (ahead.#tables.size > 0) return ahead;
      ahead.discard();
      return undefined;
    } catch (thrown) {
      ahead?.discard();
      // A running task may end, or close what is looked at.
      const error = asRepriseError(thrown, "look at a running task");
      if (!(error instanceof RepriseError)) throw error;
      log.debug(`files are looked at later: ${error.message}`);
      return undefined;
    }
  }

  private constructor(images: ImageSetWriter, { spaces, written, ...options }: LookAheadOptions) {
    this.#written = written;
    this.files = new FileTable(images, {
      ...options,
      namespaces: spaces.namespaces,
      // They may be of use when the files are not.
      mounts: { ...spaces.mounts, close: () => undefined },
      innerPid: () => undefined,
    });
  }

  /** Whether everything still holds. To be asked when the tasks have been stopped, and before they do anything for us. */
  holds(tree: FrozenTree): boolean {
    const slept = this.#slept(tree);
    for (const { sleeper } of this.#tables.values()) sleeper.close();
    const directories = new Map([...this.#tables].map(([pid, { directory }]) => [pid, directory]));
    const holds = slept && this.files.refresh(directories);
    for (const directory of directories.values()) directory[Symbol.dispose]();
    return holds;
  }

  #slept({ tasks }: FrozenTree): boolean {
    const byPid = new Map(tasks.map((task) => [task.pid, task]));
    for (const [pid, { sleeper }] of this.#tables) {
      const task = byPid.get(pid);
      if (task === undefined || !sleeper.sleptUntil(task)) return false;
    }
    return true;
  }

  /** Whether all live tasks of the tree were looked at, which slept then. */
  knows({ tasks }: FrozenTree): boolean {
    return tasks.every(({ pid, state }) => state === "zombie" || this.#tables.has(pid));
  }

  /** The descriptors of a task; undefined when it was not looked at. */
  numbers(task: FrozenTask): number[] | undefined {
    const table = this.#tables.get(task.pid);
    return table === undefined ? undefined : [...table.fds.keys()];
  }

  /** What a descriptor leads to, if that was found out. */
  find(task: FrozenTask, fd: number): EarlyFd | undefined {
    return this.#tables.get(task.pid)?.fds.get(fd);
  }

  /** What a task maps and where it is, if that was found out. */
  places(task: FrozenTask): TaskPlaces | undefined {
    return this.#tables.get(task.pid)?.places;
  }

  /** Drops everything. */
  discard(): void {
    this.files.abort();
    this.files.close();
    for (const { sleeper } of this.#tables.values()) sleeper.close();
    this.#tables.clear();
  }

  #look(task: FrozenTask): void {
    const { pid } = task;
    const sleeper = Sleeper.of(pid);
    if (sleeper === undefined) return;
    // In this order: what slept so far is watched by ours from here on.
    const areas = this.#written.areasOf(pid) ?? readSmaps(pid);
    const places = this.#hasPlainPlaces(task, areas)
      ? collectPlaces(task, areas, this.files)
      : undefined;
    for (const { entry } of places?.vmas ?? []) encodeAhead("vma_entry", entry);
    // Its descriptors are not kept: there may be many tasks.
    using directory = new FdDirectory(pid);
    const numbers = readFdNumbers(pid);
    directory.prepare(numbers, ["targets"]);
    const promising = numbers.filter((fd) => mayBePlain(directory.target(fd)));
    const sockets = numbers.filter((fd) => isSocket({ target: directory.target(fd) }));
    const describeSockets = this.files.beginSockets(pid, sockets);
    directory.prepare([...promising, ...sockets], ["infos"]);
    const looks = this.#first(pid, promising, directory);
    const fds = new Map<number, EarlyFd | undefined>(numbers.map((fd) => [fd, undefined]));
    for (const look of looks) fds.set(look.fd, this.#describe(task, look, directory));
    const described = describeSockets((fd, stat) => {
      const info = directory.info(fd);
      const procPath = fdPath(pid, fd);
      const file = { task, fd, procPath, target: directory.target(fd), stat, info };
      return isSocketOf(file) ? file : undefined;
    });
    for (const { file, id, type } of described)
      fds.set(file.fd, { id, type, cloexec: (file.info.flags & O_CLOEXEC) !== 0 });
    this.#tables.set(pid, { sleeper, directory, fds, places });
  }

  /** What fdinfo says of descriptors. Of those of which it says the same only the first is likely to be described. */
  #first(pid: number, fds: readonly number[], directory: FdDirectory): PlainLook[] {
    const looks = fds.map((fd): PlainLook => {
      const info = directory.info(fd);
      return { fd, info, known: this.#knownLike(info), owner: undefined };
    });
    if (looks.length < MANY) return looks;
    const groups = new Set<PlainLook["known"]>();
    const first = looks.filter(({ known }) => {
      if (known === undefined || known.items.length > 0 || groups.has(known)) return false;
      groups.add(known);
      return true;
    });
    const numbers = first.map(({ fd }) => fd);
    directory.prepare(numbers, ["stats"]);
    const owners = this.files.copyMany(pid, numbers);
    return looks.map((look) => ({ ...look, owner: owners.get(look.fd) }));
  }

  #describe(task: FrozenTask, look: PlainLook, directory: FdDirectory): EarlyFd | undefined {
    const { fd, info, known, owner } = look;
    const cloexec = (info.flags & O_CLOEXEC) !== 0;
    const before = known?.find({ pid: task.pid, fd });
    if (before !== undefined) return { ...before.as, cloexec };
    const file = lookAtFd(task, fd, { directory, info });
    if (owner !== undefined) {
      this.files.isCopyOf(owner.copy, file);
      if (!owner.isOwned) noteOwnerless(file);
    }
    if (!isPlain(file, this.files) || (owner?.isOwned ?? hasOwner(file, this.files)))
      return undefined;
    const { id, type } = this.files.describe(file);
    if (type !== FdTypes.REG) return undefined;
    known?.findOrAdd({ pid: task.pid, fd, as: { id, type } });
    return { id, type, cloexec };
  }

  /**
   * Descriptions of plain files of which fdinfo says the same: a descriptor that leads to one of them (a copy, or the inherited one of a
   * child) need not be looked at. Undefined where fdinfo has more to tell, or does not tell the file (before Linux 5.14).
   */
  #knownLike({ ino, pos, flags, mntId, locks, extra }: FdInfo): KernelOrder<KnownFd> | undefined {
    if (ino === undefined || locks.length > 0 || extra.length > 0) return undefined;
    const key = `${ino}:${mntId}:${pos}:${flags & ~O_CLOEXEC}`;
    let known = this.#known.get(key);
    if (known === undefined) this.#known.set(key, (known = new KernelOrder<KnownFd>(KCMP_FILE)));
    return known;
  }

  /** Whether all that a task maps, its program and its directories have their names. */
  #hasPlainPlaces(task: FrozenTask, areas: readonly SmapsVma[]): boolean {
    const links = ["exe", "cwd", "root"].map((name) => `/proc/${task.pid}/${name}`);
    const mapped = new Map<string, string>();
    for (const area of areas) {
      const key = areaKey(area);
      if (area.inode === 0n || this.#named.has(key) || mapped.has(key)) continue;
      if (!isPlainName(area.path)) return false;
      mapped.set(key, mapFilePath(task.pid, area));
    }
    const isPlainLink = (link: string): boolean => {
      const file = withoutFd(task, link, O_RDONLY);
      if (!isPlainName(file.target) || file.stat.nlink === 0) return false;
      return locate(file, this.files).kind === "there";
    };
    if (![...links, ...mapped.values()].every(isPlainLink)) return false;
    for (const key of mapped.keys()) this.#named.add(key);
    return true;
  }
}

/** Those of a tree that live. */
export function runningTasks(pids: readonly number[]): FrozenTask[] {
  return pids.flatMap((pid) => {
    const stat = readStatIfAlive(pid);
    const status = stat === undefined ? undefined : readStatusIfAlive(pid);
    if (stat === undefined || status === undefined || stat.state === "Z") return [];
    return [runningTask(pid, stat, status)];
  });
}

/** A task as far as its files are concerned; it runs, so there is nothing to say about its threads. */
function runningTask(pid: number, stat: TaskStat, status: TaskStatus): FrozenTask {
  return {
    pid,
    innerPid: pid,
    parent: undefined,
    state: "alive",
    stopSignal: 0,
    stat,
    status,
    threads: [],
  };
}

/** Whether a copy and a name that were made one after the other are of one socket, which has no locks. */
function isSocketOf({ target, stat, info }: OpenFile): boolean {
  return target === `socket:[${stat.inode}]` && info.locks.length === 0;
}

/** Whether a link may be that of a regular file or memory device: all others are not looked at further. */
function mayBePlain(target: string): boolean {
  return isPlainName(target) || target.startsWith("/dev/");
}

function isPlainName(target: string): boolean {
  return target.startsWith("/") && !NOT_PLAIN.some((prefix) => target.startsWith(prefix));
}

/** A regular file or /dev/null under its own name, of which fdinfo has nothing to say but position, flags and mount. */
function isPlain(file: OpenFile, dump: FilesDump): boolean {
  const { stat, info, target } = file;
  const isKnown = isPlainDevice(stat) || ((stat.mode & S_IFMT) === S_IFREG && isPlainName(target));
  return (
    isKnown &&
    stat.nlink > 0 &&
    (info.flags & O_PATH) === 0 &&
    info.locks.length === 0 &&
    info.extra.length === 0 &&
    locate(file, dump).kind === "there"
  );
}
