// How a restored task gets its pages back: it reads them itself, from the pages file right to where they belong.

import { closeSync, constants, openSync } from "node:fs";
import * as mm from "../../sys/abi/mman.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { IOV_MAX, iovecs, readU64, writeU64 } from "../../sys/memory.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { alignedWindow } from "./page-sink.ts";
import { DIRECT_FROM } from "./pages.ts";

/** A piece of memory to fill from a pages file. */
export interface PageSource {
  readonly address: number;
  readonly length: number;
  readonly offset: number;
}

/**
 * Whether a task should read its pages past the page cache: when there is much to read, the disk has it and not the memory, and
 * the file system can do it.
 */
export function readsDirectly(path: string, length: number): boolean {
  if (length < DIRECT_FROM) return false;
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_DIRECT);
    if (cachedBytes(fd, length) > length / 2) return false;
    // Some file systems take the flag and refuse the read.
    return trySyscall("pread64", fd, alignedWindow(), mm.PAGE_SIZE, 0) === mm.PAGE_SIZE;
  } catch {
    return false; // the file system has no direct I/O
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** Bytes of the beginning of a file that are in the page cache; 0 on kernels that do not tell (before 6.5). */
function cachedBytes(fd: number, length: number): number {
  const range = Buffer.alloc(16);
  writeU64(range, 8, length);
  const cachestat = Buffer.alloc(CACHESTAT_SIZE);
  if (trySyscall("cachestat", fd, range, cachestat, 0) < 0) return 0;
  return readU64(cachestat, 0) * mm.PAGE_SIZE;
}

/** struct cachestat: five words, of which the first is the number of pages. */
const CACHESTAT_SIZE = 40;

/**
 * Adds the calls that read pages from a file into memory, as few as the file's order allows. From the page cache they are read in
 * portions, and the kernel is asked for the pages of each before: a fault for every page takes more than copying it.
 */
export function readPages(
  program: Program,
  file: Argument,
  {
    sources,
    isDirect,
  }: {
    readonly sources: readonly PageSource[];
    /** See readsDirectly. */ readonly isDirect: boolean;
  },
): void {
  const most = isDirect ? MAX_READ : PORTION;
  let batch: PageSource[] = [];
  let length = 0;
  const flush = (): void => {
    if (!isDirect) batch.forEach((source) => populate(program, source));
    readBatch(program, file, batch, length);
    batch = [];
    length = 0;
  };
  for (const source of sources) {
    for (let done = 0; done < source.length;) {
      const offset = source.offset + done;
      const first = batch[0] ?? { offset };
      if (length === most || batch.length === IOV_MAX || first.offset + length !== offset) flush();
      const part = Math.min(source.length - done, most - length);
      batch.push({ address: source.address + done, length: part, offset });
      length += part;
      done += part;
    }
  }
  if (batch.length > 0) flush();
}

/** Has the kernel make the pages of an area of some size. It cannot do so before Linux 5.14, and need not. */
function populate(program: Program, { address, length }: PageSource): void {
  if (length < POPULATE_FROM) return;
  program.call("madvise", [address, length, mm.MADV_POPULATE_WRITE], { mayFail: true });
}

/** Below the kernel's limit for one read (MAX_RW_COUNT, 2 GiB less a page). */
const MAX_READ = 1 << 30;
/** What is still in the processor's cache when it is written over. */
const PORTION = 1024 * 1024;
/** Below this a call more takes as long as the faults. */
const POPULATE_FROM = 64 * 1024;

function readBatch(
  program: Program,
  file: Argument,
  batch: readonly PageSource[],
  length: number,
): void {
  const [first] = batch;
  if (first === undefined) return;
  const vector = program.data(iovecs(batch));
  program.call("preadv", [file, vector, batch.length, first.offset, 0], {
    label: `read ${length} bytes of memory from the image`,
    expect: length,
  });
}
