// Files of the kernel's own tmpfs, which have no path: memfd_create(2), and shared anonymous memory that was opened through
// /proc/PID/map_files ("/dev/zero"). Several descriptions share one object, which memfd.img lists; see mm/memfd.c,
// mm/shmem.c; format.md section 11, MEMFD.

import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type MemfdInodeEntry,
} from "../../images/schema/messages.generated.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SETFL,
  O_ACCMODE,
  O_APPEND,
  O_CLOEXEC,
  O_DIRECT,
  O_NONBLOCK,
  O_PATH,
  O_RDWR,
  S_IFMT,
  S_IFREG,
  SEEK_SET,
  F_SEAL_SEAL,
  F_SEAL_FUTURE_WRITE,
} from "../../sys/abi/fcntl.ts";
import {
  MAP_ANONYMOUS,
  MAP_FIXED_NOREPLACE,
  MAP_SHARED,
  MFD_ALLOW_SEALING,
  MAP_HUGETLB,
  MFD_CLOEXEC,
  MFD_HUGETLB,
  PAGE_SIZE,
  PROT_READ,
  PROT_WRITE,
} from "../../sys/abi/mman.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { ANONYMOUS_HUGE, HUGE_MASK, hugeSizeBits } from "../memory/hugetlb.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import { readXattrs, restoreXattrs } from "./extended-attributes.ts";
import { pathArgument, targetOf } from "./path.ts";
import { reopen } from "./pipe.ts";
import { fillSharedMemory, writeSharedMemory } from "./shared-content.ts";
import { idsInside } from "../namespaces/user.ts";

export const memfdKind: FileKind = {
  name: "memfd",
  type: FdTypes.MEMFD,
  recognise: isMemfd,
  write: writeMemfd,
  open: openMemfd,
  inheritKeys: ({ memfd }, { memfdInodes }) => [
    `/memfd:${memfdInodes.get(memfd?.inode_id ?? 0)?.name}`,
  ],
};

const PREFIX = "/memfd:";
const DELETED = " (deleted)";
/** Name of shared anonymous memory. */
const ANONYMOUS = "/dev/zero";
const O_NOATIME = 0o1000000;

interface Device {
  readonly major: number;
  readonly minor: number;
}

let kernelTmpfs: Device | undefined;

/** The device number of the kernel's own tmpfs. */
function kernelTmpfsDevice(): Device {
  if (kernelTmpfs !== undefined) return kernelTmpfs;
  const fd = syscall("memfd_create", Buffer.from("reprise\0"), MFD_CLOEXEC);
  const { dev } = fstatSync(fd, { bigint: true });
  closeSync(fd);
  kernelTmpfs = { major: deviceMajor(dev), minor: deviceMinor(dev) };
  return kernelTmpfs;
}

function isMemfd({ stat, info }: OpenFile): boolean {
  if ((stat.mode & S_IFMT) !== S_IFREG || (info.flags & O_PATH) !== 0 || stat.nlink !== 0) {
    return false;
  }
  const { major, minor } = kernelTmpfsDevice();
  if (stat.devMajor === major && stat.devMinor === minor) return true;
  return hugeSizeBits(stat) !== undefined;
}

/** Objects that a dump has seen, by inode number. */
const inodes = new WeakMap<FilesDump, Map<bigint, MemfdInodeEntry>>();

function writeMemfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const { inode_id } = inodeOf(file, dump);
  const { info } = file;
  const flags = info.flags & ~O_CLOEXEC;
  const memfd = { id, flags, pos: info.pos, fown: readOwner(file, dump), inode_id };
  return { type: FdTypes.MEMFD, id, memfd };
}

function inodeOf(file: OpenFile, dump: FilesDump): MemfdInodeEntry {
  let known = inodes.get(dump);
  if (known === undefined) {
    const fresh = new Map<bigint, MemfdInodeEntry>();
    inodes.set(dump, (known = fresh));
    dump.later(() => dump.images.write("memfd", 0, [...fresh.values()]));
  }
  const { stat } = file;
  let entry = known.get(stat.inode);
  if (entry === undefined) {
    entry = describeInode(file, known.size + 1, dump);
    known.set(stat.inode, entry);
    writeContent(file, entry, dump);
  }
  return entry;
}

