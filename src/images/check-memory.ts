// Checks of mappings and saved pages. A pagemap may join pages of neighbouring mappings into one run,
// so what is checked is that private mappings cover each run without a gap.
import { badSet } from "./bad-set.ts";
import { regularFile, type FileIndex } from "./check-files.ts";
import type { ImageSetReader } from "./image-set-reader.ts";
import { imageName } from "./names.ts";
import {
  PAGE_SIZE,
  PE_LAZY,
  PE_PARENT,
  PE_PRESENT,
  type Pagemap,
  type PagemapKind,
  type PageRun,
} from "./pagemap.ts";
import { FdTypes, type MmEntry, type VmaEntry } from "./schema/messages.generated.ts";

/** Status bits of a vma_entry, as CRIU numbers them. */
const VmaStatus = {
  REGULAR: 0x1,
  STACK: 0x2,
  VSYSCALL: 0x4,
  VDSO: 0x8,
  HEAP: 0x20,
  FILE_PRIVATE: 0x40,
  FILE_SHARED: 0x80,
  ANON_SHARED: 0x100,
  ANON_PRIVATE: 0x200,
  SYSVIPC: 0x400,
  SOCKET: 0x800,
  VVAR: 0x1000,
  AIORING: 0x2000,
  MEMFD: 0x4000,
  SHSTK: 0x8000,
  GUARD: 0x10000,
  EXT_PLUGIN: 0x8000000,
} as const;

/** The end of user space with five-level page tables; the kernel has the last word below it. */
const USER_SPACE_END = 2 ** 56 - PAGE_SIZE;
const VSYSCALL_START = 2 ** 64 - 10 * 1024 * 1024;
const MAX_MAPPINGS = 4_000_000;
const MAX_AUXV_WORDS = 64;

/** Mappings sorted, apart, page aligned, in user space; files of the right type behind them. */
export function checkMappings(
  mm: MmEntry,
  { pid, files }: { pid: number; files: FileIndex },
): void {
  const name = `mm-${pid}.img`;
  if (mm.vmas.length > MAX_MAPPINGS) throw badSet(`${name} has ${mm.vmas.length} mappings`);
  if (mm.mm_saved_auxv.length > MAX_AUXV_WORDS)
    throw badSet(`${name} has too long an auxiliary vector`);
  regularFile(files, mm.exe_file_id, `${name}: the executable`);
  let end = 0;
  for (const vma of mm.vmas) {
    checkRange(vma, name);
    if ((vma.status & (VmaStatus.GUARD | VmaStatus.VSYSCALL)) !== 0) continue;
    if (vma.start < end)
      throw badSet(`${name}: mappings overlap or are unsorted at ${hex(vma.start)}`);
    end = vma.end;
    checkBacking(vma, { name, files });
  }
}

function checkRange({ start, end, pgoff, status }: VmaEntry, name: string): void {
  const aligned = start % PAGE_SIZE === 0 && end % PAGE_SIZE === 0;
  if (!aligned || start >= end)
    throw badSet(`${name}: impossible mapping ${hex(start)}-${hex(end)}`);
  if (pgoff % PAGE_SIZE !== 0)
    throw badSet(`${name}: mapping ${hex(start)} has the offset ${pgoff}`);
  const isVsyscall = (status & VmaStatus.VSYSCALL) !== 0 && start === VSYSCALL_START;
  if (end > USER_SPACE_END && !isVsyscall) {
    throw badSet(`${name}: mapping ${hex(start)}-${hex(end)} is outside of user space`);
  }
}

function checkBacking(vma: VmaEntry, { name, files }: { name: string; files: FileIndex }): void {
  const { start, status, shmid } = vma;
  const what = `${name}: mapping ${hex(start)}`;
  if ((status & (VmaStatus.EXT_PLUGIN | VmaStatus.SYSVIPC)) !== 0) return;
  if ((status & VmaStatus.SOCKET) !== 0) {
    if (files.files.get(shmid)?.type !== FdTypes.PACKETSK)
      throw badSet(`${what}: no packet socket ${shmid}`);
  } else if ((status & VmaStatus.MEMFD) !== 0) {
    if (files.files.get(shmid)?.type !== FdTypes.MEMFD) throw badSet(`${what}: no memfd ${shmid}`);
  } else if ((status & (VmaStatus.FILE_PRIVATE | VmaStatus.FILE_SHARED)) !== 0) {
    if (files.files.get(shmid)?.reprise_io_uring !== undefined) return;
    regularFile(files, shmid, what);
  }
}

