// A VMA: one range of a task's memory with one set of properties (mm(7), /proc/PID/smaps, CRIU's vma_entry). At dump each
// line of smaps becomes an entry; at restore each entry becomes a mapping at its old address.

import { RepriseError } from "../../errors.ts";
import { encodeAhead } from "../../images/codec.ts";
import { log } from "../../log.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import type { SmapsVma, VmFlag } from "../../proc/smaps.ts";
import * as mm from "../../sys/abi/mman.ts";
import { O_RDONLY, O_RDWR } from "../../sys/abi/fcntl.ts";
import { PR_SET_VMA, PR_SET_VMA_ANON_NAME } from "../../sys/abi/sched.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { unsupportedMemory } from "../files/refusals.ts";
import { isRingArea } from "../io-uring/ring-memory.ts";
import type { FrozenTask } from "../task/task.ts";
import { HUGE_MASK, hugeSizeBits, isPrivateHuge } from "./hugetlb.ts";
import { findMark, type MarkedVdso } from "./vdso-proxy.ts";

/** vma_entry.status: what kind of area it is. */
export const VMA_REGULAR = 0x1;
export const VMA_VSYSCALL = 0x4;
export const VMA_VDSO = 0x8;
const VMA_HEAP = 0x20;
export const VMA_FILE_PRIVATE = 0x40;
export const VMA_FILE_SHARED = 0x80;
const VMA_ANON_SHARED = 0x100;
export const VMA_ANON_PRIVATE = 0x200;
export const VMA_SYSVIPC = 0x400;
export const VMA_SOCKET = 0x800;
export const VMA_VVAR = 0x1000;
export const VMA_AIORING = 0x2000;
const VMA_MEMFD = 0x4000;
export const VMA_GUARD = 0x10000;

/** A VMA that is dumped: its line of smaps and its entry. */
export interface DumpedVma {
  readonly area: SmapsVma;
  readonly entry: VmaEntry;
  /** Its task has an area of the kernel's for probed instructions: breakpoints.ts. */
  readonly uprobes?: boolean;
}

/** Gives the file that is mapped. */
export type MappedFileIds = (area: SmapsVma, openFlags: number) => MappedFile;

/** The file behind an area. */
export interface MappedFile {
  readonly id: number;
  /** It is a memfd, or shared anonymous memory. */
  readonly memfd: boolean;
  /** Where the area begins in what stands for the file at restore. @default its offset */
  readonly offset?: number;
}

/**
 * Turns the areas of a task into entries, in address order.
 *
 * @throws RepriseError UNSUPPORTED naming the area that cannot be saved.
 */
export function collectVmas(
  task: Pick<FrozenTask, "pid">,
  areas: readonly SmapsVma[],
  fileIds: MappedFileIds,
): DumpedVma[] {
  const vmas: DumpedVma[] = [];
  const marked = findMark(task.pid, areas);
  const uprobes = areas.some(isUprobesArea);
  for (const area of areas) {
    // In the way of a task from another kernel: the vdso that its old one leads to is made anew by each restore.
    if (marked !== undefined && /^\[v(?:dso|var|var_vclock)\]$/.test(area.path)) continue;
    // Made by the kernel when a probe is hit, and made anew.
    if (isUprobesArea(area)) continue;
    const entry = withOldVdso(vmaEntry(task, area, fileIds), marked);
    const before = vmas.at(-1);
    // [vvar] and [vvar_vclock] are one mapping to CRIU.
    if (
      before !== undefined &&
      (entry.status & VMA_VVAR) !== 0 &&
      (before.entry.status & VMA_VVAR) !== 0 &&
      before.entry.end === entry.start
    ) {
      vmas[vmas.length - 1] = { area: before.area, entry: { ...before.entry, end: entry.end } };
    } else {
      vmas.push({ area, entry, ...(uprobes ? { uprobes } : {}) });
    }
  }
  return vmas;
}

