// Pages of a saved task that are not read back by the task itself: the kernel's own areas (vdso, AIO rings) are made by the
// kernel, and the engine looks into their saved content.

import { join } from "node:path";
import type { ImageSetReader } from "../images/image-set.ts";
import type { PagePlace, PlacedPages } from "../images/page-places.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { isMapped, VMA_GUARD } from "../objects/memory/vma.ts";
import { readAt } from "../images/read-at.ts";

/** What a task reads back: all but the pages of areas that the kernel makes. A run of pages may reach over several areas. */
export function withoutKernelAreas(
  pages: readonly PlacedPages[],
  vmas: readonly VmaEntry[],
): PlacedPages[] {
  const kernels = vmas.filter((vma) => !isMapped(vma) && (vma.status & VMA_GUARD) === 0);
  return pages.flatMap((file) => {
    const places = kernels.reduce<readonly PagePlace[]>(
      (left, { start, end }) => left.flatMap((place) => outside(place, { start, end })),
      file.places,
    );
    return places.length === 0 ? [] : [{ ...file, places }];
  });
}

function outside(place: PagePlace, area: { start: number; end: number }): PagePlace[] {
  const { address, length, offset } = place;
  const end = address + length;
  if (end <= area.start || area.end <= address) return [place];
  return [
    { ...place, length: area.start - address },
    { ...place, address: area.end, length: end - area.end, offset: offset + area.end - address },
  ].filter((part) => part.length > 0);
}

/** Saved bytes of a task's memory; undefined when not all of them are in the images. */
export function savedBytes(
  reader: ImageSetReader,
  pages: readonly PlacedPages[],
  range: { readonly address: number; readonly length: number },
): Buffer | undefined {
  const bytes = Buffer.alloc(range.length);
  const end = range.address + range.length;
  let found = 0;
  for (const { name, places } of pages) {
    for (const place of places) {
      const from = Math.max(place.address, range.address);
      const to = Math.min(place.address + place.length, end);
      if (from >= to) continue;
      const part = readAt(join(reader.dir, name), place.offset + from - place.address, to - from);
      part.copy(bytes, from - range.address);
      found += part.length;
    }
  }
  return found === range.length ? bytes : undefined;
}
