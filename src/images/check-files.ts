// The open files of a set, indexed by id, and checks of everything that refers to one.
import { badSet } from "./bad-set.ts";
import type { LoadedSet } from "./check-set.ts";
import type { ImageSetReader } from "./image-set-reader.ts";
import {
  FdTypes,
  RemapType,
  type FileEntry,
  type MemfdInodeEntry,
  type RegFileEntry,
  type TtyInfoEntry,
} from "./schema/messages.generated.ts";
import { textToBytes } from "./text.ts";

export interface FileIndex {
  /** By id. A tun file shares its id with the regular file of its path: here is the tun file. */
  readonly files: ReadonlyMap<number, FileEntry>;
  /** Regular files by id. */
  readonly regularFiles: ReadonlyMap<number, RegFileEntry>;
  /** By inode_id. */
  readonly memfdInodes: ReadonlyMap<number, MemfdInodeEntry>;
  /** By id. */
  readonly ttyInfos: ReadonlyMap<number, TtyInfoEntry>;
}

/** PATH_MAX. */
const MAX_PATH_BYTES = 4096;
/** The largest value of fs.nr_open. */
const MAX_FD = 2 ** 31 - 1;
const MAX_PORT = 65_535;
const FD_CLOEXEC = 1;

/** Which member of a file_entry belongs to a type. */
const MEMBERS = new Map<number, Exclude<keyof FileEntry, "type" | "id">>([
  [FdTypes.REG, "reg"],
  [FdTypes.PIPE, "pipe"],
  [FdTypes.FIFO, "fifo"],
  [FdTypes.INETSK, "isk"],
  [FdTypes.UNIXSK, "usk"],
  [FdTypes.EVENTFD, "efd"],
  [FdTypes.EVENTPOLL, "epfd"],
  [FdTypes.INOTIFY, "ify"],
  [FdTypes.SIGNALFD, "sgfd"],
  [FdTypes.PACKETSK, "psk"],
  [FdTypes.TTY, "tty"],
  [FdTypes.FANOTIFY, "ffy"],
  [FdTypes.NETLINKSK, "nlsk"],
  [FdTypes.NS, "nsf"],
  [FdTypes.TUNF, "tunf"],
  [FdTypes.EXT, "ext"],
  [FdTypes.TIMERFD, "tfd"],
  [FdTypes.MEMFD, "memfd"],
  [FdTypes.BPFMAP, "bpf"],
  [FdTypes.PIDFD, "pidfd"],
]);

/** Reads files.img and what belongs to it. */
export function indexFiles(reader: ImageSetReader): FileIndex {
  const files = new Map<number, FileEntry>();
  const regularFiles = new Map<number, RegFileEntry>();
  for (const file of reader.read("files")) {
    const { id, type, reg } = file;
    checkMember(file);
    if (reg !== undefined) {
      if (regularFiles.has(id)) throw badSet(`files.img: file ${id} is there twice`);
      checkPath(reg.name, `files.img: file ${id}`);
      regularFiles.set(id, reg);
    }
    const known = files.get(id);
    if (known !== undefined && known.type !== FdTypes.TUNF && type !== FdTypes.TUNF) {
      throw badSet(`files.img: file ${id} is there twice`);
    }
    if (known === undefined || type === FdTypes.TUNF) files.set(id, file);
  }
  return {
    files,
    regularFiles,
    memfdInodes: new Map(reader.read("memfd").map((inode) => [inode.inode_id, inode])),
    ttyInfos: new Map(reader.read("tty-info").map((info) => [info.id, info])),
  };
}

function checkMember(file: FileEntry): void {
  const member = MEMBERS.get(file.type);
  if (member === undefined)
    throw badSet(`files.img: file ${file.id} has the unknown type ${file.type}`);
  const content = file[member];
  if (content === undefined) throw badSet(`files.img: file ${file.id} has no ${member} part`);
  if (content.id !== file.id) {
    throw badSet(`files.img: file ${file.id} has the id ${content.id} in its ${member} part`);
  }
}

function checkPath(path: string, what: string): void {
  if (path === "" || path.includes("\0") || textToBytes(path).length > MAX_PATH_BYTES) {
    throw badSet(`${what} has an impossible path`);
  }
}

