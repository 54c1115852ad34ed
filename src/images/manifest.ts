// reprise-manifest.json: size and CRC-32 of every image of a set, written at commit. CRIU's images
// have no trailer and no checksum, so a file that was cut off between two entries, or that is from
// another dump into the same directory, reads as a good one. CRIU ignores the file; sets that CRIU
// made have none.
import {
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { crc32 } from "./crc32.ts";
import { RepriseError } from "../errors.ts";
import { parseImageName } from "./names.ts";

export const MANIFEST_NAME = "reprise-manifest.json";
const MANIFEST_VERSION = 1;

/** Above this many bytes, page images have their size alone: reading them back costs too much. */
export const MAX_CHECKED_PAGES = 64 * 1024 * 1024;

export interface ManifestFile {
  /** Bytes. */
  readonly size: number;
  /** CRC-32 of the content; absent for large page images. */
  readonly crc32?: number | undefined;
}

export interface Manifest {
  readonly version: typeof MANIFEST_VERSION;
  readonly files: Readonly<Record<string, ManifestFile>>;
}

/** Size and checksum of a file as it is on disk. System errors are thrown as they are. */
export function describeFile(dir: string, name: string): ManifestFile {
  const { size, crc32: sum } = examineFile(dir, name);
  return sum === undefined ? { size } : { size, crc32: sum };
}

/** The same, and the content of a small file. */
function examineFile(dir: string, name: string): ManifestFile & { readonly content?: Uint8Array } {
  const fd = openSync(join(dir, name), "r");
  try {
    const { size } = fstatSync(fd);
    if (!isChecked(name, size)) return { size };
    if (size > MOST_KEPT) return { size, crc32: checksum(fd, size) };
    // One byte more: it may have grown.
    const content = new Uint8Array(size + 1);
    const count = readSync(fd, content, 0, content.length, 0);
    if (count !== size) return { size, crc32: checksum(fd, size) };
    return { size, crc32: crc32(content.subarray(0, size)), content: content.subarray(0, size) };
  } finally {
    closeSync(fd);
  }
}

/** Files up to this size are read once: what is verified is what is used. A set with thousands of tasks has ten thousands of them. */
const MOST_KEPT = 32 * 1024;

/** Whether a file of this name and size has a checksum. */
function isChecked(name: string, size: number): boolean {
  return size <= MAX_CHECKED_PAGES || parseImageName(name)?.kind !== "pages";
}

export function renderManifest(files: ReadonlyMap<string, ManifestFile>): string {
  const manifest: Manifest = { version: MANIFEST_VERSION, files: Object.fromEntries(files) };
  return `${JSON.stringify(manifest)}\n`;
}

/**
 * The manifest of a set, or undefined when it has none.
 * @throws RepriseError BAD_IMAGE when it is damaged, IMAGE_VERSION when it is of a later version.
 */
export function loadManifest(dir: string): Manifest | undefined {
  const path = join(dir, MANIFEST_NAME);
  if (!existsSync(path)) return undefined;
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw badManifest(`cannot be read: ${(error as Error).message}`);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw badManifest((error as Error).message);
  }
  return checkManifest(parsed);
}

/** No file has it: a checksum that never fits. */
const SPENT = -1;

/**
 * Notes in a set's manifest that part of a file's content is given back (--auto-dedup), so that the set is not restored by
 * itself any more: the pages would be zero. As a parent it is still good. System errors are thrown as they are.
 */
export function noteGivenBack(dir: string, name: string): void {
  const manifest = loadManifest(dir);
  const file = manifest?.files[name];
  if (manifest === undefined || file === undefined) return;
  const files = new Map(
    Object.entries({ ...manifest.files, [name]: { size: file.size, crc32: SPENT } }),
  );
  const path = join(dir, MANIFEST_NAME);
  writeFileSync(`${path}.new`, renderManifest(files), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

function checkManifest(parsed: unknown): Manifest {
  const manifest = parsed as Partial<Manifest> | null;
  if (typeof manifest !== "object" || manifest === null) throw badManifest("not an object");
  if (manifest.version !== MANIFEST_VERSION) {
    const hint = "Restore the set with the version of Reprise that made it, or a later one.";
    const code = typeof manifest.version === "number" ? "IMAGE_VERSION" : "BAD_IMAGE";
    const what = `its version is ${String(manifest.version)}, not ${MANIFEST_VERSION}`;
    throw new RepriseError(code, `cannot read ${MANIFEST_NAME}: ${what}`, { hint });
  }
  const { files } = manifest;
  if (typeof files !== "object" || files === null) throw badManifest("it lists no files");
  for (const [name, file] of Object.entries(
    files as Record<string, Partial<ManifestFile> | null>,
  )) {
    if (name.includes("/") || !Number.isSafeInteger(file?.size))
      throw badManifest(`bad entry ${name}`);
  }
  return manifest as Manifest;
}

/**
 * Compares every file of a set with its manifest.
 * @returns the content of the small files, by their names
 * @throws RepriseError BAD_IMAGE naming each file that is missing, cut off or changed.
 */
export function verifyManifest(dir: string, manifest: Manifest): ReadonlyMap<string, Uint8Array> {
  const contents = new Map<string, Uint8Array>();
  const faults = Object.entries(manifest.files)
    .map(([name, expected]) => faultOf(dir, name, { expected, contents }))
    .filter((fault) => fault !== undefined);
  if (faults.length === 0) return contents;
  const shown = faults.slice(0, MAX_FAULTS_SHOWN).join("; ");
  const more =
    faults.length > MAX_FAULTS_SHOWN ? `; and ${faults.length - MAX_FAULTS_SHOWN} more` : "";
  throw new RepriseError("BAD_IMAGE", `cannot use image set: ${shown}${more}`, {
    hint: `The files are not those of the dump. Copy the set again; if they were changed on purpose, remove ${MANIFEST_NAME}.`,
  });
}

const MAX_FAULTS_SHOWN = 8;

function faultOf(
  dir: string,
  name: string,
  {
    expected,
    contents,
  }: { readonly expected: ManifestFile; readonly contents: Map<string, Uint8Array> },
): string | undefined {
  let found: ReturnType<typeof examineFile>;
  try {
    found = examineFile(dir, name);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === "ENOENT" ? `${name} is missing` : `${name} cannot be read (${code})`;
  }
  if (found.size < expected.size)
    return `${name} is cut off at ${found.size} of ${expected.size} bytes`;
  if (found.size > expected.size) return `${name} has ${found.size} bytes, not ${expected.size}`;
  const same = expected.crc32 === undefined || found.crc32 === expected.crc32;
  if (same && found.content !== undefined) contents.set(name, found.content);
  return same ? undefined : `${name} was changed or is from another dump`;
}

const CHUNK_BYTES = 1024 * 1024;

function checksum(fd: number, size: number): number {
  // One byte more, so that a file of this size is read in one piece; most are small, and a whole chunk is slow to make.
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, size + 1));
  let value = 0;
  for (let at = 0; ;) {
    const count = readSync(fd, chunk, 0, chunk.length, at);
    if (count === 0) return value;
    value = crc32(chunk.subarray(0, count), value);
    at += count;
    if (count < chunk.length) return value;
  }
}

function badManifest(what: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot read ${MANIFEST_NAME}: ${what}`, {
    hint: "Copy the image set again from where it was made.",
  });
}
