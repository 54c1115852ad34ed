import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import type { RepriseError } from "../errors.ts";
import { AT_FDCWD, O_RDONLY } from "../sys/abi/fcntl.ts";
import { syscall } from "../sys/ffi.ts";
import { ENTRY_ARGUMENTS, ENTRY_SIZE } from "./arch/x86_64/code.ts";
import { cpuid, runHere } from "./local.ts";
import { Program, type ProgramImage } from "./program.ts";

const BASE = 0x5000_0000;
const EBADF = 9;
const NO_FD = 1_000_000;

function argument(image: ProgramImage, entry: number, index: number): bigint {
  const at = image.table - image.base + entry * ENTRY_SIZE + ENTRY_ARGUMENTS + index * 8;
  return image.upload.readBigUInt64LE(at);
}

function failureOf(program: Program): RepriseError {
  try {
    runHere(program);
  } catch (error) {
    return error as RepriseError;
  }
  throw new Error("the program did not fail");
}

test("layout(): data, table, results and output follow each other, aligned, and nothing overlaps", () => {
  const program = new Program();
  program.data(Buffer.from("abc"));
  const out = program.output(5);
  program.call("read", [0, out, 5]);
  program.call("close", [3]);
  const image = program.layout(BASE);
  expect(image.table).toBe(BASE + 16);
  expect(image.end).toBe(image.table + 2 * ENTRY_SIZE);
  expect(image.results).toBe(image.end);
  expect(image.upload.length).toBe(image.results - BASE);
  expect(image.output).toBeGreaterThanOrEqual(image.results + 16);
  expect(image.output % 16).toBe(0);
  expect(image.downloadSize).toBe(image.output + 5 - image.results);
  expect(image.size).toBe(image.output + 5 - BASE);
  expect(program.size).toBeGreaterThanOrEqual(image.size);
});

test("layout(): literals, negative numbers, addresses above 4 GiB and bigints keep all their bits", () => {
  const program = new Program();
  program.call("mmap", [-1, 0x7fff_ffff_f000, 0xffff_ffff_ffff_ffffn, -4096, AT_FDCWD, 0]);
  const image = program.layout(BASE);
  expect([0, 1, 2, 3, 4].map((index) => BigInt.asIntN(64, argument(image, 0, index)))).toEqual([
    -1n,
    0x7fff_ffff_f000n,
    -1n,
    -4096n,
    -100n,
  ]);
});

test("layout(): pointers move with the base, also inside structures", () => {
  const program = new Program();
  const text = program.string("text");
  const out = program.output(16);
  const structure = program.structure(Buffer.alloc(24, 7), { 0: text, 16: out });
  program.call("write", [1, structure, 24]);
  for (const base of [BASE, 0x7f12_3456_7000]) {
    const image = program.layout(base);
    const at = Number(argument(image, 0, 1)) - base;
    expect(image.upload.readBigUInt64LE(at)).toBe(BigInt(base + text.offset));
    expect(image.upload.readBigUInt64LE(at + 8)).toBe(0x0707_0707_0707_0707n);
    expect(image.upload.readBigUInt64LE(at + 16)).toBe(BigInt(image.output + out.offset));
  }
});

test("string(): equal strings share one place, and end with a zero byte", () => {
  const program = new Program();
  const first = program.string("/a/ü");
  expect(program.string("/a/ü")).toBe(first);
  const other = program.string("/b");
  expect(other.offset).toBe(first.offset + Buffer.byteLength("/a/ü") + 1);
  const { upload } = program.layout(BASE);
  expect(upload.subarray(first.offset, other.offset).toString()).toBe("/a/ü\0");
});

test("a call's result comes back", () => {
  const program = new Program();
  const pid = program.call("getpid", []);
  expect(runHere(program).value(pid)).toBe(process.pid);
});

