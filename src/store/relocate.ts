// A checkpoint under another name: the images of a task whose log file is looper's become images of a task
// whose log file is looper-clone's. Only the list of open files differs, and with it the manifest; the rest is linked,
// not copied.

import { copyFileSync, linkSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { entryBytes, headBytes, ImageFile, readEntries } from "../images/image-file.ts";
import { describeFile, loadManifest, MANIFEST_NAME, renderManifest } from "../images/manifest.ts";
import { imageName } from "../images/names.ts";

/** Written anew for the new set; a restore writes its statistics in place, so a link would change both sets. */
const NOT_LINKED: readonly string[] = [
  imageName("files"),
  imageName("inventory"),
  MANIFEST_NAME,
  "stats-restore",
];

/** Fills the directory `to` with the images of `from`, in which each file path of `paths` is replaced. */
export function relocateImages(options: {
  readonly from: string;
  readonly to: string;
  readonly paths: ReadonlyMap<string, string>;
}): void {
  const { from, to, paths } = options;
  const rewritten = imageName("files");
  const last = imageName("inventory");
  const copied = readdirSync(from).filter((file) => !NOT_LINKED.includes(file));
  for (const file of copied) linkOrCopy(join(from, file), join(to, file));
  writeFileSync(join(to, rewritten), filesImage(join(from, rewritten), paths), { mode: 0o600 });
  rewriteManifest(from, to, rewritten);
  linkOrCopy(join(from, last), join(to, last));
}

/** The manifest of `from` with what one of its files is in `to`. */
function rewriteManifest(from: string, to: string, changed: string): void {
  const manifest = loadManifest(from);
  if (manifest === undefined) return;
  const files = new Map(Object.entries(manifest.files)).set(changed, describeFile(to, changed));
  writeFileSync(join(to, MANIFEST_NAME), renderManifest(files), { mode: 0o600 });
}

function filesImage(path: string, paths: ReadonlyMap<string, string>): Uint8Array {
  using file = new ImageFile(path, imageName("files"));
  const parts = readEntries(file, "files").map(({ value }) => {
    const { reg } = value;
    const name = reg === undefined ? undefined : paths.get(reg.name);
    const moved =
      reg === undefined || name === undefined ? value : { ...value, reg: { ...reg, name } };
    return entryBytes("file_entry", moved);
  });
  return Buffer.concat([headBytes("files"), ...parts]);
}

function linkOrCopy(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to);
  }
}
