// Damaged sets: whatever happens to the files, reading ends, with a set or with an error that says
// what is wrong. Seeded, so a failure can be run again by its number.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { RepriseError } from "../errors.ts";
import { loadGhost, loadImageSet, loadSharedPagemap } from "./check-set.ts";
import { ImageSetReader } from "./image-set-reader.ts";
import { describeFile, MANIFEST_NAME, renderManifest } from "./manifest.ts";

const FIXTURES = join(import.meta.dirname, "../../test/fixtures/criu-images");
const SETS = [
  "tiny",
  "threads-pipes",
  "unix",
  "shmem",
  "pty",
  "evfds",
  "ghost",
  "seccomp",
  "nsinit",
];
const MUTATIONS_PER_SET = 260;
const EXPECTED_CODES = ["BAD_IMAGE", "IMAGE_MISSING", "IMAGE_VERSION"];

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "reprise-mutations-"));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe.each(SETS)("the set %s, damaged", (name) => {
  it(`ends in a set or a clear error (${MUTATIONS_PER_SET} cases)`, () => {
    const dir = copySet(name);
    const codes = new Map<string, number>();
    for (let seed = 1; seed <= MUTATIONS_PER_SET; seed++) {
      const undo = mutate(dir, randomOf(seed), { other: "shell-loop" });
      const outcome = outcomeOf(() => readAll(dir), `${name}, seed ${seed}`);
      codes.set(outcome, (codes.get(outcome) ?? 0) + 1);
      undo();
    }
    expect(codes.get("BAD_IMAGE")).toBeGreaterThan(MUTATIONS_PER_SET / 10);
    expect(outcomeOf(() => readAll(dir), name)).toBe("good");
  });

  it("is found out by the manifest, each time", () => {
    const dir = copySet(name);
    writeManifest(dir);
    for (let seed = 1; seed <= 40; seed++) {
      const undo = mutate(dir, randomOf(seed), { other: "shell-loop" });
      const outcome = outcomeOf(() => readAll(dir), `${name}, seed ${seed}`);
      expect(outcome, `seed ${seed}`).not.toBe("good");
      undo();
    }
    expect(outcomeOf(() => readAll(dir), name)).toBe("good");
  });
});

function copySet(name: string): string {
  const dir = mkdtempSync(join(scratch, `${name}-`));
  cpSync(join(FIXTURES, name, "img"), dir, { recursive: true });
  return dir;
}

function writeManifest(dir: string): void {
  const files = readdirSync(dir).map((file) => [file, describeFile(dir, file)] as const);
  writeFileSync(join(dir, MANIFEST_NAME), renderManifest(new Map(files)));
}

function readAll(dir: string): void {
  const reader = new ImageSetReader(dir);
  reader.verify();
  const set = loadImageSet(reader);
  for (const { remap_id: id, remap_type: type } of set.remaps)
    if (type === 1) loadGhost(reader, id);
  for (const { shmid } of set.memfdInodes.values()) loadSharedPagemap(reader, shmid);
}

function outcomeOf(action: () => void, where: string): string {
  try {
    action();
    return "good";
  } catch (error) {
    if (!(error instanceof RepriseError) || !EXPECTED_CODES.includes(error.code)) {
      throw new Error(`unexpected error for ${where}`, { cause: error });
    }
    expect(error.message).toMatch(/^cannot /);
    return error.code;
  }
}

type Random = (below: number) => number;

/** Mulberry32. */
function randomOf(seed: number): Random {
  let state = seed * 0x9e3779b9;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** Damages one file in one way, always so that its bytes differ; returns what puts it back. */
function mutate(dir: string, random: Random, { other }: { other: string }): () => void {
  const names = readdirSync(dir).filter(
    (file) => file !== MANIFEST_NAME && fileSize(dir, file) > 0,
  );
  const name = names[random(names.length)] ?? "";
  const path = join(dir, name);
  const original = readFileSync(path);
  const kind = random(10);
  if (kind === 0) rmSync(path);
  else if (kind <= 3) writeFileSync(path, original.subarray(0, random(original.length)));
  else if (kind === 4)
    writeFileSync(path, Buffer.concat([original, Buffer.alloc(1 + random(9), 0xff)]));
  else if (kind === 5) writeFileSync(path, foreignImage(other, random, original));
  else writeFileSync(path, flipped(original, random));
  return () => writeFileSync(path, original);
}

function fileSize(dir: string, name: string): number {
  return readFileSync(join(dir, name)).length;
}

function foreignImage(set: string, random: Random, original: Buffer): Buffer {
  const dir = join(FIXTURES, set, "img");
  const names = readdirSync(dir).filter((file) => !readFileSync(join(dir, file)).equals(original));
  return readFileSync(join(dir, names[random(names.length)] ?? ""));
}

function flipped(original: Buffer, random: Random): Buffer {
  const bytes = Buffer.from(original);
  const at = random(bytes.length);
  bytes[at] = (bytes[at] ?? 0) ^ (1 + random(255));
  // Now and then a second one, in the first bytes, where the lengths stand.
  const near = random(Math.min(64, bytes.length));
  if (random(4) === 0 && near !== at) bytes[near] = (bytes[near] ?? 0) ^ (1 + random(255));
  return bytes;
}
