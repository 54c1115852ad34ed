// Reading saved pages by their address, wherever in a chain of sets their bytes are.

import { closeSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { placePages, type PagePlace } from "../../images/page-places.ts";
import type { PagemapKind, PageRun } from "../../images/pagemap.ts";
import type { PagemapSet } from "../../images/pagemap-set.ts";

interface OpenPlace extends PagePlace {
  readonly fd: number;
}

/** The pages of one pagemap, open for reading. */
export class SavedPages implements Disposable {
  /** Runs that have no bytes in the images: a lazy-pages server has them. */
  readonly left: readonly PageRun[];
  /** Ascending. */
  readonly #places: readonly OpenPlace[];
  readonly #fds: number[] = [];

  /** @throws RepriseError IMAGE_MISSING, BAD_IMAGE; system errors of open(2) */
  constructor(set: PagemapSet, { kind, id }: { readonly kind: PagemapKind; readonly id: number }) {
    const pagemap = set.readPagemap(kind, id);
    if (pagemap === undefined)
      throw new RepriseError("IMAGE_MISSING", `cannot find image ${kind}-${id}.img in ${set.dir}`);
    const left: PageRun[] = [];
    const placed = placePages(set, { kind, id, pagemap }, (run) => left.push(run));
    this.left = left;
    this.#places = placed
      .flatMap(({ name, places }) => {
        const fd = openSync(join(set.dir, name), "r");
        this.#fds.push(fd);
        return places.map((place) => ({ ...place, fd }));
      })
      .sort((a, b) => a.address - b.address);
  }

  /** Reads at most `into.length` bytes that lie at an address. @returns how many; 0 when nothing was saved there */
  read(address: number, into: Buffer): number {
    const place = this.#find(address);
    if (place === undefined) return 0;
    const length = Math.min(into.length, place.address + place.length - address);
    const offset = place.offset + address - place.address;
    for (let done = 0; done < length;) {
      const count = readSync(place.fd, into, done, length - done, offset + done);
      if (count === 0)
        throw new RepriseError("BAD_IMAGE", `the pages file ends before ${offset + length}`);
      done += count;
    }
    return length;
  }

  /** Binary search: a list may have a run for every other page. */
  #find(address: number): OpenPlace | undefined {
    let low = 0;
    let high = this.#places.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const place = this.#places[middle] as OpenPlace;
      if (place.address + place.length <= address) low = middle + 1;
      else high = middle;
    }
    const place = this.#places[low];
    return place !== undefined && place.address <= address ? place : undefined;
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}
