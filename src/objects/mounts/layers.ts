// Overlays (Documentation/filesystems/overlayfs.rst): their options name directories as their maker saw them. Those of a tree are
// mounted when what has the directories is in its place, from inside of the tree's root.

import { statSync } from "node:fs";
import { Fstype, type MntEntry } from "../../images/schema/messages.generated.ts";
import { pathBytes } from "../files/path.ts";

/** The directories that an overlay consists of, by its options; undefined for other file systems. */
export function layersOf({ fstype, options }: MntEntry): string[] | undefined {
  if (fstype !== Fstype.OVERLAYFS) return undefined;
  return options.split(",").flatMap((option) => {
    const [key = "", ...value] = option.split("=");
    const path = value.join("=");
    // What holds data alone comes after two colons.
    if (key === "lowerdir") return path.split(/::?/);
    return /^(lowerdir\+|datadir\+|upperdir|workdir)$/.test(key) ? [path] : [];
  });
}

/**
 * What is wrong with the layers of an overlay, if it is to be mounted again.
 *
 * @param seen Prefix of paths as the overlay's mount namespace has them. @param made Likewise, where it will be mounted.
 */
export function faultOfLayers(
  entry: MntEntry,
  { seen, made }: { readonly seen: string; readonly made: string },
): string | undefined {
  for (const layer of layersOf(entry) ?? []) {
    if (!layer.startsWith("/")) return `its layer ${layer} is named by a relative path`;
    const [here, there] = [seen, made].map((prefix) =>
      statSync(pathBytes(prefix + layer), { throwIfNoEntry: false }),
    );
    if (here === undefined) return `its layer ${layer} is not there, or covered`;
    if (here.dev !== there?.dev || here.ino !== there.ino)
      return `its layer ${layer} is not in the mounts of the root task`;
  }
  return undefined;
}