test("a result is an argument of a later call, and output comes back", () => {
  const dir = mkdtempSync(join(tmpdir(), "reprise-program-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const path = join(dir, "file");
  writeFileSync(path, "content of it");
  const program = new Program();
  const fd = program.call("openat", [AT_FDCWD, program.string(path), O_RDONLY, 0]);
  const out = program.output(64);
  const count = program.call("pread64", [fd, out, 64, 8]);
  program.call("close", [fd]);
  const again = program.call("close", [fd], { mayFail: true });
  const result = runHere(program);
  expect(result.value(count)).toBe(5);
  expect(result.bytes(out, 5).toString()).toBe("of it");
  expect(result.value(again)).toBe(-EBADF);
});

test.each([4, 8] as const)("a word of %d bytes that the kernel wrote is an argument", (width) => {
  const program = new Program();
  // Two descriptors of 4 bytes each: read as 8 bytes they are one big number, unless the second half is 0.
  const ends = program.output(8);
  program.call("pipe2", [ends, 0]);
  const size = program.output(16);
  const text = program.data(Buffer.from("x"));
  const load = { kind: "load", from: ends, width: 4, plus: 0 } as const;
  const writeEnd = { ...load, from: { ...ends, offset: ends.offset + 4 } };
  const written = program.call("write", [writeEnd, text, 1]);
  const read = program.call("read", [load, size, 16]);
  // The word that was just read: 'x' and zeros.
  const word = { kind: "load", from: size, width, plus: -120 + NO_FD } as const;
  const closed = program.call("close", [word], { mayFail: true });
  program.call("close", [load]);
  program.call("close", [writeEnd]);
  const result = runHere(program);
  expect([written, read, closed].map((ref) => result.value(ref))).toEqual([1, 1, -EBADF]);
});

test("a word of 4 bytes keeps its sign, one of 8 bytes keeps all bits", () => {
  const program = new Program();
  const word = program.data(Buffer.from([0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]));
  const out = program.output(8);
  // lseek on a bad descriptor tells nothing; the copies' own results do.
  program.call("lseek", [{ kind: "load", from: word, width: 4 }, 0, 0], { mayFail: true });
  program.call("lseek", [{ kind: "load", from: word, width: 8, plus: 1 }, 0, 0], { mayFail: true });
  const result = runHere(program);
  expect(result.value({ kind: "ref", entry: 0 })).toBe(-1);
  expect(result.value({ kind: "ref", entry: 2 })).toBe(0x2_0000_0000);
  expect(result.bytes(out, 8).every((byte) => byte === 0)).toBe(true);
});

test("a call that must succeed ends the program, and the error tells which one and why", () => {
  const fd = openSync("/dev/null", "r");
  onTestFinished(() => closeSync(fd));
  const program = new Program();
  program.call("getpid", []);
  const path = program.string("/no/such\nfile");
  program.call("openat", [AT_FDCWD, path, O_RDONLY, 0], { label: "open it", hint: "Make it." });
  program.call("close", [fd]);
  const error = failureOf(program);
  expect(error).toMatchObject({
    code: "REMOTE_CALL",
    message: 'cannot open it: openat(AT_FDCWD, "/no/such\\nfile", 0x0, 00): ENOENT',
    syscall: "openat",
    errno: "ENOENT",
    pid: process.pid,
    hint: "Make it.",
  });
  expect(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1")).toContain("flags"); // it was not closed
});

test("a call whose result is not the expected one ends the program", () => {
  const program = new Program();
  const fd = program.call("openat", [AT_FDCWD, program.string("/dev/null"), O_RDONLY, 0]);
  program.call("read", [fd, program.output(8), 8], { expect: 8, label: "read it" });
  expect(failureOf(program).message).toBe(
    "cannot read it: read(result of openat, &, 8): result 0 instead of 8",
  );
});

test("an expected error is none", () => {
  const program = new Program();
  const closed = program.call("close", [NO_FD], { expect: -EBADF, mayFail: true });
  const pid = program.call("getpid", [], { expect: process.pid });
  const result = runHere(program);
  expect([closed, pid].map((ref) => result.value(ref))).toEqual([-EBADF, process.pid]);
});

test("a call that may fail still fails when another result was expected", () => {
  const program = new Program();
  program.call("close", [NO_FD], { expect: 0, mayFail: true });
  expect(failureOf(program).errno).toBe("EBADF");
});

test("10,000 calls come back in order", () => {
  const program = new Program();
  const refs = Array.from({ length: 10_000 }, (_, index) =>
    program.call("lseek", [index % 2 === 0 ? NO_FD : -1, index, 99], { mayFail: true }),
  );
  const last = program.call("getpid", []);
  const result = runHere(program);
  expect(refs.every((ref) => result.value(ref) < 0)).toBe(true);
  expect(result.value(last)).toBe(process.pid);
});

test("calls counts system calls, length also the copies", () => {
  const program = new Program();
  const fd = program.call("openat", [AT_FDCWD, program.string("/"), O_RDONLY, 0]);
  program.call("close", [fd]);
  expect(program.calls).toBe(2);
  expect(program.length).toBe(3);
});

test("explain() prints every call with its label, and no copies", () => {
  const program = new Program();
  const fd = program.call("openat", [AT_FDCWD, program.string("/a b"), 0x80000, 0o600]);
  program.call("dup3", [fd, 7, 0], { label: "place fd 7" });
  expect(program.explain()).toEqual([
    'openat(AT_FDCWD, "/a b", 0x80000, 0600)',
    "dup3(result of openat, 7, 0x0)  # place fd 7",
  ]);
});

test("cpuid() tells the maker of the processor", () => {
  const { ebx, ecx, edx } = cpuid(0, 0);
  const text = Buffer.from(new Uint32Array([ebx, edx, ecx]).buffer).toString("latin1");
  expect(text).toMatch(/^[\w ]{12}$/);
  expect(readFileSync("/proc/cpuinfo", "latin1")).toContain(text);
});

test("repeat(): steps are done so many times, with references among them, and what follows once", () => {
  const [reading, writing] = openPipe();
  try {
    for (const count of [1, 2, 1000]) {
      const program = new Program();
      program.call("getpid", []);
      program.repeat(count, () => {
        const wrote = program.call("write", [writing, program.string("xyz"), 3], { expect: 3 });
        program.call("read", [reading, program.output(4), wrote], { expect: 3 });
        program.call("write", [writing, program.string("x"), 1]);
      });
      const after = program.call("read", [reading, program.output(2000), 2000]);
      expect(runHere(program).value(after)).toBe(count);
    }
  } finally {
    closeSync(reading);
    closeSync(writing);
  }
});

test("repeat(): a failure tells the call that failed", () => {
  const [reading, writing] = openPipe();
  closeSync(writing);
  try {
    const program = new Program();
    program.repeat(3, () => {
      program.call("getpid", []);
      program.call("read", [reading, program.output(4), 4], { expect: 1, label: "read on" });
    });
    expect(failureOf(program).message).toContain("read on");
  } finally {
    closeSync(reading);
  }
});

function openPipe(): [number, number] {
  const fds = Buffer.alloc(8);
  syscall("pipe2", fds, 0);
  return [fds.readInt32LE(0), fds.readInt32LE(4)];
}

test("failure(): where memory does not suffice, the limits are named", () => {
  const program = new Program();
  // More than there are addresses.
  program.call("mmap", [0, 2 ** 47, 0, 0x22, -1, 0], { label: "map much" });
  const { message, hint } = failureOf(program);
  expect(message).toMatch(/^cannot map much: mmap\(.*\): ENOMEM$/);
  expect(hint).toContain("vm.max_map_count");
});
