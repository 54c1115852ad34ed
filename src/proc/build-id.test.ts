import { execFileSync } from "node:child_process";
import { mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { findBuildId, readBuildId } from "./build-id.ts";

const dir = mkdtempSync(join(tmpdir(), "build-id-"));
afterAll(() => rmSync(dir, { recursive: true }));

const ID = Uint8Array.from({ length: 20 }, (_, at) => at + 1);

interface Elf {
  readonly notes?: readonly Uint8Array[];
  readonly align?: number;
  readonly phoff?: bigint;
  readonly phnum?: number;
  readonly phentsize?: number;
  readonly noteOffset?: bigint;
  readonly noteSize?: bigint;
}

/** A note: name, type, content, padded to the alignment; sizes can be made to lie. */
function note(
  name: string,
  type: number,
  content: Uint8Array,
  options: {
    readonly align?: number;
    readonly contentSize?: number;
    readonly nameSize?: number;
  } = {},
): Uint8Array {
  const align = options.align ?? 4;
  const pad = (size: number): number => Math.ceil(size / align) * align;
  const start = pad(12 + name.length);
  const bytes = new Uint8Array(pad(start + content.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, options.nameSize ?? name.length, true);
  view.setUint32(4, options.contentSize ?? content.length, true);
  view.setUint32(8, type, true);
  bytes.set(Buffer.from(name, "latin1"), 12);
  bytes.set(content, start);
  return bytes;
}

/** An ELF file with one load segment and a segment of notes for each entry, which lie behind the headers. */
function elf(shape: Elf = {}): Uint8Array {
  const notes = shape.notes ?? [note("GNU\0", 3, ID)];
  const headers = 1 + notes.length;
  const size = 64 + headers * 56 + notes.reduce((sum, bytes) => sum + bytes.length, 0);
  const file = new Uint8Array(size);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setBigUint64(32, shape.phoff ?? 64n, true);
  view.setUint16(54, shape.phentsize ?? 56, true);
  view.setUint16(56, shape.phnum ?? headers, true);
  view.setUint32(64, 1, true);
  let at = 64 + headers * 56;
  for (const [index, bytes] of notes.entries()) {
    const header = 64 + (index + 1) * 56;
    view.setUint32(header, 4, true);
    view.setBigUint64(header + 8, shape.noteOffset ?? BigInt(at), true);
    view.setBigUint64(header + 32, shape.noteSize ?? BigInt(bytes.length), true);
    view.setBigUint64(header + 48, BigInt(shape.align ?? 4), true);
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}

/** Finds the build id in memory and counts what is read. */
function find(file: Uint8Array): { readonly id: Uint8Array | undefined; readonly asked: number } {
  let asked = 0;
  const id = findBuildId((offset, length) => {
    asked += length;
    return file.subarray(offset, offset + length);
  });
  return { id, asked };
}

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(Buffer.concat(parts));
}

describe("findBuildId()", () => {
  const abi = note("GNU\0", 1, new Uint8Array(16));
  const property = note("GNU\0", 5, new Uint8Array(20), { align: 8 });
  it.each([
    ["alone", elf()],
    ["behind another note", elf({ notes: [joined(abi, note("GNU\0", 3, ID))] })],
    ["in the second segment", elf({ notes: [abi, note("GNU\0", 3, ID)] })],
    [
      "behind a note aligned to 8",
      elf({ notes: [joined(property, note("GNU\0", 3, ID, { align: 8 }))], align: 8 }),
    ],
    [
      "behind a note of another maker",
      elf({ notes: [joined(note("Go\0", 3, new Uint8Array(5)), note("GNU\0", 3, ID))] }),
    ],
  ])("finds it %s", (_, file) => {
    expect(find(file).id).toStrictEqual(ID);
  });

  it.each([
    ["an empty file", new Uint8Array()],
    ["a script", Uint8Array.from(Buffer.from("#!/bin/sh\n".repeat(20)))],
    ["a 32-bit file", elf().map((byte, at) => (at === 4 ? 1 : byte))],
    ["a big-endian file", elf().map((byte, at) => (at === 5 ? 2 : byte))],
    ["a file cut in the header", elf().subarray(0, 60)],
    ["a file cut in the note", elf().subarray(0, -1)],
    ["program headers beyond the end", elf({ phoff: 1n << 40n })],
    ["program headers at an offset that is no number", elf({ phoff: (1n << 64n) - 1n })],
    ["program headers of no size", elf({ phentsize: 0 })],
    ["notes at an offset that is no number", elf({ noteOffset: (1n << 64n) - 1n })],
    ["an empty id", elf({ notes: [note("GNU\0", 3, new Uint8Array())] })],
    ["an id of 65 bytes", elf({ notes: [note("GNU\0", 3, new Uint8Array(65))] })],
    [
      "content longer than the segment",
      elf({ notes: [note("GNU\0", 3, ID, { contentSize: 24 })] }),
    ],
    [
      "sizes near 2^32",
      elf({ notes: [note("GNU\0", 3, ID, { nameSize: 0xffffffff, contentSize: 0xffffffff })] }),
    ],
    ["another note only", elf({ notes: [abi] })],
  ])("finds none in %s", (_, file) => {
    expect(find(file).id).toBeUndefined();
  });

  it("reads little, whatever the sizes say", () => {
    const many = elf({
      notes: Array.from({ length: 100 }, () => abi),
      noteSize: (1n << 64n) - 1n,
      phnum: 0xffff,
    });
    expect(find(many).id).toBeUndefined();
    expect(find(many).asked).toBeLessThan(2 ** 21);
  });
});

describe("readBuildId()", () => {
  it("reads what a linker wrote", () => {
    const output = join(dir, "program");
    const id = "00112233445566778899aabbccddeeff";
    const args = ["-x", "c", "-", "-o", output, `-Wl,--build-id=0x${id}`];
    execFileSync("gcc", args, { input: "int main(void) { return 0; }" });
    expect(Buffer.from(readBuildId(output) ?? []).toString("hex")).toBe(id);
  });

  it("reads a file and knows what is not one", () => {
    const path = join(dir, "written");
    writeFileSync(path, elf());
    expect(readBuildId(path)).toStrictEqual(ID);
    expect(readBuildId("/dev/zero")).toBeUndefined();
    expect(readBuildId(realpathSync(dir))).toBeUndefined();
  });

  it("is not held up by a FIFO", () => {
    const fifo = join(dir, "fifo");
    execFileSync("mkfifo", [fifo]);
    expect(readBuildId(fifo)).toBeUndefined();
  });

  it("throws SYSCALL for a file that is not there", () => {
    expect(() => readBuildId(join(dir, "missing"))).toThrow(
      expect.objectContaining({ code: "SYSCALL", errno: "ENOENT" }),
    );
  });
});
