// Writes an image set: a flat directory of image files. inventory.img is the commit: it is written
// last, under a temporary name, and renamed when all the rest is there, so a directory with an
// inventory holds a whole set. What an earlier dump left in the directory and this one does not
// write is not in the manifest, and so not part of the set.
import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  openSync,
  renameSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { makeDirectories } from "./make-directories.ts";
import { crc32 } from "./crc32.ts";
import { assert } from "../errors.ts";
import { encodeEntry, encodeImage, type MessageInput } from "./codec.ts";
import { entryBytes, headBytes, paddingFor } from "./image-file.ts";
import { describeFile, MANIFEST_NAME, renderManifest, type ManifestFile } from "./manifest.ts";
import { imageName, kindSpec, type EntryKind, type MessageOf, type RawKind } from "./names.ts";
import { encodePagemap, type PagemapKind, type PageRun, type PageSink } from "./pagemap.ts";
import type { InventoryEntry, IpcMsg, Messages } from "./schema/messages.generated.ts";

/** Kinds whose entries are all of one message. */
export type ListKind = Exclude<EntryKind, PagemapKind>;

export type EntryInput<K extends EntryKind> = MessageInput<Messages[MessageOf<K>]>;

export interface WriterOptions {
  /**
   * What is flushed to the disk before the inventory appears: `files` every image and the directory,
   * `none` nothing (a crash of the machine may leave a broken set).
   * @default "files"
   */
  readonly sync?: "files" | "none";
}

/** Takes pages in place of the images directory. */
export interface RemotePages {
  /** Begins a pagemap. `inParent` says whether runs may be left to the set before. */
  open(kind: PagemapKind, id: number): PageSink & { readonly inParent: boolean };
  /** Waits until everything has arrived. */
  finish(): void;
  close(): void;
}

/** Files that are kept open until they are written: of these a container's limit allows some hundred at least. */
const MOST_PREPARED = 512;
const TEMPORARY_INVENTORY = "inventory.img.new";
const DIRECTORY_MODE = 0o700;
const FILE_MODE = 0o600;

export class ImageSetWriter {
  readonly dir: string;
  /** A page server: pagemaps and pages go there. */
  remotePages: RemotePages | undefined;
  readonly #sync: "files" | "none";
  #open = new Set<ImageWriter>();
  readonly #written = new Map<string, ManifestFile | undefined>();
  /** Files that were prepared and are written. */
  readonly #done: number[] = [];
  /** Files that exist and are empty; as many as may be are open. */
  readonly #prepared = new Map<string, number | undefined>();

  readonly #unnamed: (() => number) | undefined;
  /** Images that are written at the end. */
  #held: (() => void)[] | undefined;

  /** A set of files that `create` makes and that have no names, for a rehearsal: nobody can find it after `commit`. */
  static unnamed(create: () => number): ImageSetWriter {
    return new ImageSetWriter("", { create });
  }

