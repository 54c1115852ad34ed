// Mounts of the engine's own namespace that a tree gets (its root, external mounts): detached copies, made before there is any
// task and inherited by all. See open_tree(2).

import { closeSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { RepriseError } from "../../errors.ts";
import { AT_FDCWD, AT_NO_AUTOMOUNT } from "../../sys/abi/fcntl.ts";
import { OPEN_TREE_CLONE } from "../../sys/abi/mount.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { pathBytes } from "../files/path.ts";
import type { MountPlan } from "./plan.ts";

/** Mounts of the engine's namespace that the tree gets: detached copies, which the seed inherits. */
export interface OutsideMounts {
  /** Number of the descriptor by source. */
  readonly fds: ReadonlyMap<number, { readonly fd: number; readonly isDirectory: boolean }>;
  /** Closes the engine's own. */
  close(): void;
}

export interface OutsideOptions {
  /** Directory that becomes the root of the tree. */
  readonly root: string;
  /** Copies a descriptor to where the seed inherits it, and it is not in the way of the restore's own. */
  readonly keep: (fd: number, what: string) => number;
}

/**
 * Copies what comes from outside, before the seed is started.
 *
 * @throws RepriseError SYSCALL naming the path
 */
export function copyOutsideMounts(plan: MountPlan, { root, keep }: OutsideOptions): OutsideMounts {
  const fds = new Map<number, { fd: number; isDirectory: boolean }>();
  let open = true;
  // The numbers stay: they are those of the root task's descriptors.
  const close = (): void => {
    if (open) for (const { fd } of fds.values()) closeSync(fd);
    open = false;
  };
  try {
    for (const { index, from } of plan.sources) {
      if (from.kind === "new" || from.kind === "late") continue;
      // criu's current directory is the root when it mounts.
      const path = resolve("/", from.kind === "root" ? root : from.path);
      fds.set(index, { fd: copyTree(path, keep), isDirectory: isDirectory(path) });
    }
  } catch (error) {
    close();
    throw error;
  }
  return { fds, close };
}

function copyTree(path: string, keep: OutsideOptions["keep"]): number {
  const name = Buffer.concat([pathBytes(path), Buffer.of(0)]);
  const copy = trySyscall("open_tree", AT_FDCWD, name, OPEN_TREE_CLONE | AT_NO_AUTOMOUNT);
  if (copy < 0) {
    throw new RepriseError(
      "SYSCALL",
      `cannot bring ${path} into the restored tree: open_tree: ${errnoName(-copy)}`,
      {
        syscall: "open_tree",
        errno: errnoName(-copy),
        hint: "The directory or file that is to be mounted must be there, and mounting be allowed.",
      },
    );
  }
  try {
    return keep(copy, path);
  } finally {
    trySyscall("close", copy);
  }
}

function isDirectory(path: string): boolean {
  return statSync(pathBytes(path)).isDirectory();
}
