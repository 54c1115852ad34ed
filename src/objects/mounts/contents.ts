// What is in the file systems of a tree that live in memory: saved once a file system, given back before the mounts are put
// together. Others must be empty, or are the kernel's own.

import { lstatSync, readdirSync, type BigIntStats } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { bytesToText } from "../../images/text.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import { Fstype, type MntEntry, type UsernsEntry } from "../../images/schema/messages.generated.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { pathBytes } from "../files/path.ts";
import { asOwner, outerId } from "./as-owner.ts";
import { autofsEntry } from "./autofs.ts";
import { openClean } from "./clean-mount.ts";
import { log } from "../../log.ts";
import { fileKey, type CollectedMounts, type MountNamespaces } from "./collect.ts";
import { joinPath, relativeTo, showsMost } from "./external.ts";
import { fileSystemOf } from "./filesystem.ts";
import type { MountSource } from "./plan.ts";
import { unpackTmpfs } from "./tmpfs-restore.ts";
import { saveTmpfs } from "./tmpfs-save.ts";

const saved = new WeakMap<ImageSetWriter, Set<number>>();

/** Saves what the file systems of a namespace hold that no other namespace has had saved. */
export function saveContents(
  mounts: CollectedMounts,
  all: MountNamespaces,
  { images, rootPid }: { readonly images: ImageSetWriter; readonly rootPid: number },
): void {
  let done = saved.get(images);
  if (done === undefined) saved.set(images, (done = new Set()));
  const entries = all.all.flatMap((one) => one.entries);
  for (const entry of mounts.entries) {
    const content = fileSystemOf(entry)?.content;
    const isAutofs = entry.fstype === Fstype.AUTOFS;
    if (content === undefined || (content === "kernel" && !isAutofs)) continue;
    if (entry.root !== "/" && showsMost(entries, entry) !== entry) continue;
    if (done.has(entry.root_dev) || isFromOutside(entry, all)) continue;
    done.add(entry.root_dev);
    if (isAutofs) images.write("autofs", entry.root_dev, [autofsEntry(entry, rootPid)]);
    else if (content === "empty") checkEmpty(mounts, entry, all);
    else saveMemory(mounts, entry, { all, images });
  }
}

/** Whether a restore takes it from an external mount or from the root (plan.ts). */
function isFromOutside(entry: MntEntry, { all }: MountNamespaces): boolean {
  return all.some(({ entries, byId, namespace }) =>
    entries.some(
      (from) =>
        from.root_dev === entry.root_dev &&
        relativeTo(entry.root, from.root) !== undefined &&
        (from.ext_key !== undefined ||
          (namespace.role === "root" && from.mountpoint === "/" && !byId.has(from.parent_mnt_id))),
    ),
  );
}

function saveMemory(
  mounts: CollectedMounts,
  entry: MntEntry,
  { all, images }: { all: MountNamespaces; images: ImageSetWriter },
): void {
  const { fd: root, mountId } = openClean(mounts, entry);
  const image = images.openRaw("tmpfs-dev", entry.root_dev);
  try {
    const leftOut = (name: string, stat: BigIntStats): void => {
      if (all.savedFiles.has(fileKey(stat))) return;
      log.loss(
        `${joinPath(entry.mountpoint, name.slice(2))}: a socket that no process is bound to`,
      );
    };
    const within = mountId === undefined ? {} : { mountId };
    saveTmpfs({ root, to: image.fd, innerId: all.innerId, leftOut, ...within });
  } finally {
    image.close();
    all.closeLater(root);
  }
}

function checkEmpty(
  { prefix, namespace }: CollectedMounts,
  entry: MntEntry,
  { savedFiles }: MountNamespaces,
): void {
  const path = pathBytes(`${prefix}${entry.mountpoint}`);
  if (mountIdOf(path) !== entry.mnt_id) return;
  const isSaved = (name: Buffer): boolean => {
    const file = Buffer.concat([path, Buffer.from("/"), name]);
    return savedFiles.has(fileKey(lstatSync(file, { bigint: true })));
  };
  const first = readdirSync(path, { encoding: "buffer" }).find((name) => !isSaved(name));
  if (first === undefined) return;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump the mount ${entry.mountpoint}: there is something in it (${bytesToText(first)})`,
    {
      pid: namespace.pid,
      hint: "The content of this file system cannot be saved: remove it first.",
    },
  );
}

export interface GiveBack {
  readonly set: LoadedSet;
  /** Path of a source's root, seen from the engine. */
  readonly root: string;
  /** Maps of the tree's user namespace. */
  readonly maps: UsernsEntry | undefined;
}

/** Gives a new file system its content. */
export function restoreContent(source: MountSource, { set, root, maps }: GiveBack): void {
  if (source.from.kind !== "new" || source.from.type.content !== "memory") return;
  const archive = archiveOf(source, set);
  if (archive === undefined) return;
  asOwner(maps, () =>
    unpackTmpfs({
      archive,
      root,
      outerId: (kind, id) => (maps === undefined ? id : outerId(maps, kind, id)),
    }),
  );
}

/** Today's name has the device, the old one the mount. */
function archiveOf({ device, from }: MountSource, { reader }: LoadedSet): string | undefined {
  if (reader.has("tmpfs-dev", device)) return reader.path("tmpfs-dev", device);
  const id = from.kind === "new" ? from.entry.mnt_id : 0;
  if (reader.has("tmpfs", id)) return reader.path("tmpfs", id);
  throw reader.missing("tmpfs-dev", device);
}
