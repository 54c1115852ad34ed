// Mount namespaces, see mount_namespaces(7). mountpoints-ID.img, and the content of file systems that live in memory. The
// mounts are collected before the files (collect.ts) and written when all the files are known, as those may leave something in a
// tmpfs (hard links for deleted names); they are made again by two programs in the root task (rebuild.ts).

import { lstatSync, statSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { CollectedNamespace } from "../namespaces/collect.ts";
import type { NamespacesPlan } from "../namespaces/plan.ts";
import type { NamespaceRoom, NamespacesRestoreOptions } from "../namespaces/room.ts";
import { savedMaps } from "../namespaces/user.ts";
import { pathBytes } from "../files/path.ts";
import { AutofsRestore } from "./autofs.ts";
import type { CollectedMounts, MountNamespaces } from "./collect.ts";
import { restoreContent, saveContents } from "./contents.ts";
import { ContentsAhead } from "./contents-ahead.ts";
import { hasDeletedRoot, withDeletedRoot } from "./deleted-root.ts";
import { joinPath } from "./external.ts";
import { externalMounts } from "./options.ts";
import { mountPlaces } from "./places.ts";
import { planMounts, type MountNode, type MountPlan, type MountSource } from "./plan.ts";
import type { OutsideMounts } from "./outside.ts";
import { withContext } from "./record.ts";
import { lateMounts } from "./late.ts";
import { MountBuilder } from "./rebuild.ts";

/** What is there before the root task is made. */
export interface PreparedMounts {
  readonly plan: MountPlan;
  readonly outside: OutsideMounts;
}

export const mntRoom: NamespaceRoom = {
  kind: "mnt",

  write(namespace, { images, mounts, rootPid }) {
    const mine = mountsOf(namespace, mounts);
    saveContents(mine, mounts, { images, rootPid });
    const entries = mine.entries.map((entry) => withDeletedRoot(entry, mine, mounts));
    images.write("mountpoints", namespace.id, entries);
  },

  /** The table of mounts holds as long as the caller has it. */
  saveAhead(namespace, { images, mounts: all }) {
    const mine = mountsOf(namespace, all);
    if (mine.entries.some(hasDeletedRoot)) return undefined;
    images.write("mountpoints", namespace.id, mine.entries);
    const ahead = new ContentsAhead(mine, { all, images });
    return {
      finish: ({ mounts, rootPid }) => {
        saveContents(mine, mounts, { images, rootPid, ahead });
        return true;
      },
      [Symbol.dispose]: () => ahead[Symbol.dispose](),
    };
  },

  restore(namespaces, restore) {
    const { mounts, rootPid, set } = restore;
    if (mounts === undefined) return;
    const autofs = new AutofsRestore(mounts.plan, set);
    const builder = new MountBuilder(mounts.plan, { outside: mounts.outside, autofs });
    // Nothing else is there yet: the numbers are free.
    const places = { pipe: restore.firstFreeFd - 1, device: restore.firstFreeFd - 2 };
    const first = builder.sources(places);
    const sources = first.done(restore.run(first.program));
    if (autofs.isNeeded)
      restore.runInChild(autofs.prepare({ ...places, fd: (source) => sources.fd(source) }));
    const user = restore.plan.made("user");
    const maps = user === undefined ? undefined : savedMaps(set, user.id);
    const rootOf = (source: MountSource): string => `/proc/${rootPid}/fd/${sources.fd(source)}`;
    for (const source of mounts.plan.sources)
      restoreContent(source, { set, root: rootOf(source), maps });
    const second = builder.tree({
      isDirectory: (node) => isDirectory(node, rootOf),
      exists: (source, below) => exists(joinPath(rootOf(source), below)),
      ...places,
      above: restore.firstFreeFd,
      keepSources: set.remaps.length > 0,
    });
    const kept = second.done(restore.run(second.program));
    const made = new Map(kept.namespaces);
    for (const namespace of namespaces) {
      const { id, owner } = namespace;
      const original = made.get(id);
      if (namespace.role !== "nested" || original === undefined) continue;
      const ruler = owner === undefined ? undefined : restore.descriptorOf("user", owner);
      const there =
        ruler === undefined
          ? original
          : restore.copyMounts({ id, fd: original.namespace, user: ruler });
      made.set(id, there);
      restore.setDescriptor(namespace, there.namespace);
    }
    restore.keepMounts(mountPlaces(mounts.plan, { ...kept, namespaces: made }, rootPid));
    restore.keepLateMounts(lateMounts(mounts.plan, kept.late));
  },
};

function mountsOf({ id }: CollectedNamespace, { all }: MountNamespaces): CollectedMounts {
  const mine = all.find(({ namespace }) => namespace.id === id);
  if (mine !== undefined) return mine;
  throw new RepriseError("INTERNAL", `internal error: mount namespace ${id} is unknown`);
}

/** The plan of a tree's mounts; undefined when it has none of its own. Throws as planMounts does. */
export function planTreeMounts(
  set: LoadedSet,
  namespaces: NamespacesPlan,
  options: NamespacesRestoreOptions,
): MountPlan | undefined {
  const root = namespaces.made("mnt");
  const isAlone = namespaces.ofRoot("mnt") === undefined;
  const hasNested = namespaces.all.some(({ kind, role }) => kind === "mnt" && role === "nested");
  if (isAlone ? !hasNested : root === undefined || root.id === 0) return undefined;
  const external = externalMounts(options.external ?? [], options.mounts);
  const context = options.mounts?.lsmContext;
  const saved = set.namespaces.mounts;
  const mounts =
    context === undefined
      ? saved
      : new Map(
          [...saved].map(([id, entries]) => [
            id,
            entries.map((entry) => withContext(entry, context)),
          ]),
        );
  return planMounts(mounts, {
    rootId: root?.id,
    external: isAlone ? { ...external, automatic: true } : external,
    isNestedPid: (id) => namespaces.byId("pid", id)?.role === "nested",
  });
}

/** The mount point tells what the deleted root of a mount was. */
function isDirectory(node: MountNode, rootOf: (source: MountSource) => string): boolean {
  const { parent, at } = node;
  if (parent === undefined || at === "") return true;
  const place = joinPath(joinPath(rootOf(parent.source), parent.below), at);
  try {
    return statSync(pathBytes(place)).isDirectory();
  } catch {
    // In a directory that was deleted itself.
    return true;
  }
}

function exists(path: string): boolean {
  return lstatSync(pathBytes(path), { throwIfNoEntry: false }) !== undefined;
}
