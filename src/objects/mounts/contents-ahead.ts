// The content of a tree's file systems, saved while its tasks run: kept when nothing in them has changed since. The kernel notes a
// change of a file, its attributes and its names in its time of change (inode(7)); bytes that are written through a mapping (mmap)
// it notes once at most, so the content of files is compared, and that of large ones not saved ahead.

import type { BigIntStats } from "node:fs";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { MntEntry } from "../../images/schema/messages.generated.ts";
import { isKernelSince } from "../../kernel/release.ts";
import { log } from "../../log.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { Witness, type Sight } from "../../tracee/witness.ts";
import { S_IFMT, S_IFREG } from "../../sys/abi/fcntl.ts";
import { pathBytes } from "../files/path.ts";
import { openClean } from "./clean-mount.ts";
import type { CollectedMounts, MountNamespaces } from "./collect.ts";
import { contentsOf, tellSocket, type Socket } from "./contents.ts";
import { saveTmpfs } from "./tmpfs-save.ts";

/** Most that is compared of one file system. */
const MOST_FILES = 2000;
const MOST_BYTES = 64 * 1024;

/** Twice the longest tick of a kernel: the time of change that is older than this will be another one at the next change. */
const TICKS_NS = 20_000_000n;
const NSEC_PER_MSEC = 1_000_000n;

/** What has been saved of a file system. */
interface Kept {
  readonly witness: Witness;
  readonly names: readonly string[];
  readonly entry: MntEntry;
  /** Those that are saved only with who is bound to them. */
  readonly sockets: readonly Socket[];
}

export class ContentsAhead implements Disposable {
  /** By their devices. */
  readonly #kept = new Map<number, Kept>();
  readonly #images: ImageSetWriter;
  readonly #all: MountNamespaces;

  /** Saves what can be saved ahead of the file systems of a namespace. */
  constructor(
    mounts: CollectedMounts,
    { all, images }: { readonly all: MountNamespaces; readonly images: ImageSetWriter },
  ) {
    this.#images = images;
    this.#all = all;
    for (const { entry, content } of contentsOf(mounts, all)) {
      if (this.#kept.has(entry.root_dev)) continue;
      const kept =
        content === "empty"
          ? lookForNothing(mounts, entry)
          : content === "memory"
            ? saveMemory(mounts, entry, { all, images })
            : undefined;
      if (kept !== undefined) this.#kept.set(entry.root_dev, kept);
    }
  }

  /** Whether a file system is saved as it is now. If not, what was written of it is taken back. */
  holds(device: number): boolean {
    const kept = this.#kept.get(device);
    if (kept === undefined) return false;
    const { witness, names, entry, sockets } = kept;
    if (!witness.holds()) {
      log.debug(`what is in ${entry.mountpoint} is saved again: it has changed`);
      this.#images.takeBack(names);
      return false;
    }
    for (const socket of sockets) tellSocket(entry, socket, this.#all);
    return true;
  }

  [Symbol.dispose](): void {
    for (const { witness } of this.#kept.values()) witness[Symbol.dispose]();
    this.#kept.clear();
  }
}

/** Of one that must be empty. What is in it may be saved with an open file, which is not known yet. */
function lookForNothing({ prefix }: CollectedMounts, entry: MntEntry): Kept | undefined {
  const path = `${prefix}${entry.mountpoint}`;
  if (mountIdOf(pathBytes(path)) !== entry.mnt_id) return undefined;
  const witness = new Witness();
  const list = witness.list(pathBytes(path));
  if (witness.take() && witness.names(list).length === 0)
    return { witness, names: [], entry, sockets: [] };
  witness[Symbol.dispose]();
  return undefined;
}

/** A file that is saved, and what of it was. */
interface SavedFile {
  readonly name: Buffer;
  readonly stat: BigIntStats;
  readonly parts: Buffer[];
}

function saveMemory(
  mounts: CollectedMounts,
  entry: MntEntry,
  { all, images }: { readonly all: MountNamespaces; readonly images: ImageSetWriter },
): Kept | undefined {
  // Until then a changed attribute (setxattr) of a file in a tmpfs was no change of the file.
  if (!isKernelSince(6, 1)) return undefined;
  const clean = openClean(mounts, entry);
  if (clean === undefined) return undefined;
  const root = clean.fd;
  all.closeLater(root);
  if (clean.mountId !== undefined) return undefined;
  const sockets: Socket[] = [];
  const files: SavedFile[] = [];
  const begun = BigInt(Date.now()) * NSEC_PER_MSEC;
  const names = images.writtenIn(() => {
    using image = images.openRaw("tmpfs-dev", entry.root_dev);
    saveTmpfs({
      root,
      to: image.fd,
      innerId: all.innerId,
      leftOut: (name, stat) => void sockets.push({ name, stat }),
      saving: (name, stat) => void files.push({ name, stat, parts: [] }),
      copying: (bytes) => void files.at(-1)?.parts.push(bytes),
    });
  });
  const witness = new Witness();
  if (isWitnessed(witness, { root, files, begun })) return { witness, names, entry, sockets };
  witness[Symbol.dispose]();
  images.takeBack(names);
  return undefined;
}

/** Whether a second look would tell of any change, and the first one shows what was saved. */
function isWitnessed(
  witness: Witness,
  saved: { readonly root: number; readonly files: readonly SavedFile[]; readonly begun: bigint },
): boolean {
  const { root, files, begun } = saved;
  const bytes = files.reduce((sum, { stat }) => sum + contentSize(stat), 0);
  if (files.length > MOST_FILES || bytes > MOST_BYTES) return false;
  const isOld = ({ stat }: SavedFile): boolean => stat.ctimeNs < begun - TICKS_NS;
  if (!files.every(isOld)) return false;
  const sights = files.map((file) => ({ file, sight: witness.entry(root, file.name) }));
  const contents = files
    .filter(({ stat }) => contentSize(stat) > 0)
    .map((file) => ({ file, sight: witness.content(root, file.name, contentSize(file.stat)) }));
  if (!witness.take()) return false;
  const isSame = ({ file, sight }: { file: SavedFile; sight: Sight }): boolean =>
    witness.isThere(sight) && witness.changed(sight) === file.stat.ctimeNs;
  // Of a file with holes less was saved than is read here: it is not the same.
  const isRead = ({ file, sight }: { file: SavedFile; sight: Sight }): boolean =>
    witness.bytes(sight).equals(Buffer.concat(file.parts));
  return sights.every(isSame) && contents.every(isRead);
}

function contentSize({ mode, size }: BigIntStats): number {
  return (Number(mode) & S_IFMT) === S_IFREG ? Number(size) : 0;
}
