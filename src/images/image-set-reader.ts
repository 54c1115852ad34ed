// Reads an image set. The inventory comes first: it says which version all the rest has. A file that
// is not there is one without entries; who cannot do without it asks by `readOne`. With a manifest,
// the set is what the manifest lists: a file that an earlier dump left in the directory is not read.
import { existsSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { ImageFile, readEntries, type FormatVersion, type ImageEntry } from "./image-file.ts";
import type { ListKind } from "./image-set-writer.ts";
import { loadManifest, verifyManifest, type Manifest } from "./manifest.ts";
import { imageName, kindSpec, type ImageKind, type MessageOf } from "./names.ts";
import { readPagemap, type Pagemap, type PagemapKind } from "./pagemap.ts";
import { PARENT_LINK, type PagemapSet } from "./pagemap-set.ts";
import type { InventoryEntry, Messages } from "./schema/messages.generated.ts";

/** Sets in an incremental chain: a limit against links in a circle. */
const MAX_CHAIN = 1000;

/** img_version of a set that only a later dump of the chain makes whole. */
const PRE_DUMP_VERSION = 0;

/** Kinds that may come from elsewhere than the dump: a page server, a restore, a scan. */
const UNLISTED_KINDS: ReadonlySet<ImageKind> = new Set([
  "pagemap",
  "pagemap-shmem",
  "pages",
  "stats-dump",
  "stats-restore",
  "irmap-cache",
]);

export class ImageSetReader implements PagemapSet {
  readonly dir: string;
  readonly inventory: InventoryEntry;
  readonly #manifest: Manifest | undefined;
  readonly #version: FormatVersion;
  readonly #depth: number;
  #parent: ImageSetReader | "none" | undefined;
  /** What was verified. */
  #contents: ReadonlyMap<string, Uint8Array> = new Map();

  /**
   * Reads inventory and manifest.
   * @throws RepriseError IMAGE_MISSING without an inventory, IMAGE_VERSION for a version that is not
   * known, BAD_IMAGE when one of the two is damaged.
   */
  constructor(dir: string, options: { readonly depth?: number } = {}) {
    this.dir = dir;
    this.#depth = options.depth ?? 0;
    this.#manifest = loadManifest(dir);
    this.inventory = this.readOne("inventory");
    checkVersion(this.inventory);
    this.#version = this.inventory.img_version === 1 ? 1 : 2;
  }

  /** Whether it holds only the memory of a pre-dump, from which nothing can be restored alone. */
  get isPreDump(): boolean {
    return this.inventory.img_version === PRE_DUMP_VERSION;
  }

  /** Whether the set has a manifest, so that `verify` means something. */
  get hasManifest(): boolean {
    return this.#manifest !== undefined;
  }

  /** Compares all files with the manifest; see `verifyManifest`. Small ones are not read again. */
  verify(): void {
    if (this.#manifest !== undefined) this.#contents = verifyManifest(this.dir, this.#manifest);
  }

  has(kind: ImageKind, id = 0): boolean {
    const name = imageName(kind, id);
    return (
      this.#contents.has(name) || (this.#isMember(kind, name) && existsSync(join(this.dir, name)))
    );
  }

  path(kind: ImageKind, id = 0): string {
    return join(this.dir, imageName(kind, id));
  }

  /** Messages of an image; none when the file is missing. */
  read<K extends ListKind>(kind: K, id = 0): Messages[MessageOf<K>][] {
    return this.readWithPayload(kind, id).map((entry) => entry.value);
  }

  /** Entries with the places of their payload in the file; none when the file is missing. */
  readWithPayload<K extends ListKind>(kind: K, id = 0): ImageEntry<Messages[MessageOf<K>]>[] {
    using file = this.#heldOrOpen(kind, id);
    return file === undefined ? [] : readEntries(file, kind, this.#version);
  }

  /**
   * The one message of an image that must be there.
   * @throws RepriseError IMAGE_MISSING naming the file, BAD_IMAGE when it has no entry or several.
   */
  readOne<K extends ListKind>(kind: K, id = 0): Messages[MessageOf<K>] {
    const entries = this.#demand(kind, id, this.readWithPayload(kind, id));
    const [first] = entries;
    if (first === undefined || entries.length > 1) {
      const what = `it has ${entries.length} entries, not one`;
      throw new RepriseError("BAD_IMAGE", `cannot read image ${imageName(kind, id)}: ${what}`);
    }
    return first.value;
  }

  /** A pagemap, or undefined when the file is missing. */
  readPagemap(kind: PagemapKind, id: number): Pagemap | undefined {
    using file = this.#heldOrOpen(kind, id);
    return file === undefined ? undefined : readPagemap(file, kind, this.#version);
  }

  /**
   * An image as a file, for its content.
   * @throws RepriseError IMAGE_MISSING.
   */
  openRaw(kind: ImageKind, id = 0): ImageFile {
    const file = this.#openIfThere(kind, id);
    if (file === undefined) throw missing(kind, id);
    return file;
  }

  /**
   * The set before this one in an incremental chain.
   * @throws RepriseError like the constructor; BAD_IMAGE for a chain without end.
   */
  parent(): ImageSetReader | undefined {
    this.#parent ??= this.#openParent();
    return this.#parent === "none" ? undefined : this.#parent;
  }

  /** The error for an image that must be there and is not. */
  missing(kind: ImageKind, id: number): RepriseError {
    return missing(kind, id);
  }

  #openParent(): ImageSetReader | "none" {
    const link = join(this.dir, PARENT_LINK);
    if (!existsSync(link)) return "none";
    if (this.#depth + 1 >= MAX_CHAIN) {
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot follow parent sets: more than ${MAX_CHAIN} of them`,
        {
          hint: `The link ${link} leads in a circle, or the chain is too long.`,
        },
      );
    }
    return new ImageSetReader(realpathSync(link), { depth: this.#depth + 1 });
  }

  #heldOrOpen(kind: ImageKind, id: number): ImageFile | undefined {
    const name = imageName(kind, id);
    const content = this.#contents.get(name);
    return content === undefined ? this.#openIfThere(kind, id) : new ImageFile(content, name);
  }

  #openIfThere(kind: ImageKind, id: number): ImageFile | undefined {
    const name = imageName(kind, id);
    // Most images of a set are not there, and an exception costs ten times what a look does.
    if (!this.has(kind, id)) return undefined;
    try {
      return new ImageFile(join(this.dir, name), name);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code === "ENOTDIR") return undefined;
      if (error instanceof RepriseError || code === undefined) throw error;
      throw new RepriseError("BAD_IMAGE", `cannot open image ${name}: open: ${code}`, {
        cause: error,
      });
    }
  }

  #isMember(kind: ImageKind, name: string): boolean {
    if (this.#manifest === undefined || UNLISTED_KINDS.has(kind)) return true;
    return Object.hasOwn(this.#manifest.files, name);
  }

  #demand<T>(kind: ImageKind, id: number, entries: T[]): T[] {
    if (entries.length === 0 && !this.has(kind, id)) throw missing(kind, id);
    return entries;
  }
}

function checkVersion({ img_version: version }: InventoryEntry): void {
  if (version <= 2) return;
  throw new RepriseError(
    "IMAGE_VERSION",
    `cannot read image set: its version is ${version}, not 1 or 2`,
    {
      hint: "A later CRIU made it, perhaps with compressed pages. Dump again without compression.",
    },
  );
}

function missing(kind: ImageKind, id: number): RepriseError {
  const { about } = kindSpec(kind);
  return new RepriseError("IMAGE_MISSING", `cannot find image ${imageName(kind, id)}: ${about}`, {
    hint: "The set is not whole: the dump failed, or not every file was copied.",
  });
}
