// Which images a streamed set has. A streamer is asked for files by name, and lists none. A set of ours has a manifest; of one of CRIU's
// the names follow from what is in the images that are there for certain.

import { RepriseError } from "../errors.ts";
import { ImageSetReader } from "../images/image-set-reader.ts";
import { IMAGE_KINDS, imageName, type ImageKind } from "../images/names.ts";
import { loadManifest, MANIFEST_NAME } from "../images/manifest.ts";
import type { TaskKobjIdsEntry } from "../images/schema/messages.generated.ts";

/** Takes a file of a set into the directory; false when there is none. */
type Take = (name: string) => boolean;

/**
 * Has all files of a set taken.
 * @returns how many there were
 * @throws RepriseError IMAGE_MISSING without an inventory
 */
export function takeImages(dir: string, take: Take): number {
  const asked = new Set<string>();
  let count = 0;
  const once: Take = (name) => {
    if (asked.has(name)) return false;
    asked.add(name);
    const isThere = take(name);
    if (isThere) count++;
    return isThere;
  };
  if (!once(imageName("inventory"))) {
    throw new RepriseError("IMAGE_MISSING", "the streamer has no image inventory.img", {
      hint: "What it was given is no whole set: the dump failed, or a part of the stream is missing.",
    });
  }
  if (once(MANIFEST_NAME)) {
    for (const name of Object.keys(loadManifest(dir)?.files ?? {})) once(name);
    return count;
  }
  takeByContent(dir, once);
  return count;
}

/** Kinds with the number of a namespace. */
const OF_NAMESPACES: readonly ImageKind[] = [
  "utsns",
  "timens",
  "userns",
  "pidns",
  "ipcns-var",
  "ipcns-shm",
  "ipcns-sem",
  "ipcns-msg",
  "mountpoints",
  "netns",
  "netdev",
  "ifaddr",
  "route",
  "route6",
  "rule",
  "iptables",
  "ip6tables",
  "nftables",
  "netns-ct",
  "netns-exp",
];

/** Kinds with a task's number. */
const OF_TASKS: readonly ImageKind[] = ["core", "ids", "mm", "fs", "pagemap"];

function takeByContent(dir: string, once: Take): void {
  const take = (kind: ImageKind, id?: number): boolean => once(imageName(kind, id));
  for (const [kind, { number }] of Object.entries(IMAGE_KINDS)) {
    if (number === "none") take(kind as ImageKind);
  }
  const reader = new ImageSetReader(dir);
  // The clocks of a tree without a time namespace of its own have the number 0.
  const namespaces = new Set([0, ...namespaceIds(reader.inventory.root_ids)]);
  for (const { pid, threads } of reader.read("pstree")) {
    for (const kind of OF_TASKS) take(kind, pid);
    for (const tid of threads) take("core", tid);
    for (const ids of reader.read("ids", pid)) {
      take("fdinfo", ids.files_id);
      for (const id of namespaceIds(ids)) namespaces.add(id);
    }
    takePages(reader, { kind: "pagemap", id: pid }, take);
  }
  for (const { isk, nsf } of reader.read("files")) {
    if (isk !== undefined) take("tcp-stream", isk.ino);
    if (nsf !== undefined) namespaces.add(nsf.ns_id);
  }
  // The older ones say by a bit of the number that it is a ghost's.
  for (const { remap_id } of reader.read("remap-fpath")) take("ghost-file", remap_id & 0x7fff_ffff);
  for (const id of namespaces) takeNamespace(reader, id, take);
  for (const id of sharedMemory(reader, namespaces)) {
    take("pagemap-shmem", id);
    takePages(reader, { kind: "pagemap-shmem", id }, take);
  }
}

function takePages(
  reader: ImageSetReader,
  { kind, id }: { readonly kind: "pagemap" | "pagemap-shmem"; readonly id: number },
  take: (kind: ImageKind, id?: number) => boolean,
): void {
  const pagemap = reader.readPagemap(kind, id);
  if (pagemap !== undefined) take("pages", pagemap.pagesId);
}

function takeNamespace(
  reader: ImageSetReader,
  id: number,
  take: (kind: ImageKind, id?: number) => boolean,
): void {
  for (const kind of OF_NAMESPACES) take(kind, id);
  for (const { mnt_id, root_dev } of reader.read("mountpoints", id)) {
    take("tmpfs-dev", root_dev);
    take("tmpfs", mnt_id);
    take("autofs", root_dev);
  }
}

/** Objects of shared memory that have pagemaps. */
function sharedMemory(reader: ImageSetReader, namespaces: ReadonlySet<number>): Set<number> {
  const ids = new Set(reader.read("memfd").map(({ shmid }) => shmid));
  for (const { pid } of reader.read("pstree")) {
    for (const { shmid } of reader.read("mm", pid).flatMap(({ vmas }) => vmas)) ids.add(shmid);
  }
  for (const id of namespaces)
    for (const { desc } of reader.read("ipcns-shm", id)) ids.add(desc.id);
  return ids;
}

function namespaceIds(ids: TaskKobjIdsEntry | undefined): number[] {
  if (ids === undefined) return [];
  return Object.entries(ids)
    .filter(([name]) => name.endsWith("_ns_id"))
    .map(([, id]) => id as number);
}
