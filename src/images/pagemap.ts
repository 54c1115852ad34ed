// The list of saved pages of an address space or a shared memory object. Content lies in
// pages-ID.img, one run after the other, in the order of the runs that are present; the others take
// no room there. Lists get long (a run may be one page), so they have a codec of their own; a test
// holds it against the general one. Unlike there, unknown fields are an error: later versions of
// CRIU add fields that change what the bytes mean (compressed pages).
import {
  badImage,
  checkHead,
  entryBytes,
  headBytes,
  readMessageAt,
  type FormatVersion,
  type ImageFile,
} from "./image-file.ts";
import { kindSpec } from "./names.ts";
import type { PagemapEntry, PagemapHead } from "./schema/messages.generated.ts";

export const PAGE_SIZE = 4096;

/** Flags of a run: content in the parent set, may be filled on demand, content in this set. */
export const PE_PARENT = 1;
export const PE_LAZY = 2;
export const PE_PRESENT = 4;

export type PagemapKind = "pagemap" | "pagemap-shmem";

export interface PageRun {
  /** Address of the first page; for shared memory the offset in the object. */
  readonly vaddr: number;
  readonly pages: number;
  /** PE_* bits. */
  readonly flags: number;
}

export interface StoredPageRun extends PageRun {
  /** Where its bytes are in the pages file; undefined without PE_PRESENT. */
  readonly offset: number | undefined;
}

/** Takes the runs of one pagemap, ascending: a pages file, or a page server. */
export interface PageSink {
  /** Runs whose bytes are not here: in the parent, or left for later. */
  hole(run: PageRun): void;
  /** Runs with their bytes, one behind the other; the buffer is used again afterwards. */
  pages(runs: readonly PageRun[], bytes: Buffer): void;
}

export interface Pagemap {
  /** Number of the pages file. */
  readonly pagesId: number;
  readonly runs: readonly StoredPageRun[];
  /** Bytes that the pages file must have. */
  readonly pagesSize: number;
}

/** Runs of one pagemap: more than any 128 TiB address space with 64 GB of single pages has. */
const MAX_RUNS = 16_777_216;

/** The whole content of a pagemap image, as CRIU 4.2 writes it. */
export function encodePagemap(
  kind: PagemapKind,
  { pagesId, runs }: { readonly pagesId: number; readonly runs: readonly PageRun[] },
): Uint8Array {
  const entries = new Uint8Array(runs.length * MAX_ENTRY_BYTES);
  let end = 0;
  for (const run of runs) end = putEntry(entries, end, run);
  const head = entryBytes("pagemap_head", { pages_id: pagesId });
  return Buffer.concat([headBytes(kind), head, entries.subarray(0, end)]);
}

/**
 * The runs of a pagemap image, old style or new.
 * @throws RepriseError BAD_IMAGE naming the file, the entry and its offset.
 */
export function readPagemap(file: ImageFile, kind: PagemapKind, version?: FormatVersion): Pagemap {
  const start = checkHead(file, kindSpec(kind), version);
  const where = `entry 0 at offset ${start}`;
  const head = readMessageAt(file, { name: "pagemap_head", offset: start, where });
  const { pages_id: pagesId } = head.value as PagemapHead;
  let offset = head.end;
  const runs: StoredPageRun[] = [];
  let pagesSize = 0;
  while (offset < file.size) {
    if (runs.length === MAX_RUNS) throw badImage(file.name, `more than ${MAX_RUNS} runs of pages`);
    const length = file.word(offset);
    const bytes = length > file.size ? undefined : file.bytes(offset + 4, length);
    const run = bytes === undefined ? "its length is impossible" : parseEntry(bytes);
    if (typeof run === "string") {
      throw badImage(
        file.name,
        `entry ${runs.length + 1} at offset ${offset}: bad pagemap_entry: ${run}`,
      );
    }
    const present = (run.flags & PE_PRESENT) !== 0;
    runs.push({ ...run, offset: present ? pagesSize : undefined });
    if (present) pagesSize += run.pages * PAGE_SIZE;
    offset += 4 + length;
  }
  return { pagesId, runs, pagesSize };
}

/** A run from the general form of an entry: fills in what old images leave out. */
export function runOfEntry(entry: PagemapEntry): PageRun {
  const pages = entry.nr_pages ?? entry.compat_nr_pages;
  const flags = entry.flags ?? (entry.in_parent === true ? PE_PARENT : PE_PRESENT);
  return { vaddr: entry.vaddr, pages, flags };
}

/** Length word, four tags, varints of 8, 1, 5 and 8 bytes. */
const MAX_ENTRY_BYTES = 4 + 4 + 10 + 1 + 5 + 10;

function putEntry(target: Uint8Array, start: number, run: PageRun): number {
  let at = start + 4;
  target[at++] = 0x08;
  at = putVarint(target, at, run.vaddr);
  target[at++] = 0x10;
  target[at++] = 0;
  target[at++] = 0x20;
  at = putVarint(target, at, run.flags);
  target[at++] = 0x28;
  at = putVarint(target, at, run.pages);
  target[start] = at - start - 4;
  return at;
}

function putVarint(target: Uint8Array, start: number, value: number): number {
  let at = start;
  let rest = value;
  while (rest >= 0x80) {
    target[at++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  target[at++] = rest;
  return at;
}

/** The run in an entry's bytes, or what is wrong with them. */
function parseEntry(bytes: Uint8Array): PageRun | string {
  let vaddr: number | undefined;
  let compatPages: number | undefined;
  let inParent = false;
  let flags: number | undefined;
  let pages: number | undefined;
  for (let at = 0; at < bytes.length;) {
    const tag = bytes[at++] ?? 0;
    let value = 0;
    let scale = 1;
    let byte: number | undefined;
    do {
      byte = bytes[at++];
      if (byte === undefined) return "a field runs beyond the end";
      value += (byte & 0x7f) * scale;
      scale *= 0x80;
    } while (byte >= 0x80);
    if (!Number.isSafeInteger(value)) return `value ${value} is out of range`;
    if (tag === 0x08) vaddr = value;
    else if (tag === 0x10) compatPages = value;
    else if (tag === 0x18) inParent = value !== 0;
    else if (tag === 0x20) flags = value;
    else if (tag === 0x28) pages = value;
    else return `unknown field ${tag >> 3}`;
  }
  if (vaddr === undefined || compatPages === undefined) return "a required field is missing";
  return {
    vaddr,
    pages: pages ?? compatPages,
    flags: flags ?? (inParent ? PE_PARENT : PE_PRESENT),
  };
}