  /** Makes the directory, and takes an older set's inventory away. System errors are thrown as they are. */
  constructor(dir: string, options: WriterOptions & { readonly create?: () => number } = {}) {
    this.dir = dir;
    this.#sync = options.sync ?? "files";
    this.#unnamed = options.create;
    if (this.#unnamed !== undefined) return;
    makeDirectories(dir, DIRECTORY_MODE);
    for (const name of [imageName("inventory"), MANIFEST_NAME])
      if (existsSync(this.path(name))) rmSync(this.path(name), { force: true });
  }

  /**
   * Creates files that will be written later, so that this is not done while tasks stand still: on ext4, making a file next to
   * ones that were deleted in the last minutes takes more than half a millisecond (the kernel looks for an inode that nobody
   * could miss). What is not written in the end is removed by `tidy` and `abort`, one of which has to be called.
   */
  prepare(names: Iterable<string>): void {
    for (const name of [...names, TEMPORARY_INVENTORY, MANIFEST_NAME]) {
      // A page server may write into the same directory.
      if (this.#prepared.has(name) || (this.remotePages !== undefined && isPages(name))) continue;
      const fd = createFile(this.path(name));
      const isKept = this.#prepared.size < MOST_PREPARED;
      if (!isKept) closeSync(fd);
      this.#prepared.set(name, isKept ? fd : undefined);
    }
  }

  /** Has `write` keep its images until `commit`. */
  holdBack(): void {
    this.#held ??= [];
  }

  /** Writes a whole image. `id` is 0 for kinds without a number. */
  write<K extends ListKind>(kind: K, id: number, entries: readonly EntryInput<K>[]): void {
    if (this.#held === undefined) this.#write(kind, id, entries);
    else this.#held.push(() => this.#write(kind, id, entries));
  }

  #write<K extends ListKind>(kind: K, id: number, entries: readonly EntryInput<K>[]): void {
    const name = imageName(kind, id);
    const message = kindSpec(kind).message as MessageOf<K>;
    const bytes = encodeImage(headBytes(kind), message, entries);
    const description = { size: bytes.length, crc32: crc32(bytes) };
    const prepared = this.#unnamed === undefined ? this.#takePrepared(name) : undefined;
    const fd = prepared ?? this.#createFile(name);
    this.#written.set(name, undefined);
    // One that was open before stays so: closing hundreds takes its time.
    if (prepared !== undefined) this.#done.push(fd);
    try {
      writeAll(fd, bytes);
    } finally {
      if (prepared === undefined) closeSync(fd);
    }
    this.#written.set(name, description);
  }

  #createFile(name: string): number {
    return this.#unnamed?.() ?? createFile(this.path(name));
  }

  /** Opens an image to which entries are added one by one, with their payload. */
  open<K extends ListKind>(kind: K, id = 0): EntryWriter<K> {
    return new EntryWriter(this.#create(imageName(kind, id)), kind);
  }

  /**
   * Creates a raw image, and gives its descriptor: whoever holds it may write to it, from any
   * process. Close it before `commit`.
   */
  openRaw(kind: RawKind, id: number): RawImage {
    return new RawImage(this.#create(imageName(kind, id)));
  }

  /** Runs a step that writes images, and gives their names, for `takeBack`. */
  writtenIn(step: () => void): string[] {
    const before = new Set(this.#written.keys());
    step();
    return [...this.#written.keys()].filter((name) => !before.has(name));
  }

  /** Empties images that were written: they are written anew, or not part of the set. */
  takeBack(names: Iterable<string>): void {
    for (const name of names) {
      for (const image of this.#open) if (image.name === name) image.discard();
      this.#open = new Set([...this.#open].filter((image) => image.name !== name));
      if (!this.#written.delete(name)) continue;
      truncateSync(this.path(name));
      this.#prepared.set(name, undefined);
    }
  }

  /** Takes an image back that was opened. */
  drop(kind: RawKind, id: number): void {
    const name = imageName(kind, id);
    for (const image of this.#open) if (image.name === name) image.discard();
    this.#open = new Set([...this.#open].filter((image) => image.name !== name));
    this.#written.delete(name);
    rmSync(this.path(name), { force: true });
  }

  writePagemap(
    kind: PagemapKind,
    id: number,
    map: { readonly pagesId: number; readonly runs: readonly PageRun[] },
  ): void {
    const image = this.#create(imageName(kind, id));
    image.append(encodePagemap(kind, map));
    image.close();
  }

  /** Ends the set: manifest, then the inventory under its name. `last` is what is to be done just before that. */
  commit(inventory: MessageInput<InventoryEntry>, last?: () => void): void {
    for (const write of this.#held ?? []) write();
    this.#held = undefined;
    assert(this.#open.size === 0, "an image is still open at commit");
    this.#writeInventory(inventory);
    this.#writeManifest();
    if (this.#unnamed !== undefined) return;
    if (this.#sync === "files") this.#syncAll();
    last?.();
    renameSync(this.path(TEMPORARY_INVENTORY), this.path(imageName("inventory")));
    if (this.#sync === "files") syncPath(this.dir, constants.O_DIRECTORY);
    this.#written.clear();
    this.remotePages?.close();
  }

  /** Removes files that were prepared and not written. After `commit`, when nobody waits any more. */
  tidy(): void {
    for (const [name, fd] of this.#prepared) {
      if (fd !== undefined) closeSync(fd);
      rmSync(this.path(name), { force: true });
    }
    this.#prepared.clear();
    this.closeWritten();
  }

  /** Lets written files go. Nobody waits for that, but it takes longer when they have been synced. */
  closeWritten(): void {
    for (const fd of this.#done.splice(0)) closeSync(fd);
  }

  /** Removes what was written; for a dump that failed. After `commit` it does nothing. */
  abort(): void {
    for (const image of this.#open) image.discard();
    this.#open.clear();
    if (this.#unnamed === undefined)
      for (const name of this.#written.keys()) rmSync(this.path(name), { force: true });
    this.#written.clear();
    this.tidy();
    this.remotePages?.close();
  }

  /** Path of a file of the set. */
  path(name: string): string {
    return join(this.dir, name);
  }

  #create(name: string): ImageWriter {
    const fd =
      (this.#unnamed === undefined ? this.#takePrepared(name) : undefined) ??
      this.#createFile(name);
    this.#written.set(name, undefined);
    const image = new ImageWriter(fd, name, (description) => {
      this.#open.delete(image);
      this.#written.set(name, description);
    });
    this.#open.add(image);
    return image;
  }

  #takePrepared(name: string): number | undefined {
    if (!this.#prepared.has(name)) return undefined;
    const fd = this.#prepared.get(name);
    this.#prepared.delete(name);
    return fd ?? openSync(this.path(name), constants.O_RDWR | constants.O_NOFOLLOW);
  }

  #writeInventory(inventory: MessageInput<InventoryEntry>): void {
    const image = this.#create(TEMPORARY_INVENTORY);
    image.append(headBytes("inventory"));
    image.append(entryBytes("inventory_entry", inventory));
    image.close();
  }

  #writeManifest(): void {
    const files = new Map<string, ManifestFile>();
    for (const [name, known] of this.#written) {
      const description = known ?? describeFile(this.dir, name);
      files.set(name === TEMPORARY_INVENTORY ? imageName("inventory") : name, description);
    }
    const image = this.#create(MANIFEST_NAME);
    image.append(Buffer.from(renderManifest(files)));
    image.close();
  }

  #syncAll(): void {
    for (const name of this.#written.keys()) syncPath(this.path(name), 0);
  }
}

/** Adds entries to one image; payload goes right behind its entry. */
export class EntryWriter<K extends ListKind> {
  readonly #image: ImageWriter;
  readonly #message: MessageOf<K>;
  #payloadBytes = 0;

  constructor(image: ImageWriter, kind: K) {
    this.#image = image;
    this.#message = kindSpec(kind).message as MessageOf<K>;
    image.append(headBytes(kind));
  }

  add(entry: EntryInput<K>): void {
    this.#image.append(encodeEntry(this.#message, entry));
    this.#payloadBytes = 0;
  }

  /** Bytes that belong to the last entry. */
  payload(bytes: Uint8Array): void {
    this.#image.append(bytes);
    this.#payloadBytes += bytes.length;
  }

  /** Fills the payload of the last entry to a multiple (ipcns-sem: 8, old ipcns-shm: 4). */
  pad(multiple: number): void {
    this.payload(paddingFor(this.#payloadBytes, multiple));
  }

  /** A message of the last System V queue; `data` has `msize` bytes. */
  queueMessage(message: MessageInput<IpcMsg>, data: Uint8Array): void {
    this.#image.append(entryBytes("ipc_msg", message));
    this.#image.append(data);
    this.#image.append(paddingFor(data.length, 8));
  }

  /** Head of a chunk of a ghost file: `len` bytes of payload must follow, for offset `off`. */
  ghostChunk(chunk: { readonly len: number; readonly off: number }): void {
    this.#image.append(entryBytes("ghost_chunk_entry", chunk));
  }

  /** Flushes, and gives the descriptor with its position at the end, for payload by splice or copy. */
  rawFd(): number {
    return this.#image.lend();
  }

  close(): void {
    this.#image.close();
  }
}

/** A raw image; what is in it is read back at commit, unless whoever wrote it tells. */
export class RawImage implements Disposable {
  readonly fd: number;
  /** Size and checksum of what was written, where the writer knows them. */
  description: ManifestFile | undefined;
  readonly #image: ImageWriter;

  constructor(image: ImageWriter) {
    this.#image = image;
    this.fd = image.lend();
  }

  write(bytes: Uint8Array): void {
    writeAll(this.fd, bytes);
  }

  close(): void {
    this.#image.close(this.description);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const BUFFER_BYTES = 256 * 1024;
/** Most images are smaller. */
const FIRST_BYTES = 2048;

/** A file being written, with its checksum as long as nobody else writes to it. */
export class ImageWriter {
  readonly name: string;
  readonly #fd: number;
  readonly #onClose: (description: ManifestFile | undefined) => void;
  #buffer = new Uint8Array(0);
  #filled = 0;
  #size = 0;
  #crc = 0;
  #lent = false;
  #closed = false;

  constructor(fd: number, name: string, onClose: (description: ManifestFile | undefined) => void) {
    this.#fd = fd;
    this.name = name;
    this.#onClose = onClose;
  }

  append(bytes: Uint8Array): void {
    if (this.#filled + bytes.length > BUFFER_BYTES) this.#flush();
    const wanted = this.#filled + bytes.length;
    if (wanted > this.#buffer.length) {
      const grown = new Uint8Array(Math.max(wanted, FIRST_BYTES, this.#buffer.length * 2));
      grown.set(this.#buffer.subarray(0, this.#filled));
      this.#buffer = grown;
    }
    this.#buffer.set(bytes, this.#filled);
    this.#filled = wanted;
  }

  lend(): number {
    this.#flush();
    this.#lent = true;
    return this.#fd;
  }

  /** `description` is of an image that was lent. */
  close(description?: ManifestFile): void {
    if (this.#closed) return;
    this.#flush();
    this.discard();
    this.#onClose(this.#lent ? description : { size: this.#size, crc32: this.#crc });
  }

  discard(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
  }

  #flush(): void {
    if (this.#filled === 0) return;
    const bytes = this.#buffer.subarray(0, this.#filled);
    this.#filled = 0;
    this.#size += bytes.length;
    this.#crc = crc32(bytes, this.#crc);
    writeAll(this.#fd, bytes);
  }
}

/** A new inode: an older file of this name may be mapped or read by a running restore. */
function createFile(path: string): number {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  try {
    return openSync(path, flags, FILE_MODE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    unlinkSync(path);
    return openSync(path, flags, FILE_MODE);
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
}

function isPages(name: string): boolean {
  return name.startsWith("pagemap-") || name.startsWith("pages-");
}

function syncPath(path: string, flags: number): void {
  const fd = openSync(path, constants.O_RDONLY | flags);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
