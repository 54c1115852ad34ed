// Bringing a pages file up to date that was written while the task ran: what is gone is taken out of it, what is new gets room (as
// the format has it, pages lie one behind the other in the order of their addresses), and what has changed is written once more.

import { ftruncateSync } from "node:fs";
import type { PageRun } from "../../images/pagemap.ts";
import { FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE } from "../../sys/abi/fcntl.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { IOV_MAX, type MemoryRange } from "../../sys/memory.ts";
import type { FrozenTask } from "../task/task.ts";
import { bytesOf, common, placesIn, rangesOf, without, type PlacedRange } from "./page-ranges.ts";
import { alignedWindow } from "./page-sink.ts";
import { copyOut, writeNow } from "./pages.ts";

/** A pages file that is open. */
export interface OpenPages {
  readonly path: string;
  readonly fd: number;
}

/**
 * Writes those pages of a pages file once more that lie in given ranges of memory, which may be in any order.
 *
 * @throws RepriseError SYSCALL
 */
export function rewritePages(
  task: Pick<FrozenTask, "pid">,
  runs: readonly PageRun[],
  { ranges, ...file }: OpenPages & { readonly ranges: readonly MemoryRange[] },
): void {
  const all = rangesOf(runs);
  writePlaced(task, placesIn(all, common(all, inOrder(ranges))), file);
}

/** Ascending, with what overlaps joined. */
function inOrder(ranges: readonly MemoryRange[]): MemoryRange[] {
  const ordered: MemoryRange[] = [];
  for (const range of ranges.toSorted((a, b) => a.address - b.address)) {
    const last = ordered.at(-1);
    if (last === undefined || last.address + last.length < range.address) ordered.push(range);
    else {
      const end = Math.max(last.address + last.length, range.address + range.length);
      ordered[ordered.length - 1] = { ...last, length: end - last.address };
    }
  }
  return ordered;
}

/**
 * Copies pages of a task to their places. Single pages go through the page cache: the kernel needs some microseconds for each then,
 * the disk a hundred.
 *
 * @throws RepriseError SYSCALL
 */
export function writePlaced(
  task: Pick<FrozenTask, "pid">,
  places: readonly PlacedRange[],
  file: OpenPages,
): void {
  const window = alignedWindow();
  for (const portion of portions(places, window.length)) {
    const bytes = window.subarray(0, bytesOf(portion));
    copyOut(task, portion, { bytes, keepShared: false });
    let at = 0;
    for (let index = 0; index < portion.length;) {
      const { offset } = portion[index] as PlacedRange;
      let length = 0;
      // Neighbours in the file are one write.
      for (; portion[index]?.offset === offset + length; index += 1)
        length += (portion[index] as PlacedRange).length;
      writeNow(bytes.subarray(at, at + length), offset, { ...file, direct: undefined });
      at += length;
    }
  }
}

/** As many as fit the window and one call. */
function* portions(
  places: readonly PlacedRange[],
  room: number,
): Generator<readonly PlacedRange[], undefined> {
  let portion: PlacedRange[] = [];
  let filled = 0;
  for (const { address, length, offset } of places) {
    for (let done = 0; done < length;) {
      if (filled === room || portion.length === IOV_MAX) {
        yield portion;
        portion = [];
        filled = 0;
      }
      const part = Math.min(length - done, room - filled);
      portion.push({ address: address + done, length: part, offset: offset + done });
      done += part;
      filled += part;
    }
  }
  if (portion.length > 0) yield portion;
}

/** Most pieces that are taken out or get room: each is a transaction of the file system. */
const MOST_MOVES = 64;

/**
 * Takes out of a pages file what is not among the pages any more, and makes room for what is new.
 *
 * @returns false where that is too much, or nothing that this file system can do; the file is good for nothing then.
 */
export function rearrange(
  fd: number,
  before: readonly MemoryRange[],
  after: readonly MemoryRange[],
): boolean {
  const gone = placesIn(before, without(before, after));
  // Where they would be if nothing else changed: behind everything with a lower address.
  const added = without(after, before).map((range) => ({
    ...range,
    offset: bytesOf(common(before, [{ address: 0, length: range.address }])),
  }));
  if (gone.length + added.length > MOST_MOVES) return false;
  const moves = [
    ...gone.map((range) => ({ ...range, mode: FALLOC_FL_COLLAPSE_RANGE })),
    ...added.map((range) => ({ ...range, mode: FALLOC_FL_INSERT_RANGE })),
  ];
  let size = bytesOf(before);
  // From the last one on, so that places before it stay what they are.
  for (const { mode, offset, length } of moves.toSorted((a, b) => b.address - a.address)) {
    const isGone = mode === FALLOC_FL_COLLAPSE_RANGE;
    const isAtEnd = isGone ? offset + length === size : offset === size;
    size += isGone ? -length : length;
    // Neither mode may reach the end of the file.
    if (isAtEnd) ftruncateSync(fd, size);
    else if (trySyscall("fallocate", fd, mode, offset, length) !== 0) return false;
  }
  return true;
}