/**
 * A regular file that something refers to.
 * @throws RepriseError BAD_IMAGE naming what refers to it.
 */
export function regularFile(files: FileIndex, id: number, what: string): RegFileEntry {
  const file = files.regularFiles.get(id);
  if (file === undefined) throw badSet(`${what}: no regular file ${id} in files.img`);
  return file;
}

/** Every reference to a file leads to one of the right type. */
export function checkFiles(set: LoadedSet): void {
  for (const file of set.files.values()) checkReferences(file, set);
  checkDescriptors(set);
  checkRemaps(set);
  for (const { value } of set.skQueues) {
    const rights = value.scm.flatMap((scm) => scm.rights);
    const missing = [value.id_for, ...rights].find((id) => !set.files.has(id));
    if (missing !== undefined) throw badSet(`sk-queues.img: no file ${missing} in files.img`);
  }
  for (const { tty_id: id } of set.ttyData) {
    if (!set.ttyInfos.has(id)) throw badSet(`tty-data.img: no terminal ${id} in tty-info.img`);
  }
}

function checkReferences({ id, fifo, tty, memfd, isk }: FileEntry, set: LoadedSet): void {
  const what = `files.img: file ${id}`;
  for (const port of [isk?.src_port ?? 0, isk?.dst_port ?? 0])
    if (port > MAX_PORT) throw badSet(`${what} has the impossible port ${port}`);
  if (fifo?.regf_id !== undefined) regularFile(set, fifo.regf_id, what);
  if (tty !== undefined) {
    if (tty.regf_id !== undefined) regularFile(set, tty.regf_id, what);
    if (!set.ttyInfos.has(tty.tty_info_id)) {
      throw badSet(`${what}: no terminal ${tty.tty_info_id} in tty-info.img`);
    }
  }
  if (memfd !== undefined && !set.memfdInodes.has(memfd.inode_id)) {
    throw badSet(`${what}: no memfd ${memfd.inode_id} in memfd.img`);
  }
}

function checkDescriptors(set: LoadedSet): void {
  for (const { pid, live } of set.tasks.values()) {
    if (live === undefined) continue;
    regularFile(set, live.fs.cwd_id, `fs-${pid}.img: the working directory`);
    regularFile(set, live.fs.root_id, `fs-${pid}.img: the root directory`);
    const seen = new Set<number>();
    for (const { fd, id, type, flags } of live.fdinfo) {
      const what = `fdinfo-${live.ids.files_id}.img: fd ${fd}`;
      if (fd > MAX_FD || (flags & ~FD_CLOEXEC) !== 0) throw badSet(`${what} is impossible`);
      if (seen.has(fd)) throw badSet(`${what} is there twice`);
      seen.add(fd);
      const found = set.files.get(id);
      if (found === undefined) throw badSet(`${what}: no file ${id} in files.img`);
      if (found.type !== type)
        throw badSet(`${what}: file ${id} has type ${found.type}, not ${type}`);
    }
  }
}

/** Before remap types, this bit of remap_id said that it is a ghost. */
const OLD_GHOST_BIT = 0x80000000;

/** A remap with the type that old images leave out. */
export function remapOf(entry: {
  readonly remap_id: number;
  readonly remap_type?: number | undefined;
}): { readonly type: number; readonly id: number } {
  if (entry.remap_type !== undefined) return { type: entry.remap_type, id: entry.remap_id };
  const isGhost = entry.remap_id >= OLD_GHOST_BIT;
  return {
    type: isGhost ? RemapType.GHOST : RemapType.LINKED,
    id: isGhost ? entry.remap_id - OLD_GHOST_BIT : entry.remap_id,
  };
}

function checkRemaps(set: LoadedSet): void {
  for (const entry of set.remaps) {
    const what = `remap-fpath.img: file ${entry.orig_id}`;
    regularFile(set, entry.orig_id, what);
    const { type, id } = remapOf(entry);
    if (type === RemapType.LINKED) regularFile(set, id, what);
    else if (type === RemapType.GHOST) {
      if (!set.reader.has("ghost-file", id)) throw set.reader.missing("ghost-file", id);
    } else if (type !== RemapType.PROCFS) {
      throw badSet(`${what} has the unknown remap type ${type}`);
    }
  }
}