/** The saved vdso of a task that came from another kernel looks like any other memory. */
function withOldVdso(entry: VmaEntry, marked: MarkedVdso | undefined): VmaEntry {
  if (entry.start === marked?.oldVdso) return { ...entry, status: entry.status | VMA_VDSO };
  if (entry.start === marked?.oldVvar) return { ...entry, status: entry.status | VMA_VVAR };
  return entry;
}

/** Whether an area's own pages can be in the images (shared ones belong to their file). */
export function hasPrivatePages(entry: VmaEntry): boolean {
  // The pages of an AIO ring are the kernel's, but nobody else has them.
  const kind = VMA_ANON_PRIVATE | VMA_FILE_PRIVATE | VMA_AIORING;
  if (isDroppable(entry) || (entry.status & (VMA_VSYSCALL | VMA_VVAR)) !== 0) return false;
  return (entry.status & kind) !== 0;
}

/** Memory that the kernel may empty at any time (MAP_DROPPABLE): its content is not saved. */
function isDroppable({ flags }: VmaEntry): boolean {
  return (flags & (mm.MAP_SHARED | mm.MAP_PRIVATE | mm.MAP_DROPPABLE)) === mm.MAP_DROPPABLE;
}

/** The entry for a range of MADV_GUARD_INSTALL pages: it stands after all others. */
export function guardEntry(range: { start: number; end: number }): VmaEntry {
  return { ...range, pgoff: 0, shmid: 0, prot: 0, flags: 0, status: VMA_GUARD, fd: -1 };
}

/** Entries that were made ahead. */
const prepared = new WeakMap<SmapsVma, VmaEntry>();

/** Makes and encodes the entry of an area of plain private memory, for when somebody waits for it. Others depend on files. */
export function prepareVma(area: SmapsVma): void {
  if (area.inode !== 0n || area.shared || area.path !== "") return;
  const entry = entryOf(area, () => ({ id: 0, memfd: false }));
  encodeAhead("vma_entry", entry);
  prepared.set(area, entry);
}

function vmaEntry(task: Pick<FrozenTask, "pid">, area: SmapsVma, fileIds: MappedFileIds): VmaEntry {
  refuseSpecial(task, area);
  if (area.protectionKey !== 0)
    log.loss(
      `memory at ${area.start.toString(16)} of pid ${task.pid}: its protection key ${area.protectionKey} is not saved`,
    );
  return prepared.get(area) ?? entryOf(area, fileIds);
}

function entryOf(area: SmapsVma, fileIds: MappedFileIds): VmaEntry {
  const base = {
    start: area.start,
    end: area.end,
    pgoff: 0,
    shmid: 0,
    prot:
      (area.read ? mm.PROT_READ : 0) |
      (area.write ? mm.PROT_WRITE : 0) |
      (area.exec ? mm.PROT_EXEC : 0),
    fd: -1,
    ...extras(area),
  };
  const sharing = area.vmFlags.includes("dp") ? mm.MAP_DROPPABLE : mm.MAP_PRIVATE;
  const anonymous = sharing | mm.MAP_ANONYMOUS | flagBits(area);
  switch (area.path) {
    case "[vsyscall]":
      return {
        ...base,
        flags: mm.MAP_PRIVATE | mm.MAP_ANONYMOUS,
        status: VMA_VSYSCALL | VMA_ANON_PRIVATE,
      };
    case "[vdso]":
      return { ...base, flags: anonymous, status: VMA_REGULAR | VMA_VDSO | VMA_ANON_PRIVATE };
    case "[vvar]":
    case "[vvar_vclock]":
      return { ...base, flags: anonymous, status: VMA_REGULAR | VMA_VVAR | VMA_ANON_PRIVATE };
    case "[heap]":
      return { ...base, flags: anonymous, status: VMA_REGULAR | VMA_HEAP | VMA_ANON_PRIVATE };
    default:
      if (area.path.startsWith("/[aio]"))
        return { ...base, flags: mm.MAP_SHARED, status: VMA_AIORING, fdflags: O_RDWR };
      if (isSysvSegment(area)) return { ...base, ...segmentPart(area) };
      return area.inode === 0n || isPrivateDevZero(area) || isPrivateHuge(area)
        ? { ...base, flags: anonymous, status: VMA_REGULAR | VMA_ANON_PRIVATE }
        : { ...base, ...mappedFile(area, fileIds) };
  }
}