export interface PagesToCheck {
  readonly kind: PagemapKind;
  readonly id: number;
  readonly pagemap: Pagemap;
  /** Mappings that must cover the pages; none for shared memory. */
  readonly mm?: MmEntry;
}

/** Runs ascending and inside private mappings, the pages file long enough, the parent complete. */
export function checkPages(reader: ImageSetReader, { kind, id, pagemap, mm }: PagesToCheck): void {
  const name = imageName(kind, id);
  checkRuns(pagemap.runs, name);
  if (mm !== undefined)
    checkCovered(pagemap.runs, { by: privateRanges(mm), name, what: "a private mapping" });
  if (pagemap.pagesSize > 0) {
    using pages = reader.openRaw("pages", pagemap.pagesId);
    if (pages.size < pagemap.pagesSize) {
      throw badSet(
        `${pages.name} is cut off: ${pages.size} bytes, ${name} needs ${pagemap.pagesSize}`,
      );
    }
  }
  checkParent(reader, { kind, id, pagemap });
}

function checkRuns(runs: readonly PageRun[], name: string): void {
  let end = 0;
  for (const { vaddr, pages, flags } of runs) {
    if (vaddr % PAGE_SIZE !== 0 || pages === 0)
      throw badSet(`${name}: impossible run at ${hex(vaddr)}`);
    if (vaddr < end) throw badSet(`${name}: runs overlap or are unsorted at ${hex(vaddr)}`);
    if ((flags & ~(PE_PARENT | PE_LAZY | PE_PRESENT)) !== 0) {
      throw badSet(`${name}: run at ${hex(vaddr)} has unknown flags ${hex(flags)}`);
    }
    end = vaddr + pages * PAGE_SIZE;
    if (end > USER_SPACE_END)
      throw badSet(`${name}: run at ${hex(vaddr)} is outside of user space`);
  }
}

interface Range {
  readonly start: number;
  readonly end: number;
}

function privateRanges({ vmas }: MmEntry): Range[] {
  const kinds = VmaStatus.ANON_PRIVATE | VmaStatus.FILE_PRIVATE | VmaStatus.AIORING;
  return vmas.filter(({ status }) => (status & kinds) !== 0 && (status & VmaStatus.VSYSCALL) === 0);
}

/** Both lists ascend. */
function checkCovered(
  runs: readonly PageRun[],
  { by, name, what }: { by: readonly Range[]; name: string; what: string },
): void {
  let index = 0;
  for (const { vaddr, pages } of runs) {
    const end = vaddr + pages * PAGE_SIZE;
    let covered = vaddr;
    while (covered < end) {
      const range = by[index];
      if (range === undefined || range.start > covered) {
        throw badSet(`${name}: page ${hex(covered)} is not inside ${what}`);
      }
      if (range.end <= covered) index += 1;
      else covered = Math.min(range.end, end);
    }
  }
}

function checkParent(reader: ImageSetReader, { kind, id, pagemap }: PagesToCheck): void {
  const wanted = pagemap.runs.filter(({ flags }) => (flags & PE_PARENT) !== 0);
  if (wanted.length === 0) return;
  const name = imageName(kind, id);
  const parent = reader.parent();
  const older = parent?.readPagemap(kind, id);
  if (parent === undefined || older === undefined) {
    throw badSet(`${name}: pages are in the parent set, which is not there`);
  }
  const by = older.runs.map(({ vaddr, pages }) => ({
    start: vaddr,
    end: vaddr + pages * PAGE_SIZE,
  }));
  checkPages(parent, { kind, id, pagemap: older });
  checkCovered(wanted, { by, name, what: "the pages of the parent set" });
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
