// System V shared memory: segments that are attached by id (shmop(2)). A segment is a file of the kernel's own tmpfs or hugetlbfs,
// whose inode number is the segment's id; its content is stored as that of other shared memory, under this number.
//
// A tree in an IPC namespace of its own comes with all segments of it. Of the namespace that it shares with the engine it comes
// with those that it has attached; one that is still there at restore is attached again, as a file would be opened again.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { loadSharedPagemap, type LoadedSet } from "../../images/check-set.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import { placePages } from "../../images/page-places.ts";
import type { IpcShmEntry, VmaEntry } from "../../images/schema/messages.generated.ts";
import { readMaps } from "../../proc/maps.ts";
import * as ipc from "../../sys/abi/ipc.ts";
import { O_ACCMODE, O_RDONLY } from "../../sys/abi/fcntl.ts";
import {
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  PAGE_SIZE,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
  TASK_SIZE,
} from "../../sys/abi/mman.ts";
import { errnoName } from "../../sys/errno.ts";
import { readU64 } from "../../sys/memory.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Program } from "../../tracee/program.ts";
import { writeSharedMemory } from "../files/shared-content.ts";
import { HUGE_SHIFT, hugeSizeBits } from "../memory/hugetlb.ts";
import { VMA_SYSVIPC } from "../memory/vma.ts";
import {
  asCreator,
  control,
  describe,
  failed,
  makeWithId,
  objectIds,
  setOwner,
  status,
  type IdMap,
} from "./sysv.ts";

/** The namespace of segments in the images. */
export interface SegmentsNamespace {
  readonly id: number;
  readonly ids: IdMap;
  /** Whether it is another one than the root task's, in which an id may be that of another segment. */
  readonly isNested?: boolean;
}

/** The number of a segment's content, which all segments and other shared memory of a set have in common. */
function contentId({ id: namespace, isNested }: SegmentsNamespace, id: number): number {
  return isNested === true ? namespace * 2 ** 32 + id : id;
}

/** Saves segments of the engine's own IPC namespace of the moment: all, or those that are named. */
export function writeSegments(
  images: ImageSetWriter,
  namespace: SegmentsNamespace & { readonly only?: ReadonlySet<number> },
): void {
  const image = images.open("ipcns-shm", namespace.id);
  for (const id of namespace.only ?? objectIds("shm")) {
    const bytes = status("shm", id);
    if (bytes === undefined) continue;
    const size = readU64(bytes, ipc.SHM_SEGSZ);
    const content = attachHere(id, size, ipc.SHM_RDONLY, (place) => {
      const fd = openSync(`/proc/self/map_files/${place.name}`, O_RDONLY);
      try {
        writeSharedMemory(fd, { shmid: contentId(namespace, id), size }, { images });
      } finally {
        closeSync(fd);
      }
      return place;
    });
    image.add({
      desc: describe(id, bytes, namespace.ids),
      size,
      in_pagemaps: true,
      ...(content.huge === undefined ? {} : { hugetlb_flag: ipc.SHM_HUGETLB + content.huge }),
    });
  }
  image.close();
}

/** Segments that exist for a restored tree. */
export interface Segments {
  /** The id that a saved segment has now. */
  idOf(shmid: number): number;
  /** Bytes that it takes when it is attached. */
  sizeOf(shmid: number): number;
  /** Removes what was removed at the dump already and lived only as long as it was attached. To be called when it is attached. */
  removeDead(): void;
  /** Removes what was made. */
  giveUp(): void;
}

/**
 * Makes the saved segments of a namespace in the engine's own one of the moment.
 *
 * @param options.isShared the namespace was there before: segments may exist, and are left as they are
 */
