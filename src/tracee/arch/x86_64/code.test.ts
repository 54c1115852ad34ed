import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import {
  allowingRelay,
  assemble,
  blockingRelay,
  CPUID,
  DISPATCHED_STUB_SIZE,
  RETURN,
  INTERPRETER,
  LOCAL_INTERPRETER,
  seedEntry,
  siblingEntry,
  isStub,
  SPAWN,
  stub,
  STUB_SIZE,
  STUB_UNDO,
  type Instruction,
} from "./code.ts";

const BACK = {
  area: { address: 0x1004_0000, size: 0x3000 },
  rax: 0x1111_2222_3333_4444n,
  rcx: 0xffff_ffff_ffff_ffffn,
  rdx: 0x8000_0000_0000_0000n,
  rsi: 0x10_0000_0001n,
  rdi: 0x10_0000_0002n,
  r8: 0x10_0000_0003n,
  r9: 0x10_0000_0004n,
  r10: 0x10_0000_0005n,
  r11: 0x10_0000_0006n,
  rip: 0x7fff_1234_5678n,
  mask: 0xffff_ffff_fffb_feffn,
};
/** What the texts name instead of a number. */
const NAMED: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
  "the seed's entry": [["ENGINE", "0x12d687"]],
  "the stub": [
    ["[rip+mask]", "[rip+0x75]"],
    ...(["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"] as const).map(
      (name) => [`movabs ${name}`, `movabs ${name},0x${BACK[name].toString(16)}`] as const,
    ),
    ["movabs AREA", "movabs rdi,0x10040000"],
    ["movabs SIZE", "movabs rsi,0x3000"],
  ],
};
const SELECTOR: readonly [string, string] = ["movabs SELECTOR", "movabs rcx,0x7fff10000008"];
const STUB_NAMES = NAMED["the stub"] ?? [];
const DISPATCHED: typeof NAMED = {
  "the stub under dispatch": [
    ["[rip+mask]", "[rip+0x82]"],
    ...STUB_NAMES.filter(([name]) => name !== "[rip+mask]"),
    SELECTOR,
  ],
  "the way in under dispatch": [SELECTOR],
};
const PIECES: readonly (readonly [string, readonly Instruction[]])[] = [
  ["the interpreter", INTERPRETER],
  ["the local interpreter", LOCAL_INTERPRETER],
  ["cpuid", CPUID],
  ["return", RETURN],
  ["the spawn", SPAWN],
  ["the entry of a sibling", siblingEntry(23)],
  ["the stub", stub(BACK)],
  ["the stub under dispatch", stub(BACK, { selector: 0x7fff_1000_0008 })],
  ["the way in under dispatch", allowingRelay(0x7fff_1000_0008, 0x1004_0000)],
  ["the way back under dispatch", blockingRelay(0x7fff_1000_0008, BACK)],
  ["the seed's entry", seedEntry(0x12d687)],
];

test.each(PIECES)("%s: objdump reads every instruction as its text says", (name, instructions) => {
  const { bytes, labels } = assemble(instructions);
  const shown = disassemble(bytes);
  let at = 0;
  for (const { bytes: own, text, target } of instructions) {
    if (!text.startsWith("(")) {
      let wanted = text;
      for (const [from, to] of NAMED[name] ?? DISPATCHED[name] ?? [])
        wanted = wanted.replace(from, to);
      if (target !== undefined)
        wanted = wanted.replace(/ \w+$/, ` 0x${(labels[target] as number).toString(16)}`);
      expect(shown.get(at), `at ${at}`).toBe(wanted);
    }
    at += own.length;
  }
  expect(at).toBe(bytes.length);
});

test.each(PIECES)("%s: every jump has its label", (_name, instructions) => {
  const { labels } = assemble(instructions);
  const targets = instructions.flatMap(({ target }) => (target === undefined ? [] : [target]));
  for (const target of targets) expect(labels).toHaveProperty(target);
});

test("the stub has the size it says, its mask where the lea points, its address where the jump reads", () => {
  const { bytes, labels } = assemble(stub(BACK));
  expect(bytes.length).toBe(STUB_SIZE);
  expect(bytes.readBigUInt64LE(labels["mask"] as number)).toBe(BACK.mask);
  expect(bytes.readBigUInt64LE(labels["back"] as number)).toBe(BACK.rip);
  const lea = bytes.indexOf(Buffer.from([0x48, 0x8d, 0x35]));
  expect(lea + 7 + bytes.readInt32LE(lea + 3)).toBe(labels["mask"]);
  const jump = bytes.lastIndexOf(Buffer.from([0xff, 0x25, 0, 0, 0, 0]));
  expect(jump + 6).toBe(labels["back"]);
  expect(labels["undo"]).toBe(STUB_UNDO);
});

test("the stub under dispatch has the size it says, and its mask where the lea points", () => {
  const { bytes, labels } = assemble(stub(BACK, { selector: 0x7fff_1000_0008 }));
  expect(bytes.length).toBe(DISPATCHED_STUB_SIZE);
  const lea = bytes.indexOf(Buffer.from([0x48, 0x8d, 0x35]));
  expect(lea + 7 + bytes.readInt32LE(lea + 3)).toBe(labels["mask"]);
  expect(isStub(bytes)).toBe(true);
});

test("a stub is known again, whatever its constants; other code is not", () => {
  const { bytes } = assemble(stub(BACK));
  expect(isStub(bytes)).toBe(true);
  expect(isStub(Buffer.alloc(STUB_SIZE))).toBe(false);
  expect(isStub(bytes.subarray(1))).toBe(false);
});

test("the interpreter fits into the room that injections leave for it, and stops before its signal-return", () => {
  const { bytes, labels } = assemble(INTERPRETER);
  expect(bytes.length).toBeLessThanOrEqual(512);
  // The stop is seen with rip behind the tkill: the instruction before `stopped` is a syscall.
  const stopped = labels["stopped"] as number;
  expect([...bytes.subarray(stopped - 2, stopped)]).toEqual([0x0f, 0x05]);
});

/** Address to text, as objdump prints it, blanks joined and comments removed. */
function disassemble(bytes: Buffer): Map<number, string> {
  const dir = mkdtempSync(join(tmpdir(), "reprise-code-"));
  try {
    const file = join(dir, "code");
    writeFileSync(file, bytes);
    const args = ["-D", "-w", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", file];
    const lines = execFileSync("objdump", args, { encoding: "utf8" }).split("\n");
    const shown = new Map<number, string>();
    for (const line of lines) {
      const match = /^\s*([0-9a-f]+):\t[^\t]+\t(.*)$/.exec(line);
      if (match === null) continue;
      const text = (match[2] as string)
        .replace(/\s*#.*$/, "")
        .replace(/\s+/g, " ")
        .trim();
      shown.set(Number.parseInt(match[1] as string, 16), text);
    }
    return shown;
  } finally {
    rmSync(dir, { recursive: true });
  }
}
