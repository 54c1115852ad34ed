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
import { openClean, type CleanMount } from "./clean-mount.ts";
import { log } from "../../log.ts";
import { fileKey, type CollectedMounts, type MountNamespaces } from "./collect.ts";
import { joinPath, relativeTo, showsMost } from "./external.ts";
import { fileSystemOf } from "./filesystem.ts";
import type { MountSource } from "./plan.ts";
import { unpackTmpfs } from "./tmpfs-restore.ts";
import { saveNothing, saveTmpfs } from "./tmpfs-save.ts";
import type { ContentsAhead } from "./contents-ahead.ts";

const saved = new WeakMap<ImageSetWriter, Set<number>>();

/** Saves what the file systems of a namespace hold that no other namespace has had saved. */
export function saveContents(
  mounts: CollectedMounts,
  all: MountNamespaces,
  {
    images,
    rootPid,
    ahead,
  }: {
    readonly images: ImageSetWriter;
    readonly rootPid: number;
    readonly ahead?: ContentsAhead | undefined;
  },
): void {
  let done = saved.get(images);
  if (done === undefined) saved.set(images, (done = new Set()));
  for (const { entry, content } of contentsOf(mounts, all)) {
    if (done.has(entry.root_dev)) continue;
    done.add(entry.root_dev);
    if (ahead?.holds(entry.root_dev) === true) continue;
    if (content === "autofs") images.write("autofs", entry.root_dev, [autofsEntry(entry, rootPid)]);
    else if (content === "empty") checkEmpty(mounts, entry, all);
    else saveMemory(entry, { all, images });
  }
}

/** The file systems of a namespace of which something is saved or checked, each by a mount that shows all of it. */
export function contentsOf(
  mounts: CollectedMounts,
  all: MountNamespaces,
): { readonly entry: MntEntry; readonly content: "memory" | "empty" | "autofs" }[] {
  const entries = all.all.flatMap((one) => one.entries);
  return mounts.entries.flatMap((entry) => {
    const kind = fileSystemOf(entry)?.content;
    const content = entry.fstype === Fstype.AUTOFS ? "autofs" : kind;
    if (content === undefined || content === "kernel") return [];
    // They are of an IPC namespace that goes on without the tree.
    if (entry.fstype === Fstype.MQUEUE && !all.hasOwnQueues) return [];
    if (entry.root !== "/" && showsMost(entries, entry) !== entry) return [];
    return isFromOutside(entry, all) ? [] : [{ entry, content }];
  });
}

/** Whether all that is in the file system of a mount is in the set. */
export function isContentSaved(
  mntId: number | undefined,
  all: MountNamespaces | undefined,
): boolean {
  if (mntId === undefined || all === undefined) return false;
  const device = all.all.find(({ byId }) => byId.has(mntId))?.byId.get(mntId)?.root_dev;
  return all.all.some((mounts) =>
    contentsOf(mounts, all).some(
      ({ entry, content }) => content === "memory" && entry.root_dev === device,
    ),
  );
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

/** Of several mounts that show as much of a file system, one may be covered for good. */
function openAny(
  { root_dev, root }: MntEntry,
  { all }: MountNamespaces,
): { readonly clean: CleanMount; readonly entry: MntEntry } | undefined {
  for (const mounts of all) {
    for (const entry of mounts.entries) {
      if (entry.root_dev !== root_dev || entry.root !== root) continue;
      const clean = openClean(mounts, entry);
      if (clean !== undefined) return { clean, entry };
    }
  }
  return undefined;
}

function saveMemory(
  wanted: MntEntry,
  { all, images }: { all: MountNamespaces; images: ImageSetWriter },
): void {
  const found = openAny(wanted, all);
  const image = images.openRaw("tmpfs-dev", wanted.root_dev);
  if (found === undefined) {
    log.debug(
      `${wanted.mountpoint} is covered for good: what is in it is out of everybody's reach`,
    );
    saveNothing(image.fd);
    image.close();
    return;
  }
  const { entry } = found;
  const { fd: root, mountId } = found.clean;
  try {
    const leftOut = (name: string, stat: BigIntStats): void =>
      tellSocket(entry, { name, stat }, all);
    const within = mountId === undefined ? {} : { mountId };
    saveTmpfs({ root, to: image.fd, innerId: all.innerId, leftOut, ...within });
  } finally {
    image.close();
    all.closeLater(root);
  }
}

/** A socket in a file system, which comes back with who is bound to it. */
export interface Socket {
  readonly name: string;
  readonly stat: BigIntStats;
}

/** Tells of a socket that nobody in the tree is bound to. To be called when all files are known. */
export function tellSocket(
  { mountpoint }: MntEntry,
  { name, stat }: Socket,
  { savedFiles }: MountNamespaces,
): void {
  if (savedFiles.has(fileKey(stat))) return;
  log.loss(`${joinPath(mountpoint, name.slice(2))}: a socket that no process is bound to`);
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
