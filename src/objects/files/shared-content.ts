// The content of a shared memory object (memfd, shared anonymous memory) in the images: pagemap-shmem-N with the pages that
// have data, and pages-M with their bytes; format.md section 9. Pages are numbered from the start of the object.

import { readSync } from "node:fs";
import { loadSharedPagemap, type LoadedSet } from "../../images/check-set.ts";
import { placePages, type PagePlace } from "../../images/page-places.ts";
import { PE_PRESENT, type PageRun, type PageSink } from "../../images/pagemap.ts";
import { SEEK_SET } from "../../sys/abi/fcntl.ts";
import {
  MAP_FIXED_NOREPLACE,
  MAP_NORESERVE,
  MAP_SHARED,
  PAGE_SIZE,
  PROT_READ,
  PROT_WRITE,
} from "../../sys/abi/mman.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { dataRanges } from "./data-ranges.ts";
import type { FilesDump, FilesRestore } from "./file-kind.ts";
import { countSharedPages, nextPagesId } from "./pages-id.ts";

/** A shared memory object: its number in the images and its size in bytes. */
export interface SharedMemory {
  readonly shmid: number;
  readonly size: number;
}

/**
 * Writes the pages of a shared memory object that are not zero. `fd` must be an open file description of the engine's
 * own, readable: its position moves.
 *
 * @returns the number of pages written.
 * @throws RepriseError SYSCALL
 */
export function writeSharedMemory(
  fd: number,
  { shmid, size }: SharedMemory,
  dump: Pick<FilesDump, "images">,
): number {
  if (size === 0) return 0;
  const sink = openSink(shmid, dump.images);
  let pages = 0;
  const give = (bytes: Buffer, offset: number): void => {
    sink.pages([{ vaddr: offset, pages: bytes.length / PAGE_SIZE, flags: PE_PRESENT }], bytes);
    pages += bytes.length / PAGE_SIZE;
  };
  for (const { start, end } of dataRanges(fd, size)) {
    const first = Math.floor(start / PAGE_SIZE) * PAGE_SIZE;
    for (let at = first; at < end; at += COPY_BYTES) {
      const bytes = readPages(fd, at, Math.min(COPY_BYTES, end - at));
      for (const run of pagesWithData(bytes))
        give(bytes.subarray(run.start, run.end), at + run.start);
    }
  }
  // criu cannot read a list of no pages at all.
  if (pages === 0) give(ZERO_PAGE, 0);
  sink.close(pages);
  return pages;
}

/** A page server, or a pages file with its list. */
function openSink(
  shmid: number,
  images: FilesDump["images"],
): PageSink & { close(pages: number): void } {
  const kind = "pagemap-shmem";
  if (images.remotePages !== undefined) {
    const sink = images.remotePages.open(kind, shmid);
    return { ...sink, close: (pages) => countSharedPages(images, pages) };
  }
  const pagesId = nextPagesId(images);
  const image = images.openRaw("pages", pagesId);
  const runs: PageRun[] = [];
  return {
    hole: (run) => addRun(runs, run),
    pages: (added, bytes) => {
      image.write(bytes);
      for (const run of added) addRun(runs, run);
    },
    close: () => {
      image.close();
      images.writePagemap(kind, shmid, { pagesId, runs });
    },
  };
}

/**
 * Adds the calls that give a shared memory object its size and content; `fd` can write, its position moves.
 * @throws RepriseError BAD_IMAGE, IMAGE_MISSING
 */
export function fillSharedMemory(
  program: Program,
  object: SharedMemory & {
    readonly fd: Argument;
    readonly label: string;
    /** Where to map what can only be filled through a mapping (huge pages cannot be written to). */
    readonly window?: number | undefined;
  },
  restore: Pick<FilesRestore, "openImage"> & { readonly set: LoadedSet },
): void {
  const { fd, shmid, size, label, window } = object;
  program.call("ftruncate", [fd, size], { label });
  if (size === 0) return;
  const map = loadSharedPagemap(restore.set.reader, shmid);
  if (map === undefined) throw restore.set.reader.missing("pagemap-shmem", shmid);
  const source = { kind: "pagemap-shmem", id: shmid, pagemap: map } as const;
  if (window !== undefined) mapWindow(program, { fd, size, label, window });
  for (const { name, places } of placePages(restore.set.reader, source)) {
    const from = restore.openImage(program, name);
    for (const place of places) copyPlace(program, place, { from, fd, size, label, window });
    program.call("close", [from], { label });
  }
  if (window !== undefined) program.call("munmap", [window, size], { label });
}

interface CopyTarget {
  readonly from: Argument;
  readonly fd: Argument;
  readonly size: number;
  readonly label: string;
  readonly window: number | undefined;
}

function mapWindow(
  program: Program,
  { fd, size, label, window }: Pick<CopyTarget, "fd" | "size" | "label"> & { window: number },
): void {
  const access = PROT_READ | PROT_WRITE;
  // Huge pages are set aside by who maps them for good.
  const flags = MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE;
  program.call("mmap", [window, size, access, flags, fd, 0], { label });
}

function copyPlace(program: Program, place: PagePlace, target: CopyTarget): void {
  const { from, fd, size, label, window } = target;
  // The last page may reach beyond the end.
  const length = Math.min(place.length, size - place.address);
  if (window === undefined) {
    program.call("lseek", [from, place.offset, SEEK_SET], { label });
    program.call("lseek", [fd, place.address, SEEK_SET], { label });
  }
  for (let done = 0; done < length; done += MAX_COPY) {
    const count = Math.min(length - done, MAX_COPY);
    if (window === undefined) {
      program.call("sendfile", [fd, from, 0, count], { label, expect: count });
    } else {
      const into = window + place.address + done;
      program.call("pread64", [from, into, count, place.offset + done], { label, expect: count });
    }
  }
}

const COPY_BYTES = 1024 * 1024;
const ZERO_PAGE = Buffer.alloc(PAGE_SIZE);
/** sendfile moves at most 2 GiB less a page in one call. */
const MAX_COPY = 1 << 30;

/** Whole pages from `at` on; what lies beyond the end of the object is zero. */
function readPages(fd: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(Math.ceil(length / PAGE_SIZE) * PAGE_SIZE);
  let filled = 0;
  while (filled < bytes.length) {
    const count = readSync(fd, bytes, filled, bytes.length - filled, at + filled);
    if (count === 0) break;
    filled += count;
  }
  return bytes;
}

/** Ranges of pages that are not all zero. */
function pagesWithData(bytes: Buffer): { start: number; end: number }[] {
  const found: { start: number; end: number }[] = [];
  for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
    if (ZERO_PAGE.equals(bytes.subarray(at, at + PAGE_SIZE))) continue;
    const last = found.at(-1);
    if (last?.end === at) last.end += PAGE_SIZE;
    else found.push({ start: at, end: at + PAGE_SIZE });
  }
  return found;
}

function addRun(runs: PageRun[], run: PageRun): void {
  const last = runs.at(-1);
  if (last?.flags === run.flags && last.vaddr + last.pages * PAGE_SIZE === run.vaddr) {
    runs[runs.length - 1] = { ...last, pages: last.pages + run.pages };
  } else runs.push(run);
}
