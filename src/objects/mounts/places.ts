// Where the files of a restored tree are, once its mounts are there: in which mount namespace an entry's path leads to it, and
// where the engine finds it. Deleted files are made on the sources of the mounts, which are whole, writable and covered by
// nothing, and are opened where they were.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { AT_FDCWD, O_PATH } from "../../sys/abi/fcntl.ts";
import type { Program } from "../../tracee/program.ts";
import { ROOT_NAMESPACE } from "./assembly.ts";
import { mountTerminals } from "./terminals.ts";
import type { AutofsOwner } from "./autofs.ts";
import { joinPath, relativeTo } from "./external.ts";
import type { MountNode, MountPlan, MountSource } from "./plan.ts";

/** A place for a name that is made for a moment. */
export interface Place {
  /** Directory in the root task that `path` starts at. */
  readonly directory: number;
  readonly path: string;
  /** The same directory, seen from the engine. */
  readonly prefix: string;
}

export interface MountPlaces {
  /** The number of the mount namespace of an entry with this mnt_id; undefined: the root task's. */
  namespaceOf(mntId: number | undefined): number | undefined;
  /** Descriptor in the root task of a mount namespace; undefined: the root task's own. */
  namespaceFd(id: number | undefined): number;
  /** Prefix for the paths of entries with this mnt_id, seen from the engine. */
  prefixOf(mntId: number | undefined): string;
  /** Whether their file system is one that the restore made. */
  isMade(mntId: number | undefined): boolean;
  /** Where a path of such an entry is on the source of its mount. */
  onSource(mntId: number | undefined, path: string): Place;
  /**
   * Adds the calls that mount what is there only when the files have been opened; `go` brings the program to a mount
   * namespace, the root task's for undefined.
   */
  finish(program: Program, go: (mntId: number | undefined) => void): void;
  /** Automounters that take their mounts over. */
  readonly autofs: readonly AutofsOwner[];
  /** Closes the engine's descriptors. */
  close(): void;
}

/** What the second program of the root task kept open (rebuild.ts). */
export interface KeptMounts {
  /** By number; the root task's own is number 0. */
  readonly namespaces: ReadonlyMap<number, { readonly namespace: number; readonly root: number }>;
  /** Roots of sources. */
  readonly sources: ReadonlyMap<MountSource, number>;
  readonly autofs: readonly AutofsOwner[];
  /** Mounts that are put on late ones. */
  readonly late: ReadonlyMap<MountNode, number>;
}

/** The places of a tree whose root task is `rootPid`. */
export function mountPlaces(plan: MountPlan, kept: KeptMounts, rootPid: number): MountPlaces {
  const opened: number[] = [];
  const open = (path: string): string => {
    const fd = openSync(path, O_PATH);
    opened.push(fd);
    return `/proc/self/fd/${fd}`;
  };
  const rootPrefix = open(`/proc/${rootPid}/root`);
  const prefixes = new Map(
    [...kept.namespaces]
      .filter(([id]) => id !== ROOT_NAMESPACE)
      .map(([id, { root }]) => [id, open(`/proc/${rootPid}/fd/${root}`)]),
  );
  const sources = new Map(
    [...kept.sources].map(([source, fd]) => [
      source,
      { directory: fd, prefix: open(`/proc/${rootPid}/fd/${fd}`) },
    ]),
  );
  const nodes = new Map<number, { node: MountNode; id: number }>();
  plan.namespaces.forEach(({ id, mounts }) => {
    for (const node of mounts) nodes.set(node.entry.mnt_id, { node, id });
  });
  const root = plan.hasRoot ? plan.namespaces[0] : undefined;
  const namespaceOf = (mntId: number | undefined): number | undefined => {
    const id = mntId === undefined ? undefined : nodes.get(mntId)?.id;
    return id === root?.id ? undefined : id;
  };
  return {
    autofs: kept.autofs,
    namespaceOf,
    namespaceFd: (id) => {
      const fd = kept.namespaces.get(id ?? ROOT_NAMESPACE)?.namespace;
      if (fd === undefined)
        throw new RepriseError("INTERNAL", `internal error: mount namespace ${id} was not kept`);
      return fd;
    },
    prefixOf: (mntId) => prefixes.get(namespaceOf(mntId) ?? ROOT_NAMESPACE) ?? rootPrefix,
    isMade: (mntId) => nodes.get(mntId ?? -1)?.node.source.from.kind === "new",
    onSource: (mntId, path) => {
      if (root === undefined && (mntId === undefined || !nodes.has(mntId)))
        return { directory: AT_FDCWD, path, prefix: "" };
      const node = nodes.get(mntId ?? -1)?.node ?? nodeOf(root?.mounts ?? [], path);
      const source = node === undefined ? undefined : sources.get(node.source);
      const inside = relativeTo(path, node?.entry.mountpoint ?? "/");
      if (node === undefined || source === undefined || inside === undefined) {
        throw new RepriseError(
          "BAD_IMAGE",
          `cannot restore ${path}: it is on no mount of the tree (mount ${mntId ?? "unknown"})`,
        );
      }
      return { ...source, path: joinPath(node.below, inside) };
    },
    finish: (program, go) => {
      for (const namespace of plan.namespaces) {
        const terminal = namespace.mounts.find(({ isTerminal }) => isTerminal);
        if (terminal === undefined) continue;
        go(terminal.entry.mnt_id);
        mountTerminals(program, namespace);
      }
    },
    close: () => opened.splice(0).forEach((fd) => closeSync(fd)),
  };
}

/** Without a mount's id, the deepest mount above the path. */
function nodeOf(mounts: readonly MountNode[], path: string): MountNode | undefined {
  return mounts
    .filter(({ entry }) => relativeTo(path, entry.mountpoint) !== undefined)
    .toSorted((a, b) => b.entry.mountpoint.length - a.entry.mountpoint.length)[0];
}