export function restoreSegments(
  set: LoadedSet,
  options: SegmentsNamespace & { readonly isShared: boolean },
): Segments {
  const entries = set.reader.has("ipcns-shm", options.id)
    ? set.reader.read("ipcns-shm", options.id)
    : [];
  const made: number[] = [];
  const dead: number[] = [];
  const places = new Map<number, { id: number; size: number }>();
  const giveUp = (): void => made.forEach(remove);
  try {
    for (const entry of entries) {
      const { id } = entry.desc;
      const isDead = (entry.desc.mode & ipc.SHM_DEST) !== 0;
      const there = options.isShared ? existing(entry) : undefined;
      // Somebody else has it attached: it is another one that nobody can ask for by its key.
      const isPrivate = there !== undefined && isDead;
      const now =
        there !== undefined && !isPrivate ? id : make(set, entry, { ...options, isPrivate });
      if (there === undefined || isPrivate) made.push(now);
      if (isDead) dead.push(now);
      places.set(id, { id: now, size: attachedSize(entry) });
    }
  } catch (error) {
    giveUp();
    throw error;
  }
  const place = (shmid: number): { id: number; size: number } => {
    const found = places.get(shmid);
    if (found !== undefined) return found;
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore: shared memory segment ${shmid} is not in the images`,
    );
  };
  return {
    idOf: (shmid) => place(shmid).id,
    sizeOf: (shmid) => place(shmid).size,
    removeDead: () => dead.forEach(remove),
    giveUp,
  };
}

/** The segments of a namespace whose room has made them: they have their old ids. */
export function savedSegments(set: LoadedSet, namespaceId: number): Segments {
  const entries = set.reader.read("ipcns-shm", namespaceId);
  return {
    idOf: (shmid) => shmid,
    sizeOf: (shmid) => {
      const entry = entries.find(({ desc }) => desc.id === shmid);
      return entry === undefined ? 0 : attachedSize(entry);
    },
    removeDead: () => undefined,
    giveUp: () => undefined,
  };
}

function remove(id: number): void {
  control("shm", { id, command: ipc.IPC_RMID, argument: 0 });
}

/** The segment as it is now, when it is the saved one: same id, key and size. */
function existing({ desc, size }: IpcShmEntry): Buffer | undefined {
  const bytes = status("shm", desc.id);
  if (bytes === undefined) return undefined;
  const isSame = bytes.readUInt32LE(ipc.PERM_KEY) === desc.key;
  return isSame && readU64(bytes, ipc.SHM_SEGSZ) === size ? bytes : undefined;
}

function make(
  set: LoadedSet,
  entry: IpcShmEntry,
  namespace: SegmentsNamespace & { readonly isPrivate: boolean },
): number {
  const { ids, isPrivate } = namespace;
  const { desc, size, hugetlb_flag = 0 } = entry;
  const what = `shared memory segment ${desc.id} (${size} bytes)`;
  let { id } = desc;
  if (isPrivate) {
    const flags = ipc.IPC_CREAT | hugetlb_flag | (desc.mode & 0o777);
    id = asCreator(desc, ids, () => trySyscall("shmget", ipc.IPC_PRIVATE, size, flags));
    if (id < 0) throw failed(`make ${what}`, "shmget", -id);
    setOwner("shm", { id, desc, what, ids });
  } else {
    const key = (desc.mode & ipc.SHM_DEST) === 0 ? desc.key : ipc.IPC_PRIVATE;
    makeWithId("shm", { desc, what, ids }, (flags) =>
      trySyscall("shmget", key, size, flags | hugetlb_flag),
    );
  }
  fill(set, { saved: contentId(namespace, desc.id), id, size });
  if ((desc.mode & ipc.SHM_LOCKED) !== 0) lock(id, what);
  return id;
}

function lock(id: number, what: string): void {
  const result = control("shm", { id, command: ipc.SHM_LOCK, argument: 0 });
  if (result < 0) log.warn(`cannot lock ${what}: shmctl: ${errnoName(-result)}`);
}

function fill(
  set: LoadedSet,
  { saved, id, size }: { readonly saved: number; readonly id: number; readonly size: number },
): void {
  const pagemap = loadSharedPagemap(set.reader, saved);
  if (pagemap === undefined) throw set.reader.missing("pagemap-shmem", saved);
  attachHere(id, size, 0, ({ address }) => {
    for (const { name, places } of placePages(set.reader, {
      kind: "pagemap-shmem",
      id: saved,
      pagemap,
    })) {
      const fd = openSync(`${set.reader.dir}/${name}`, "r");
      try {
        for (const place of places) readInto(fd, address, place);
      } finally {
        closeSync(fd);
      }
    }
  });
}

function readInto(
  fd: number,
  base: number,
  place: { readonly address: number; readonly length: number; readonly offset: number },
): void {
  for (let done = 0; done < place.length;) {
    const got = syscall(
      "pread64",
      fd,
      base + place.address + done,
      place.length - done,
      place.offset + done,
    );
    if (got === 0)
      throw new RepriseError("BAD_IMAGE", "cannot restore shared memory: its pages are cut off");
    done += got;
  }
}

/** A segment in the engine's own memory. */
interface Attached {
  readonly address: number;
  /** Its name in map_files. */
  readonly name: string;
  /** Size bits, for huge pages. */
  readonly huge: number | undefined;
}

function attachHere<T>(id: number, size: number, flags: number, use: (place: Attached) => T): T {
  const address = trySyscall("shmat", id, 0, flags);
  if (address < 0)
    throw failed(`attach shared memory segment ${id} (${size} bytes)`, "shmat", -address);
  try {
    const area = readMaps(process.pid).find(({ start }) => start === address);
    if (area === undefined) throw failed(`find shared memory segment ${id}`, "shmat", 0);
    const name = `${area.start.toString(16)}-${area.end.toString(16)}`;
    return use({ address, name, huge: hugeSizeBits(area) });
  } finally {
    trySyscall("shmdt", address);
  }
}

function attachedSize({ size, hugetlb_flag }: IpcShmEntry): number {
  const page =
    hugetlb_flag === undefined
      ? PAGE_SIZE
      : 2 ** (Math.floor(hugetlb_flag / 2 ** HUGE_SHIFT) & 0x3f);
  return Math.ceil(size / page) * page;
}

/** Whether an area is of a segment. */
export function isSegment({ status: bits }: VmaEntry): boolean {
  return (bits & VMA_SYSVIPC) !== 0;
}

/**
 * Adds the calls that attach a task's segments. One attachment may be several areas (mprotect) and have holes (munmap): it is made
 * whole, and what is not in the images goes again. Where something else lies in a hole, which may be there already, it is made
 * elsewhere and its parts are moved.
 */
export function attachSegments(
  program: Program,
  vmas: readonly VmaEntry[],
  segments: Segments,
): void {
  const attachments = new Map<string, VmaEntry[]>();
  for (const vma of vmas.filter(isSegment)) {
    const key = `${vma.shmid}:${vma.start - vma.pgoff}`;
    attachments.set(key, [...(attachments.get(key) ?? []), vma]);
  }
  for (const parts of attachments.values()) {
    const attachment = describeAttachment(parts, segments);
    const { base, reach } = attachment;
    const isFree = vmas.every(
      (vma) => vma.end <= base || vma.start >= base + reach || parts.includes(vma),
    );
    if (isFree) attachInPlace(program, attachment);
    else attachInParts(program, attachment, findSpare(vmas, reach));
  }
}

interface Attachment {
  readonly parts: readonly VmaEntry[];
  readonly base: number;
  readonly size: number;
  /** Bytes of the areas, if they reach beyond the end of the segment (mremap). */
  readonly reach: number;
  readonly id: number;
  /** Of shmat(2), and the protection that they give. */
  readonly flags: number;
  readonly given: number;
  readonly label: string;
}

function describeAttachment(parts: readonly VmaEntry[], segments: Segments): Attachment {
  const { shmid, start, pgoff } = parts[0] as VmaEntry;
  const writes = parts.some(
    ({ prot, fdflags }) => (prot & PROT_WRITE) !== 0 || ((fdflags ?? 0) & O_ACCMODE) !== 0,
  );
  const executes = parts.some(({ prot }) => (prot & PROT_EXEC) !== 0);
  const size = segments.sizeOf(shmid);
  const base = start - pgoff;
  return {
    parts: parts.toSorted((a, b) => a.start - b.start),
    base,
    size,
    reach: Math.max(size, ...parts.map(({ end }) => end - base)),
    id: segments.idOf(shmid),
    flags: (writes ? 0 : ipc.SHM_RDONLY) | (executes ? ipc.SHM_EXEC : 0),
    given: PROT_READ | (writes ? PROT_WRITE : 0) | (executes ? PROT_EXEC : 0),
    label: `attach shared memory segment ${shmid}`,
  };
}

function attachInPlace(program: Program, attachment: Attachment): void {
  const { parts, base, reach, label } = attachment;
  attachWhole(program, attachment, base);
  let at = base;
  for (const { start, end } of parts) {
    if (start > at) program.call("munmap", [at, start - at], { label });
    at = end;
  }
  if (at < base + reach) program.call("munmap", [at, base + reach - at], { label });
  protectParts(program, attachment);
}

function attachWhole(program: Program, attachment: Attachment, at: number): void {
  const { size, reach, id, flags, label } = attachment;
  program.call("shmat", [id, at, flags], { label, expect: at });
  if (reach > size) program.call("mremap", [at, size, reach, 0, 0], { label, expect: at });
}

/** MREMAP_FIXED clears its target: the attachment is made where the task has nothing, so that no part goes onto another. */
function attachInParts(program: Program, attachment: Attachment, spare: number): void {
  const { parts, base, reach, label } = attachment;
  attachWhole(program, attachment, spare);
  for (const { start, end } of parts) {
    const length = end - start;
    const from = spare + start - base;
    const moved = MREMAP_MAYMOVE | MREMAP_FIXED;
    program.call("mremap", [from, length, length, moved, start], { label, expect: start });
  }
  program.call("munmap", [spare, reach], { label });
  protectParts(program, attachment);
}

/** The highest address with so much room: the work area of the restore is in the lowest hole (plan.ts). */
function findSpare(vmas: readonly VmaEntry[], size: number): number {
  let from = TASK_SIZE;
  const used = vmas.filter(({ end }) => end <= TASK_SIZE).toSorted((a, b) => b.end - a.end);
  for (const { start, end } of used) {
    if (from - end >= size + 2 * SPARE_MARGIN) break;
    from = Math.min(from, start);
  }
  return Math.floor((from - SPARE_MARGIN - size) / SPARE_MARGIN) * SPARE_MARGIN;
}

/** Largest of the huge pages that a segment may be made of (1 GiB). */
const SPARE_MARGIN = 1024 * 1024 * 1024;

function protectParts(program: Program, { parts, given, label }: Attachment): void {
  for (const { start, end, prot } of parts)
    if (prot !== given) program.call("mprotect", [start, end - start, prot], { label });
}
