// Names of unix sockets: a path (the socket is a file then, which may have been deleted since), an abstract name, or none.
// A path may have been given relative to a directory. See unix(7); format.md section 11, UNIXSK.

import { closeSync, fstatSync, lstatSync, readlinkSync, type Stats } from "node:fs";
import { dirname, posix } from "node:path";
import { RepriseError } from "../../errors.ts";
import type { UnixSkEntry } from "../../images/schema/messages.generated.ts";
import { bytesToText } from "../../images/text.ts";
import {
  AT_FDCWD,
  AT_REMOVEDIR,
  AT_SYMLINK_NOFOLLOW,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
} from "../../sys/abi/fcntl.ts";
import { AF_UNIX, SIOCUNIXFILE } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Program } from "../../tracee/program.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { fileKey, type MountNamespaces } from "../mounts/collect.ts";
import type { FilesDump, FilesRestore, OpenFile } from "../files/file-kind.ts";
import { pathArgument, pathBytes } from "../files/path.ts";
import { engineSide } from "../files/temporary-names.ts";

/** What the images say of a name. */
export type SavedName = Pick<
  UnixSkEntry,
  "name" | "file_perms" | "name_dir" | "deleted" | "mnt_id"
>;

const DELETED = " (deleted)";

/**
 * Looks where a socket's name leads; `fd` is the engine's copy of `file`, `name` as the kernel tells it.
 * @throws RepriseError UNSUPPORTED for a relative name whose directory cannot be found, SYSCALL
 */
export function collectName(
  file: OpenFile,
  { fd, name }: { readonly fd: number; readonly name: Buffer },
  { mounts }: FilesDump,
): SavedName {
  if (name.length === 0 || name[0] === 0) return { name };
  const opened = trySyscall("ioctl", fd, SIOCUNIXFILE, 0);
  if (opened < 0) throw nameError(file, name, `ioctl SIOCUNIXFILE: ${errnoName(-opened)}`);
  try {
    const { mode, uid, gid } = fstatSync(opened);
    mounts?.savedFiles.add(fileKey(fstatSync(opened, { bigint: true })));
    const link = bytesToText(readlinkSync(`/proc/self/fd/${opened}`, "buffer"));
    const deleted = link.endsWith(DELETED);
    const path = deleted ? link.slice(0, -DELETED.length) : link;
    const text = pathText(name);
    const directory = text.startsWith("/") ? undefined : directoryOf(file, path, text);
    return {
      name,
      file_perms: {
        mode,
        uid: mounts?.innerId("uid", uid) ?? uid,
        gid: mounts?.innerId("gid", gid) ?? gid,
      },
      ...(directory === undefined ? {} : { name_dir: directory }),
      ...(deleted ? { deleted } : {}),
      ...mountField(file, opened, mounts),
    };
  } finally {
    closeSync(opened);
  }
}

/** What can be seen of where the path of a socket leads, to be compared with what is seen later; undefined when that cannot be told. */
export function lookAtName(fd: number): string | undefined {
  const opened = trySyscall("ioctl", fd, SIOCUNIXFILE, 0);
  if (opened < 0) return undefined;
  try {
    const link = `/proc/self/fd/${opened}`;
    const { dev, ino, mode, nlink, uid, gid, ctimeNs } = fstatSync(opened, { bigint: true });
    const place = readlinkSync(link, "buffer").toString("latin1");
    return [mountIdOf(link), dev, ino, mode, nlink, uid, gid, ctimeNs, place].join(":");
  } finally {
    closeSync(opened);
  }
}

function mountField(
  { task, near }: OpenFile,
  opened: number,
  mounts: MountNamespaces | undefined,
): { readonly mnt_id?: number } {
  if (mounts?.ofTask((near ?? task).pid) === undefined) return {};
  const id = mountIdOf(`/proc/self/fd/${opened}`);
  return id === undefined ? {} : { mnt_id: id };
}

/** A name as text for messages: `@` stands for the zero of an abstract one. */
export function showName(name: Uint8Array): string {
  if (name.length === 0) return "without a name";
  return name[0] === 0
    ? bytesToText(Uint8Array.from(name, (byte) => (byte === 0 ? 0x40 : byte)))
    : pathText(name);
}

/** Whether a socket with this name is a file. */
export function isPath({ name }: Pick<UnixSkEntry, "name">): boolean {
  return name.length > 0 && name[0] !== 0;
}

/** Absolute path of a socket that is a file. */
function fullPath(entry: SavedName): string {
  const path = pathText(entry.name);
  return path.startsWith("/") || entry.name_dir === undefined
    ? path
    : posix.join(entry.name_dir, path);
}

