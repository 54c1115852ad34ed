// Numbers of pages-N.img: one sequence over a whole image set, from 1, for private and shared memory alike.

import type { ImageSetWriter } from "../../images/image-set.ts";

const last = new WeakMap<ImageSetWriter, number>();

/** The next free number of a pages file in this set. */
export function nextPagesId(images: ImageSetWriter): number {
  const id = (last.get(images) ?? 0) + 1;
  last.set(images, id);
  return id;
}
