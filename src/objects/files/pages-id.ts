// Numbers of pages-N.img: one sequence over a whole image set, from 1, for private and shared memory alike.

import { statSync } from "node:fs";
import type { ImageSetWriter } from "../../images/image-set.ts";
import { imageName } from "../../images/names.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";

const last = new WeakMap<ImageSetWriter, number>();

/** The next free number of a pages file in this set. */
export function nextPagesId(images: ImageSetWriter): number {
  const id = (last.get(images) ?? 0) + 1;
  last.set(images, id);
  return id;
}

/** Pages in all the files that were written under such numbers. */
export function writtenPages(images: ImageSetWriter): number {
  let bytes = 0;
  for (let id = 1; id <= (last.get(images) ?? 0); id++) {
    // A file may have been given up: that of a task that ended, for instance.
    const stat = statSync(images.path(imageName("pages", id)), { throwIfNoEntry: false });
    bytes += stat?.size ?? 0;
  }
  return bytes / PAGE_SIZE;
}

const sent = new WeakMap<ImageSetWriter, number>();

/** Counts pages of shared memory that went to a page server. */
export function countSharedPages(images: ImageSetWriter, pages: number): void {
  sent.set(images, remoteSharedPages(images) + pages);
}

/** Pages of shared memory that went to a page server. */
export function remoteSharedPages(images: ImageSetWriter): number {
  return sent.get(images) ?? 0;
}
