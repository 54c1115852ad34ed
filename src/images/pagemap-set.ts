// The memory part of an image set: pagemaps, pages and the link to the set before. A page server writes and reads only
// this, in directories that have no inventory.

import { existsSync, readdirSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { ImageFile } from "./image-file.ts";
import { imageName, parseImageName } from "./names.ts";
import { readPagemap, type Pagemap, type PagemapKind } from "./pagemap.ts";

/** Name of the link to the set before, in an incremental chain. */
export const PARENT_LINK = "parent";

/** A set as far as memory goes; an ImageSetReader is one, too. */
export interface PagemapSet {
  readonly dir: string;
  /** @throws RepriseError BAD_IMAGE @returns undefined when there is none */
  readPagemap(kind: PagemapKind, id: number): Pagemap | undefined;
  /** The set before. */
  parent(): PagemapSet | undefined;
}

/** The pagemaps of a directory, whether or not it has an inventory. */
export class BareSet implements PagemapSet {
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
  }

  readPagemap(kind: PagemapKind, id: number): Pagemap | undefined {
    const name = imageName(kind, id);
    const path = join(this.dir, name);
    if (!existsSync(path)) return undefined;
    using file = new ImageFile(path, name);
    return readPagemap(file, kind);
  }

  parent(): BareSet | undefined {
    const link = join(this.dir, PARENT_LINK);
    return existsSync(link) ? new BareSet(realpathSync(link)) : undefined;
  }

  /** All pagemaps that there are. */
  list(): { readonly kind: PagemapKind; readonly id: number }[] {
    return readdirSync(this.dir).flatMap((name) => {
      const parsed = parseImageName(name);
      const kind = parsed?.kind;
      if (kind !== "pagemap" && kind !== "pagemap-shmem") return [];
      return [{ kind, id: parsed?.id ?? 0 }];
    });
  }
}