/** struct sockaddr_un of a name. */
export function addressOfName(name: Uint8Array): Buffer {
  const family = Buffer.alloc(2);
  family.writeUInt16LE(AF_UNIX, 0);
  return Buffer.concat([family, name]);
}

export interface Binding {
  readonly fd: number;
  readonly entry: SavedName;
  /** For labels. */
  readonly what: string;
  /** Take the file away again, as if the entry said that it is deleted. */
  readonly hide?: boolean;
}

/** Binds sockets to their names in the opening program, and knows which files it has made there so far. */
export class NameBinder {
  readonly #restore: FilesRestore;
  readonly #made = new Set<string>();
  /** Inodes of files that sockets outside of the program are bound to, as `device:inode`. */
  readonly #inUse: (stat: Stats) => boolean;

  constructor(restore: FilesRestore, inUse: (stat: Stats) => boolean) {
    this.#restore = restore;
    this.#inUse = inUse;
  }

  /**
   * Whether a path can be somebody else's for a moment: no socket is bound to what is there, and nothing is mounted over it (a socket
   * would be bound there, and keep that mount in use).
   */
  isFree(program: Program, entry: SavedName): boolean {
    const path = fullPath(entry);
    const prefix = this.#restore.inMountsOf(program, entry.mnt_id);
    const found = lstatSync(pathBytes(prefix + path), { throwIfNoEntry: false });
    if (found?.isSocket() === true && this.#inUse(found)) return false;
    const own = this.#onOwnMount(entry, path);
    return own !== undefined && isSame(directoryAt(prefix + path), directoryAt(own));
  }

  /** The path on the mount that a name is of, whatever lies over it; undefined when the tree has this mount no longer. */
  #onOwnMount({ mnt_id }: SavedName, path: string): string | undefined {
    try {
      return engineSide(this.#restore.temporaryPlace(mnt_id, path));
    } catch (error) {
      if (error instanceof RepriseError && error.code === "BAD_IMAGE") return undefined;
      throw error;
    }
  }

  /**
   * Adds the calls that bind a socket.
   * @returns a descriptor of the socket's file, when its name does not lead there.
   * @throws RepriseError FILE_CHANGED when something else has its path.
   */
  bind(program: Program, binding: Binding): number | undefined {
    const { entry, fd, what } = binding;
    if (!isPath(entry)) {
      this.#bindCall(program, fd, entry, what);
      return undefined;
    }
    if (entry.deleted === true || binding.hide === true) return this.#bindDeleted(program, binding);
    const path = fullPath(entry);
    this.#clear(program, { path, entry }, what);
    this.#inDirectory(program, binding, () => this.#bindCall(program, fd, entry, what));
    this.#setOwner(program, entry, path);
    this.#made.add(this.#restore.inMountsOf(program, entry.mnt_id) + path);
    return entry.name_dir === undefined ? undefined : this.#openPath(program, path);
  }

  #bindCall(program: Program, fd: number, { name }: SavedName, what: string): void {
    const address = addressOfName(name);
    program.call("bind", [fd, program.data(address), address.length], {
      label: `bind ${what} to ${showName(name)}`,
      hint: "The name must be free and its directory there. Is the original still running?",
    });
  }

