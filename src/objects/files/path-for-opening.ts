// The path by which a file of the images is opened: its own, or that of what stands for it, which is made before and removed when all
// files are open (temporary-names.ts). The opening program runs as root, before there are other tasks.

import { RepriseError } from "../../errors.ts";
import { remapOf } from "../../images/check-files.ts";
import { loadGhost, type LoadedSet } from "../../images/check-set.ts";
import { RemapType, type RegFileEntry } from "../../images/schema/messages.generated.ts";
import type { Program } from "../../tracee/program.ts";
import { processForProc } from "./dead-process.ts";
import type { FilesRestore } from "./file-kind.ts";
import { makeGhost } from "./ghost-restore.ts";
import { deadThread } from "./proc-of-task.ts";
import { linkBack } from "./lost-name-restore.ts";

/**
 * The path by which the file of an entry can be opened: its own, or one that the program makes before and removes at its
 * end.
 *
 * @throws RepriseError UNSUPPORTED, BAD_IMAGE
 */
export function pathForOpening(
  program: Program,
  entry: RegFileEntry,
  restore: FilesRestore,
): string {
  if (entry.ext === true) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore file ${entry.name}: it was external at the dump`,
      { hint: "Give it with --inherit-fd." },
    );
  }
  restore.inMountsOf(program, entry.mnt_id);
  const remap = remapsOf(restore.set).get(entry.id);
  if (remap === undefined) return entry.name;
  switch (remap.type) {
    case RemapType.GHOST:
      return makeGhost(program, { entry, id: remap.id }, restore);
    case RemapType.LINKED:
      return linkBack(program, { entry, id: remap.id }, restore);
    case RemapType.PROCFS: {
      const thread = deadThread(entry.name, restore.set);
      processForProc(program, thread?.tid ?? remap.id, restore);
      return thread?.path ?? entry.name;
    }
    default:
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore file ${entry.name}: remap type ${remap.type}`,
      );
  }
}

/** The id of an open file that is a ghost with this device (the kernel's number) and inode; undefined when there is none. */
export function ghostWithInode(
  set: LoadedSet,
  inode: { readonly dev: number; readonly ino: bigint },
): number | undefined {
  let index = inodeIndexes.get(set);
  if (index === undefined) {
    const fresh = new Map<string, number>();
    for (const [id, remap] of remapsOf(set)) {
      if (remap.type !== RemapType.GHOST || !set.files.has(id)) continue;
      const { dev, ino } = loadGhost(set.reader, remap.id).value;
      const key = `${dev}:${ino}`;
      if (!fresh.has(key)) fresh.set(key, id);
    }
    inodeIndexes.set(set, (index = fresh));
  }
  return index.get(`${inode.dev}:${inode.ino}`);
}

/** By device and inode. */
const inodeIndexes = new WeakMap<LoadedSet, ReadonlyMap<string, number>>();

/**
 * Hard links that the dump left (link_remap.N), and that are no longer needed: in file systems that the set has in it (`isSaved`), and
 * others once the set is not to be restored again (`isSpent`). Never those that several sets may have in common.
 */
export function linksToRemove(
  set: LoadedSet,
  { isSpent, isSaved }: { isSpent: boolean; isSaved: (mntId: number | undefined) => boolean },
): readonly RegFileEntry[] {
  const remaps = [...remapsOf(set).values()].filter(({ type }) => type === RemapType.LINKED);
  const links = [...new Set(remaps.map(({ id }) => set.regularFiles.get(id)))];
  return links
    .filter((link) => link !== undefined)
    .filter(({ linked, mnt_id }) => {
      if (linked?.unnamed === true || linked?.kept === true) return false;
      return isSpent || isSaved(mnt_id);
    });
}

type Remap = ReturnType<typeof remapOf>;
const remapIndexes = new WeakMap<LoadedSet, ReadonlyMap<number, Remap>>();

function remapsOf(set: LoadedSet): ReadonlyMap<number, Remap> {
  let index = remapIndexes.get(set);
  if (index === undefined) {
    index = new Map(set.remaps.map((remap) => [remap.orig_id, remapOf(remap)]));
    remapIndexes.set(set, index);
  }
  return index;
}
