// Sets that CRIU made: what we decode is what `crit decode` prints, and writing what was read gives
// the same bytes.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { entryBytes, headBytes, ImageFile, readEntries } from "./image-file.ts";
import { imageToJson, stringifyJson } from "./json.ts";
import { kindSpec, parseImageName, type EntryKind } from "./names.ts";
import { encodePagemap, readPagemap } from "./pagemap.ts";
import type { MessageName } from "./codec.ts";

const FIXTURES = join(import.meta.dirname, "../../test/fixtures/criu-images");
const SETS = readdirSync(FIXTURES, { withFileTypes: true }).filter(
  (entry) => entry.isDirectory() && entry.name !== "bin",
);

describe.each(SETS.map((set) => set.name))("the set %s of CRIU", (set) => {
  const images = decodedImages(set);

  it.each(images.map((image) => image.name))("%s decodes as crit shows it", (name) => {
    const { kind, path } = placeOf(set, name);
    using file = new ImageFile(path, name);
    const expected = images.find((image) => image.name === name)?.json;
    expect(stringifyJson(imageToJson(file, kind))).toBe(expected);
  });

  it.each(images.map((image) => image.name))("%s is written byte for byte", (name) => {
    const { kind, path } = placeOf(set, name);
    using file = new ImageFile(path, name);
    expect(rewrite(file, kind).equals(readFileSync(path))).toBe(true);
  });

  it("pagemaps are written byte for byte by their own codec", () => {
    const pagemaps = images.filter(({ name }) => name.includes("pagemap-"));
    expect(pagemaps.length).toBeGreaterThan(0);
    for (const { name } of pagemaps) {
      const { kind, path } = placeOf(set, name);
      using file = new ImageFile(path, name);
      const pagemap = readPagemap(file, kind as "pagemap");
      expect(encodePagemap(kind as "pagemap", pagemap)).toEqual(readFileSync(path));
    }
  });
});

/** One line an image in decoded.txt: `"NAME": JSON,`. Kept as text, since numbers have 64 bits. */
function decodedImages(set: string): { name: string; json: string }[] {
  const lines = readFileSync(join(FIXTURES, set, "decoded.txt"), "utf8").split("\n");
  return lines.flatMap((line) => {
    const match = /^"([^"]+)": (.*?),?$/.exec(line);
    return match === null ? [] : [{ name: match[1] ?? "", json: match[2] ?? "" }];
  });
}

function placeOf(set: string, name: string): { kind: EntryKind; path: string } {
  const parsed = parseImageName(name.slice(name.lastIndexOf("/") + 1));
  if (parsed === undefined) throw new Error(`not an image: ${name}`);
  return { kind: parsed.kind as EntryKind, path: join(FIXTURES, set, "img", name) };
}

/** Entries are encoded anew, payload is copied. */
function rewrite(file: ImageFile, kind: EntryKind): Buffer {
  const spec = kindSpec(kind);
  const parts: Uint8Array[] = [headBytes(kind)];
  const entries = readEntries(file, kind);
  for (const [index, entry] of entries.entries()) {
    const message = index === 0 ? (spec.head ?? spec.message) : spec.message;
    const bytes = entryBytes(message as MessageName, entry.value as never);
    const end = entry.offset + bytes.length;
    parts.push(bytes, file.bytes(end, (entries[index + 1]?.offset ?? file.size) - end));
  }
  return Buffer.concat(parts);
}
