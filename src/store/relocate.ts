// A checkpoint under another name: the images of a task whose log file is looper's become images of a task
// whose log file is looper-clone's. Only the list of open files differs, and with it the manifest; the rest is linked,
// not copied.

import { copyFileSync, existsSync, linkSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { entryBytes, headBytes, ImageFile, readEntries } from "../images/image-file.ts";
import { describeFile, loadManifest, MANIFEST_NAME, renderManifest } from "../images/manifest.ts";
import { imageName } from "../images/names.ts";
import { O_ACCMODE, O_RDONLY, S_IFMT, S_IFREG } from "../sys/abi/fcntl.ts";

/** Written anew for the new set; a restore writes its statistics in place, so a link would change both sets. */
const NOT_LINKED: readonly string[] = [
  imageName("files"),
  imageName("inventory"),
  MANIFEST_NAME,
  "stats-restore",
];

/**
 * Fills the directory `to` with the images of `from`, in which each file path of `paths` is replaced.
 *
 * @returns the other files that the tasks can write into. How long these are is not compared when the set is restored: the first task
 * runs on, and may have written more.
 */
export function relocateImages(options: {
  readonly from: string;
  readonly to: string;
  readonly paths: ReadonlyMap<string, string>;
}): readonly string[] {
  const { from, to, paths } = options;
  const rewritten = imageName("files");
  const last = imageName("inventory");
  const copied = readdirSync(from).filter((file) => !NOT_LINKED.includes(file));
  for (const file of copied) linkOrCopy(join(from, file), join(to, file));
  const { image, written } = filesImage(join(from, rewritten), paths);
  writeFileSync(join(to, rewritten), image, { mode: 0o600 });
  rewriteManifest(from, to, rewritten);
  linkOrCopy(join(from, last), join(to, last));
  return written;
}

/** The manifest of `from` with what one of its files is in `to`. */
function rewriteManifest(from: string, to: string, changed: string): void {
  const manifest = loadManifest(from);
  if (manifest === undefined) return;
  const files = new Map(Object.entries(manifest.files)).set(changed, describeFile(to, changed));
  writeFileSync(join(to, MANIFEST_NAME), renderManifest(files), { mode: 0o600 });
}

function filesImage(
  path: string,
  paths: ReadonlyMap<string, string>,
): { readonly image: Uint8Array; readonly written: readonly string[] } {
  using file = new ImageFile(path, imageName("files"));
  const written = new Set<string>();
  const parts = readEntries(file, "files").map(({ value }) => {
    const { reg } = value;
    if (reg === undefined) return entryBytes("file_entry", value);
    const name = paths.get(reg.name);
    if (name !== undefined) return entryBytes("file_entry", { ...value, reg: { ...reg, name } });
    const isFile = ((reg.mode ?? 0) & S_IFMT) === S_IFREG;
    const { size, ...rest } = reg;
    // Logs that are appended to have no size, and stand it; deleted files are made anew.
    if (!isFile || size === undefined || (reg.flags & O_ACCMODE) === O_RDONLY)
      return entryBytes("file_entry", value);
    if (existsSync(reg.name)) written.add(reg.name);
    return entryBytes("file_entry", { ...value, reg: rest });
  });
  return { image: Buffer.concat([headBytes("files"), ...parts]), written: [...written] };
}

function linkOrCopy(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to);
  }
}
