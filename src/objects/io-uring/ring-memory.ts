// Areas of memory that are a ring's. A program maps its ring from the descriptor, at offsets that name the ring's parts; a restored ring
// lives in a memory file with a name of ours, at the same offsets (ring.ts).

import { RepriseError } from "../../errors.ts";
import { readFds } from "../../proc/fd.ts";
import type { SmapsVma } from "../../proc/smaps.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { kernelMemory } from "../files/kernel-view.ts";
import { unsupportedMemory } from "../files/refusals.ts";
import { ringMemoryOf } from "./context.ts";

/** What /proc says of a descriptor of a ring. */
export const RING_LINK = "anon_inode:[io_uring]";
/** Name of the memory files of restored rings. */
export const MEMORY_NAME = "[io_uring]";

const MEMORY_PATH = `/memfd:${MEMORY_NAME} (deleted)`;

/** Whether an area is a ring's. */
export function isRingArea({ path }: Pick<SmapsVma, "path">): boolean {
  return path === RING_LINK || path === MEMORY_PATH;
}

/** Where an area's part of the ring lies in the memory of a restored one: both queues are one part, by whatever offset. */
function ringOffset({ offset }: Pick<SmapsVma, "offset">): number {
  const isQueue = Math.floor(offset / uring.IORING_OFF_CQ_RING) === 1;
  return isQueue ? offset - uring.IORING_OFF_CQ_RING : offset;
}

/** The open rings of a task. There may be many, and each has several areas. */
interface OpenRings {
  readonly byInode: ReadonlyMap<bigint, OpenFile>;
  /** By the inode of the memory file that the ring has. */
  byMemory(inode: bigint): OpenFile | undefined;
}

const open = new WeakMap<FilesDump, Map<number, OpenRings>>();

function openRingsOf(pid: number, dump: FilesDump, look: () => readonly OpenFile[]): OpenRings {
  const known = open.get(dump) ?? new Map<number, OpenRings>();
  open.set(dump, known);
  let rings = known.get(pid);
  if (rings === undefined) known.set(pid, (rings = indexRings(look(), dump)));
  return rings;
}

function indexRings(rings: readonly OpenFile[], dump: FilesDump): OpenRings {
  let memories: Map<bigint | undefined, OpenFile> | undefined;
  return {
    byInode: new Map(rings.map((ring) => [ring.stat.inode, ring])),
    byMemory: (inode) => {
      memories ??= new Map(
        rings.map((ring) => [ringMemoryOf(dump.borrow(ring), kernelMemory(dump))?.inode, ring]),
      );
      return memories.get(inode);
    },
  };
}

/**
 * The ring that an area belongs to, among the open rings of its task.
 *
 * @throws RepriseError UNSUPPORTED
 */
export function ringOfArea(
  pid: number,
  area: SmapsVma,
  { rings: look, dump }: { readonly rings: () => readonly OpenFile[]; readonly dump: FilesDump },
): OpenFile {
  const rings = openRingsOf(pid, dump, look);
  const found =
    area.path === RING_LINK ? rings.byInode.get(area.inode) : rings.byMemory(area.inode);
  if (found === undefined) throw unsupportedMemory(pid, area);
  if (!area.shared || ringOffset(area) >= END_OF_PARTS) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump memory ${area.start.toString(16)}-${area.end.toString(16)} of pid ${pid}: it is a part of an io_uring ring that cannot be saved (${area.path}, fd ${found.fd})`,
      { pid, fd: found.fd, hint: "Let the process unmap it before the dump." },
    );
  }
  return found;
}

/** An area of a ring's memory, and which part of that it is. */
export interface RingArea {
  readonly pid: number;
  readonly area: SmapsVma;
  readonly offset: number;
}

const areas = new WeakMap<FilesDump, Map<number, RingArea[]>>();

/** Remembers an area of the ring with this id. @returns its place in the ring's memory */
export function noteRingArea(
  dump: FilesDump,
  id: number,
  { pid, area }: { readonly pid: number; readonly area: SmapsVma },
): number {
  const offset = ringOffset(area);
  const known = areas.get(dump) ?? new Map<number, RingArea[]>();
  areas.set(dump, known);
  known.set(id, [...(known.get(id) ?? []), { pid, area, offset }]);
  return offset;
}

/** The areas of a ring that have been seen so far. */
export function areasOf(dump: FilesDump, id: number): readonly RingArea[] {
  return areas.get(dump)?.get(id) ?? [];
}

const owned = new WeakMap<FilesDump, Map<number, OpenFile>>();

/** Remembers a ring that is made by its owner, which no other process can have open. */
export function noteOwned(dump: FilesDump, id: number, file: OpenFile): void {
  const known = owned.get(dump) ?? new Map<number, OpenFile>();
  owned.set(dump, known.set(id, file));
}

/**
 * Checks that rings that belong to a process are open there alone.
 *
 * @throws RepriseError UNSUPPORTED
 */
export function checkRingOwners(
  dump: FilesDump,
  tasks: readonly { readonly pid: number; readonly ids: readonly number[] }[],
): void {
  for (const [id, { task, fd, target }] of owned.get(dump) ?? []) {
    const other = tasks.find(({ pid, ids }) => pid !== task.pid && ids.includes(id));
    if (other === undefined) continue;
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump fd ${fd} of pid ${task.pid} (${target}): an io_uring ring for one process or thread alone is open in pid ${other.pid}, too`,
      { pid: task.pid, fd, hint: "Let the other process close it before the dump." },
    );
  }
}

/**
 * A thread of the kernel that works for a process's rings (PF_IO_WORKER) is not stopped, which would end its wait with EINTR: what it
 * works on is a request under way, by which the ring is refused, and it may also have nothing to do.
 *
 * @throws RepriseError UNSUPPORTED where the process has no ring open, in which one could look
 */
export function checkWorker(pid: number, tid: number): void {
  if (readFds(pid).some(({ target }) => target === RING_LINK)) return;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump pid ${pid}: thread ${tid} of the kernel works on requests of an io_uring ring that is not open any more`,
    { pid, hint: "Dump when its requests have come to their end." },
  );
}

/** Behind the entries come buffers. */
const END_OF_PARTS = uring.IORING_OFF_SQES + uring.IORING_OFF_CQ_RING;
