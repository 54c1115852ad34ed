// `criu dedup` and --auto-dedup: the pages that a set has itself need not lie in the sets before it.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { BareSet, PARENT_LINK } from "../images/pagemap-set.ts";
import { dedupParents } from "../objects/memory/dedup.ts";
import { asRepriseError } from "./system-error.ts";

/**
 * Punches holes into the older sets of a chain for all pages that the set of a directory has itself. The older sets cannot be
 * restored by themselves afterwards.
 *
 * @returns bytes given back
 * @throws RepriseError BAD_ARGUMENT for a set without a parent, BAD_IMAGE, SYSCALL
 */
export function dedup(imagesDir: string): number {
  if (!existsSync(join(imagesDir, PARENT_LINK))) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot deduplicate ${imagesDir}: it has no parent set`,
      {
        hint: "Only a set that was dumped with --prev-images-dir has sets before it.",
      },
    );
  }
  try {
    const set = new BareSet(imagesDir);
    return set
      .list()
      .reduce(
        (sum, { kind, id }) =>
          sum + dedupParents(set, { kind, id, runs: set.readPagemap(kind, id)?.runs ?? [] }),
        0,
      );
  } catch (error) {
    throw asRepriseError(error, `deduplicate ${imagesDir}`);
  }
}