function describeInode(file: OpenFile, inode_id: number, dump: FilesDump): MemfdInodeEntry {
  const { stat } = file;
  const size = hugeSizeBits(stat);
  return {
    name: nameOf(file),
    ...(size === undefined ? {} : { hugetlb_flag: MFD_HUGETLB + size }),
    ...idsInside(dump.namespaces, stat),
    size: Number(stat.size),
    shmid: Number(stat.inode & 0xffff_ffffn),
    seals: sealsOf(file),
    inode_id,
    mode: stat.mode,
    xattrs: readXattrs(file.procPath),
  };
}

function nameOf(file: OpenFile): string {
  const { task, fd } = file;
  const target = targetOf(file);
  const name = target.endsWith(DELETED) ? target.slice(0, -DELETED.length) : target;
  if (name.startsWith("/SYSV")) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump fd ${fd} of pid ${task.pid} (${target}): a System V segment opened as a file`,
      { pid: task.pid, fd, hint: "Let the process close it before the dump." },
    );
  }
  return name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
}

function sealsOf(file: OpenFile): number {
  const fd = openSync(file.procPath, constants.O_RDONLY | constants.O_NOATIME);
  try {
    const seals = trySyscall("fcntl", fd, F_GET_SEALS, 0);
    return seals < 0 ? F_SEAL_SEAL : seals;
  } finally {
    closeSync(fd);
  }
}

function writeContent(file: OpenFile, entry: MemfdInodeEntry, dump: FilesDump): void {
  // Not the task's own description: its position must stay.
  const fd = openSync(file.procPath, constants.O_RDONLY | constants.O_NOATIME);
  try {
    writeSharedMemory(fd, entry, dump);
  } finally {
    closeSync(fd);
  }
}

/** An object while the opening program is built. */
interface Made {
  readonly fd: number;
  /** Whether its first description is given away. */
  isGiven: boolean;
}

const objects = new WeakMap<FilesRestore, Map<number, Made>>();

function openMemfd(program: Program, { id, memfd }: FileEntry, restore: FilesRestore): Argument {
  const inode = restore.set.memfdInodes.get(memfd?.inode_id ?? 0);
  assert(memfd !== undefined && inode !== undefined, `file ${id} is no memfd`);
  const object = objectOf(program, inode, restore);
  const label = `open memfd ${inode.name} (file ${id})`;
  const fd = describe(program, { object, flags: memfd.flags, label });
  program.call("lseek", [fd, memfd.pos, SEEK_SET], { label });
  restoreOwner(program, memfd.fown, fd);
  return fd;
}

interface Description {
  readonly object: Made;
  readonly flags: number;
  readonly label: string;
}

/** The first description that can do both is the object's own: only that can be executed (execveat). */
function describe(program: Program, { object, flags, label }: Description): Argument {
  if ((flags & O_ACCMODE) !== O_RDWR || object.isGiven) {
    return reopen(program, object.fd, { flags, label });
  }
  object.isGiven = true;
  const settable = flags & (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME);
  program.call("fcntl", [object.fd, F_SETFL, settable], { label });
  return object.fd;
}

function objectOf(program: Program, inode: MemfdInodeEntry, restore: FilesRestore): Made {
  let known = objects.get(restore);
  if (known === undefined) objects.set(restore, (known = new Map()));
  let object = known.get(inode.inode_id);
  if (object === undefined) {
    object = { fd: makeObject(program, inode, restore), isGiven: false };
    known.set(inode.inode_id, object);
  }
  return object;
}

function makeObject(program: Program, inode: MemfdInodeEntry, restore: FilesRestore): number {
  const label = `make memfd ${inode.name} (${inode.size} bytes)`;
  const huge = inode.hugetlb_flag ?? 0;
  const flags = MFD_CLOEXEC | huge | (inode.seals === F_SEAL_SEAL ? 0 : MFD_ALLOW_SEALING);
  const made = program.call("memfd_create", [pathArgument(program, inode.name), flags], {
    label,
    ...(huge === 0 ? {} : { hint: HINT_HUGE }),
  });
  const fd = restore.reserve();
  program.call("dup3", [made, fd, O_CLOEXEC], { label });
  program.call("close", [made], { label });
  if ((inode.name === ANONYMOUS || inode.name === ANONYMOUS_HUGE) && inode.size > 0)
    replaceByAnonymous(program, inode, fd);
  const window = huge === 0 ? undefined : SCRATCH_ADDRESS;
  fillSharedMemory(program, { fd, shmid: inode.shmid, size: inode.size, label, window }, restore);
  setAttributes(program, inode, fd);
  restoreXattrs(program, fd, {
    xattrs: inode.xattrs,
    what: `memfd ${inode.name}`,
    isForeigner: restore.isForeigner === true,
  });
  // At the end: nothing may be written any more, and all must be open.
  if (!sealsAfterMapping(inode, restore.set)) restore.later((end) => seal(end, inode, fd));
  return fd;
}

const HINT_HUGE =
  "Huge pages of this size must be offered by the kernel and set aside (vm.nr_hugepages).";

/** Where an object is mapped for a moment, one after the other: far from where the kernel puts anything by itself. */
const SCRATCH_ADDRESS = 0x1000_0000_0000;

/** Puts real shared anonymous memory in the place of the memfd, where the kernel allows it; else the memfd must do. */
function replaceByAnonymous(program: Program, inode: MemfdInodeEntry, fd: number): void {
  const start = SCRATCH_ADDRESS;
  const size = Math.ceil(inode.size / PAGE_SIZE) * PAGE_SIZE;
  const may = { label: "make shared anonymous memory", mayFail: true };
  const huge =
    inode.hugetlb_flag === undefined ? 0 : MAP_HUGETLB | (inode.hugetlb_flag & HUGE_MASK);
  const flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | huge;
  program.call("mmap", [start, size, PROT_READ | PROT_WRITE, flags, -1, 0], may);
  const range = `${start.toString(16)}-${(start + size).toString(16)}`;
  const path = program.string(`/proc/self/map_files/${range}`);
  const opened = program.call("openat", [AT_FDCWD, path, O_RDWR, 0], may);
  program.call("dup3", [opened, fd, O_CLOEXEC], may);
  program.call("close", [opened], may);
  program.call("munmap", [start, size], may);
}

function setAttributes(
  program: Program,
  { uid, gid, mode, name }: MemfdInodeEntry,
  fd: number,
): void {
  const label = `set owner and mode of memfd ${name}`;
  program.call("fchownat", [fd, program.string(""), uid, gid, AT_EMPTY_PATH], { label });
  if (mode !== undefined) program.call("fchmod", [fd, mode & 0o7777], { label });
}

function seal(program: Program, { seals, name }: MemfdInodeEntry, fd: number): void {
  if (seals === 0 || seals === F_SEAL_SEAL) return;
  program.call("fcntl", [fd, F_ADD_SEALS, seals], { label: `seal memfd ${name}` });
}

/** F_SEAL_FUTURE_WRITE is in the way of tasks that are still to map the object for writing. */
function sealsAfterMapping({ seals, inode_id }: MemfdInodeEntry, set: LoadedSet): boolean {
  if ((seals & F_SEAL_FUTURE_WRITE) === 0) return false;
  for (const { live } of set.tasks.values()) {
    if (live?.mm.vmas.some(({ shmid }) => set.files.get(shmid)?.memfd?.inode_id === inode_id)) {
      return true;
    }
  }
  return false;
}

/**
 * Adds the call for seals that the opening program left out, because they would be in the way of the tasks' shared
 * mappings. To be made when all memory is mapped, in any task that holds a description of the object which can write, on
 * its descriptor `fd`; to do it twice is no harm.
 */
export function sealAfterMapping(
  program: Program,
  { memfd }: FileEntry,
  fd: number,
  { set }: Pick<FilesRestore, "set">,
): void {
  const inode = set.memfdInodes.get(memfd?.inode_id ?? 0);
  if (memfd === undefined || inode === undefined || !sealsAfterMapping(inode, set)) return;
  if ((memfd.flags & O_ACCMODE) === 0) return;
  const options = { label: `seal memfd ${inode.name}`, mayFail: (inode.seals & F_SEAL_SEAL) !== 0 };
  program.call("fcntl", [fd, F_ADD_SEALS, inode.seals], options);
}