function mappedFile(
  area: SmapsVma,
  fileIds: MappedFileIds,
): Pick<VmaEntry, "pgoff" | "shmid" | "flags" | "status" | "fdflags"> {
  // A shared mapping that may become writable (VM_MAYWRITE) came from a descriptor open for writing.
  const fdflags = area.shared && area.vmFlags.includes("mw") ? O_RDWR : O_RDONLY;
  const { id, memfd, offset = area.offset } = fileIds(area, fdflags);
  if (isSocketRing(area)) {
    const flags = area.shared ? mm.MAP_SHARED : mm.MAP_PRIVATE;
    return { pgoff: area.offset, shmid: id, flags, status: VMA_REGULAR | VMA_SOCKET };
  }
  const kind = (area.shared ? VMA_FILE_SHARED : VMA_FILE_PRIVATE) | (memfd ? VMA_MEMFD : 0);
  return {
    pgoff: offset,
    shmid: id,
    flags: (area.shared ? mm.MAP_SHARED : mm.MAP_PRIVATE) | flagBits(area),
    status: VMA_REGULAR | kind,
    fdflags,
  };
}

/** The kernel's own pages for instructions under probes: "[uprobes]", and from Linux 6.18 on "[uprobes-trampoline]". */
export function isUprobesArea({ path }: Pick<SmapsVma, "path">): boolean {
  return path.startsWith("[uprobes");
}

/** The rings of a packet socket; they are the kernel's to fill. */
export function isSocketRing({ path }: SmapsVma): boolean {
  return path.startsWith("socket:");
}

/** System V shared memory: the inode number is the segment's id (objects/ipc/shm.ts). */
function isSysvSegment(area: SmapsVma): boolean {
  const { devMajor, path } = area;
  return devMajor === 0 && path.startsWith("/SYSV") && /^\/SYSV[0-9a-f]{8} \(deleted\)$/.test(path);
}

function segmentPart(
  area: SmapsVma,
): Pick<VmaEntry, "pgoff" | "shmid" | "flags" | "status" | "fdflags"> {
  return {
    pgoff: area.offset,
    shmid: Number(area.inode),
    flags: mm.MAP_SHARED | mm.MAP_ANONYMOUS | flagBits(area),
    status: VMA_REGULAR | VMA_ANON_SHARED | VMA_SYSVIPC,
    // A segment that was attached read-only can never be made writable.
    fdflags: area.vmFlags.includes("mw") ? O_RDWR : O_RDONLY,
  };
}

/** A private mapping of /dev/zero is anonymous memory with a name. */
function isPrivateDevZero(area: SmapsVma): boolean {
  return !area.shared && area.path === "/dev/zero";
}