  /** The file that the saved process left behind goes away; anything else stays. */
  #clear(
    program: Program,
    { path, entry }: { readonly path: string; readonly entry: SavedName },
    what: string,
  ): void {
    const prefix = this.#restore.inMountsOf(program, entry.mnt_id);
    if (this.#made.has(prefix + path)) return;
    const found = lstatSync(pathBytes(prefix + path), { throwIfNoEntry: false });
    if (found === undefined) return;
    if (!found.isSocket()) {
      throw new RepriseError("FILE_CHANGED", `cannot restore ${what}: ${path} is no socket now`, {
        hint: "Move away what has the name of the socket.",
      });
    }
    if (this.#inUse(found)) {
      throw new RepriseError(
        "FILE_CHANGED",
        `cannot restore ${what}: another process has a socket at ${path}`,
        { hint: "Stop the original first, or whoever has taken its place." },
      );
    }
    program.call("unlinkat", [AT_FDCWD, pathArgument(program, path), 0], {
      label: `remove the left over socket ${path}`,
    });
  }

  /** Binds as if the path were free, and leaves it as it is: missing directories are made for the moment. */
  #bindDeleted(program: Program, binding: Binding): number {
    const { entry, fd, what } = binding;
    const path = fullPath(entry);
    const prefix = this.#restore.inMountsOf(program, entry.mnt_id);
    const missing = missingDirectories(dirname(path), prefix);
    for (const directory of missing) {
      const args = [AT_FDCWD, pathArgument(program, directory), 0o700];
      program.call("mkdirat", args, { label: `make ${directory} for a deleted socket` });
    }
    const taken =
      this.#made.has(prefix + path) ||
      lstatSync(pathBytes(prefix + path), { throwIfNoEntry: false }) !== undefined;
    const aside = `${path}${ASIDE}`;
    const move = (from: string, to: string): void => {
      if (!taken) return;
      const [source, target] = [pathArgument(program, from), pathArgument(program, to)];
      program.call("renameat2", [AT_FDCWD, source, AT_FDCWD, target, RENAME_NOREPLACE], {
        label: `move ${from} to ${to}`,
        hint: "The path of a deleted socket is needed for a moment; what is there comes back.",
      });
    };
    move(path, aside);
    this.#inDirectory(program, binding, () => this.#bindCall(program, fd, entry, what));
    this.#setOwner(program, entry, path);
    const handle = this.#openPath(program, path);
    program.call("unlinkat", [AT_FDCWD, pathArgument(program, path), 0], {
      label: `delete ${path} again`,
    });
    move(aside, path);
    for (const directory of missing.toReversed()) {
      const args = [AT_FDCWD, pathArgument(program, directory), AT_REMOVEDIR];
      program.call("unlinkat", args, { label: `remove ${directory} again` });
    }
    return handle;
  }

  /** A relative name is bound from its directory. */
  #inDirectory(program: Program, { entry }: Binding, bind: () => void): void {
    if (entry.name_dir === undefined) {
      bind();
      return;
    }
    const here = program.call(
      "openat",
      [AT_FDCWD, program.string("."), O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
      { label: "keep the current directory" },
    );
    const directory = pathArgument(program, entry.name_dir);
    program.call("chdir", [directory], { label: `go to ${entry.name_dir}` });
    bind();
    program.call("fchdir", [here], { label: "go back" });
    program.call("close", [here]);
  }

  #setOwner(program: Program, { file_perms: perms }: SavedName, path: string): void {
    if (perms === undefined) return;
    const place = pathArgument(program, path);
    program.call("fchownat", [AT_FDCWD, place, perms.uid, perms.gid, AT_SYMLINK_NOFOLLOW], {
      label: `set the owner of ${path}`,
    });
    program.call("fchmodat", [AT_FDCWD, place, perms.mode & 0o7777], {
      label: `set the mode of ${path}`,
    });
  }

  #openPath(program: Program, path: string): number {
    const opened = program.call(
      "openat",
      [AT_FDCWD, pathArgument(program, path), O_PATH | O_CLOEXEC, 0],
      { label: `open ${path}` },
    );
    const handle = this.#restore.reserve();
    program.call("dup3", [opened, handle, O_CLOEXEC]);
    program.call("close", [opened]);
    return handle;
  }
}

/** Behind the name of a file that has the path of a deleted socket, for a moment. */
const ASIDE = ".reprise-aside";
const RENAME_NOREPLACE = 1;

/** Directories that must be made for `path` to be one, the outermost first. */
function missingDirectories(path: string, prefix: string): string[] {
  const missing: string[] = [];
  for (let at = path; at !== "/" && at !== "."; at = dirname(at)) {
    if (lstatSync(pathBytes(prefix + at), { throwIfNoEntry: false }) !== undefined) break;
    missing.unshift(at);
  }
  return missing;
}

function directoryAt(path: string): Stats | undefined {
  return lstatSync(pathBytes(dirname(path)), { throwIfNoEntry: false });
}

function isSame(a: Stats | undefined, b: Stats | undefined): boolean {
  return a?.ino === b?.ino && a?.dev === b?.dev;
}

/** A path without the zero at its end. */
function pathText(name: Uint8Array): string {
  const end = name.indexOf(0);
  return bytesToText(end < 0 ? name : name.subarray(0, end));
}

/** The directory in which a relative name leads to `path`. */
function directoryOf(file: OpenFile, path: string, name: string): string {
  const plain = posix.normalize(name);
  if (path.endsWith(`/${plain}`)) return path.slice(0, -plain.length - 1) || "/";
  const current = bytesToText(readlinkSync(`/proc/${file.task.pid}/cwd`, "buffer"));
  if (posix.join(current, plain) === path) return current;
  throw nameError(file, Buffer.from(name), `its directory is not known: it lies at ${path} now`);
}

function nameError({ task, fd, target }: OpenFile, name: Uint8Array, why: string): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${fd} of pid ${task.pid} (${target}): its name ${showName(name)}: ${why}`,
    { pid: task.pid, fd, hint: "The socket must be found by its name at the restore." },
  );
}