function refuseSpecial(task: Pick<FrozenTask, "pid">, area: SmapsVma): void {
  const refuse = (what: string, hint: string): never => {
    const range = `${area.start.toString(16)}-${area.end.toString(16)}`;
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump memory ${range} of pid ${task.pid}: it is ${what} (${area.path})`,
      {
        pid: task.pid,
        hint,
      },
    );
  };
  if (area.path.startsWith("anon_inode:") && !isRingArea(area))
    throw unsupportedMemory(task.pid, area);
  // Pages that are not there yet would be saved as zeros.
  if (area.vmFlags.includes("um") || area.vmFlags.includes("ui"))
    refuse(
      "filled on demand",
      "A lazy-pages daemon still fills it, or the program itself by a userfaultfd: try again when that has ended.",
    );
  const ownPages = area.path.startsWith("[v") || isSocketRing(area) || isRingArea(area);
  if (!ownPages && (area.vmFlags.includes("io") || area.vmFlags.includes("pf"))) {
    refuse("memory of a device", "Memory-mapped devices cannot be saved.");
  }
}

const MAP_BITS: readonly (readonly [VmFlag, number])[] = [
  ["gd", mm.MAP_GROWSDOWN],
  ["lo", mm.MAP_LOCKED],
  ["nr", mm.MAP_NORESERVE],
  ["ht", mm.MAP_HUGETLB],
];

function flagBits(area: SmapsVma): number {
  const { mapBits, isHuge } = factsOf(area.vmFlags);
  return isHuge ? mapBits | (hugeSizeBits(area) ?? 0) : mapBits;
}

const MADVICE: readonly (readonly [VmFlag, number])[] = [
  ["sr", mm.MADV_SEQUENTIAL],
  ["rr", mm.MADV_RANDOM],
  ["dc", mm.MADV_DONTFORK],
  ["mg", mm.MADV_MERGEABLE],
  ["hg", mm.MADV_HUGEPAGE],
  ["nh", mm.MADV_NOHUGEPAGE],
  ["dd", mm.MADV_DONTDUMP],
  ["wf", mm.MADV_WIPEONFORK],
];

function extras(area: SmapsVma): Pick<VmaEntry, "madv" | "anon_name" | "sealed" | "lock_on_fault"> {
  const { more } = factsOf(area.vmFlags);
  if (!area.path.startsWith("[anon")) return more;
  const name = /^\[anon(?:_shmem)?:(.*)\]$/.exec(area.path)?.[1];
  return name === undefined ? more : { ...more, anon_name: name };
}

/** What the flags of an area say. */
interface FlagFacts {
  readonly mapBits: number;
  readonly isHuge: boolean;
  readonly more: Pick<VmaEntry, "madv" | "sealed" | "lock_on_fault">;
}

/** Areas with equal flags share one array (proc/smaps.ts), and there may be tens of thousands of them. */
const facts = new WeakMap<readonly VmFlag[], FlagFacts>();

function factsOf(flags: readonly VmFlag[]): FlagFacts {
  let known = facts.get(flags);
  if (known === undefined) facts.set(flags, (known = readFlags(flags)));
  return known;
}

function readFlags(flags: readonly VmFlag[]): FlagFacts {
  const has = (flag: VmFlag): boolean => flags.includes(flag);
  const madv = MADVICE.reduce(
    (bits, [flag, advice]) => (has(flag) ? bits | (1n << BigInt(advice)) : bits),
    0n,
  );
  return {
    mapBits: MAP_BITS.reduce((bits, [flag, bit]) => (has(flag) ? bits | bit : bits), 0),
    isHuge: has("ht"),
    more: {
      ...(madv === 0n ? {} : { madv }),
      ...(has("sl") ? { sealed: true } : {}),
      ...(has("lf") ? { lock_on_fault: true } : {}),
    },
  };
}

/** Whether restore makes this area by mmap (vdso, vvar and AIO rings come from the kernel, guards from madvise). */
export function isMapped(entry: VmaEntry): boolean {
  return (entry.status & (VMA_VSYSCALL | VMA_VDSO | VMA_VVAR | VMA_AIORING | VMA_GUARD)) === 0;
}

export interface MapOptions {
  /** The descriptor of its file. */
  readonly file?: Argument | undefined;
  /** Whether pages come into it. */
  readonly isFilled: boolean;
}

/**
 * Adds the call that maps an area, writable if pages have to be filled in. One without pages is never made writable: the kernel
 * grants any reservation without access (PROT_NONE), but not as much writable memory.
 */
export function mapVma(program: Program, entry: VmaEntry, { file, isFilled }: MapOptions): void {
  const fillable = isFilled && hasPrivatePages(entry) ? mm.PROT_READ | mm.PROT_WRITE : 0;
  const keep =
    mm.MAP_SHARED |
    mm.MAP_PRIVATE |
    mm.MAP_DROPPABLE |
    mm.MAP_ANONYMOUS |
    mm.MAP_GROWSDOWN |
    mm.MAP_HUGETLB |
    HUGE_MASK |
    mm.MAP_NORESERVE;
  program.call(
    "mmap",
    [
      entry.start,
      entry.end - entry.start,
      entry.prot | fillable,
      (entry.flags & keep) | mm.MAP_FIXED_NOREPLACE,
      file ?? -1,
      file === undefined ? 0 : entry.pgoff,
    ],
    { label: () => `map ${describeVma(entry)}` },
  );
}

/** Adds the calls that give an area its protection, advice, locks and name. */
export function finishVma(
  program: Program,
  entry: VmaEntry,
  { isFilled }: Pick<MapOptions, "isFilled">,
): void {
  const length = entry.end - entry.start;
  const fillable = mm.PROT_READ | mm.PROT_WRITE;
  const label = (): string => `restore the properties of ${describeVma(entry)}`;
  if (isFilled && hasPrivatePages(entry) && (entry.prot & fillable) !== fillable) {
    program.call("mprotect", [entry.start, length, entry.prot], { label });
  }
  for (const [, advice] of MADVICE) {
    if (((entry.madv ?? 0n) & (1n << BigInt(advice))) !== 0n)
      program.call("madvise", [entry.start, length, advice], { label });
  }
  if ((entry.flags & mm.MAP_LOCKED) !== 0) lockVma(program, entry, label);
  if (entry.anon_name !== undefined) {
    const name = program.string(entry.anon_name);
    program.call("prctl", [PR_SET_VMA, PR_SET_VMA_ANON_NAME, entry.start, length, name], {
      label,
      mayFail: true,
    });
  }
}

/**
 * Adds the calls that lock an area. The kernel marks it first and brings in all of its pages then; where there is no access, and
 * behind the end of a file, it says ENOMEM to that, and the mark stays (mm/mlock.c).
 */
function lockVma(program: Program, entry: VmaEntry, label: () => string): void {
  const lock = (flags: number, options: { mayFail?: boolean } = {}): void =>
    void program.call("mlock2", [entry.start, entry.end - entry.start, flags], {
      label,
      ...options,
    });
  if (entry.lock_on_fault === true) {
    lock(mm.MLOCK_ONFAULT);
    return;
  }
  const hasGaps = entry.prot === 0 || (entry.status & (VMA_FILE_PRIVATE | VMA_FILE_SHARED)) !== 0;
  // Whether it may be locked at all is seen from a mark that brings in nothing.
  if (hasGaps) lock(mm.MLOCK_ONFAULT);
  lock(0, { mayFail: hasGaps });
}

/** Adds the last step of all: a sealed area can never be changed again. */
export function sealVma(program: Program, entry: VmaEntry): void {
  if (entry.sealed === true) {
    program.call("mseal", [entry.start, entry.end - entry.start, 0], {
      label: `seal ${describeVma(entry)}`,
    });
  }
}

/** Adds the call that installs guard pages in an area that is mapped already. */
export function installGuard(program: Program, entry: VmaEntry): void {
  program.call("madvise", [entry.start, entry.end - entry.start, mm.MADV_GUARD_INSTALL], {
    label: `install guard pages at ${entry.start.toString(16)}`,
    hint: "Guard pages need Linux 6.13 or later.",
  });
}

/** For messages: "memory 7f00…-7f01…". */
function describeVma(entry: VmaEntry): string {
  return `memory ${entry.start.toString(16)}-${entry.end.toString(16)}`;
}
