// Running a program in this very process: many system calls for the price of one call through the FFI (0.2 µs instead of
// more than a microsecond each). Used where the engine reads thousands of small /proc files while tasks are frozen.

import { RepriseError } from "../errors.ts";
import {
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  PAGE_SIZE,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
} from "../sys/abi/mman.ts";
import { addressOf, callNative, callNativeInBackground, memoryAt, syscall } from "../sys/ffi.ts";
import { readI64 } from "../sys/memory.ts";
import {
  assemble,
  CPUID,
  ENTRY_ARGUMENTS,
  ENTRY_SIZE,
  LOCAL_INTERPRETER,
  type Instruction,
} from "./arch/x86_64/code.ts";
import {
  ProgramResult,
  type Answers,
  type Pointer,
  type Program,
  type ProgramImage,
  type Ref,
} from "./program.ts";

let interpreterAt: number | undefined;

/** Address of the interpreter for this process. */
export function localInterpreter(): number {
  return (interpreterAt ??= loadCode(LOCAL_INTERPRETER));
}

let cpuidAt: number | undefined;

/**
 * Runs a program in this process.
 *
 * @throws RepriseError REMOTE_CALL for the first call that must succeed and did not.
 */
export function runHere(program: Program): ProgramResult {
  const size = Math.ceil(program.size / PAGE_SIZE) * PAGE_SIZE;
  const base = mapMemory(size, PROT_READ | PROT_WRITE);
  try {
    const image = program.layout(base);
    memoryAt(base, image.upload.length).set(image.upload);
    const end = callNative(localInterpreter(), image.table, image.results, image.end);
    const result = new ProgramResult(
      image,
      Buffer.from(memoryAt(image.results, image.downloadSize)),
    );
    if (end !== image.end) {
      const entry = (end - image.table) / ENTRY_SIZE;
      throw program.failure(entry, result.value({ kind: "ref", entry }), process.pid);
    }
    return result;
  } finally {
    syscall("munmap", base, size);
  }
}

/**
 * A program that stays in this process, to be run many times: where thousands of objects are asked the same, only that one call
 * through the FFI is left of each. All its calls may fail.
 */
export class ResidentProgram implements Answers, Disposable {
  readonly #image: ProgramImage;
  readonly #base: number;
  readonly #size: number;
  readonly #memory: Buffer;
  readonly #words: Uint32Array;

  constructor(program: Program) {
    this.#size = Math.ceil(program.size / PAGE_SIZE) * PAGE_SIZE;
    this.#base = mapMemory(this.#size, PROT_READ | PROT_WRITE);
    this.#image = program.layout(this.#base);
    const bytes = memoryAt(this.#base, this.#size);
    this.#memory = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#memory.set(this.#image.upload);
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, this.#size / 4);
  }

  /** Changes its data for good: text, of which each character is a byte. */
  put(at: Pointer, text: string): void {
    this.#image.upload.write(text, at.offset, "latin1");
  }

  /** Runs it with its data as they were built, but for one word. What it brought is there until the next run. */
  run(word: { readonly at: Pointer; readonly value: number }): void {
    const { upload } = this.#image;
    upload.writeInt32LE(word.value, word.at.offset);
    this.#memory.set(upload);
    this.runAgain();
  }

  /** Sets one argument of some calls, a number that is not negative. */
  setArgument(calls: readonly Ref[], index: number, value: number): void {
    const first = (this.#image.table - this.#base + ENTRY_ARGUMENTS) / 4 + index * 2;
    for (const { entry } of calls) this.#words[first + (entry * ENTRY_SIZE) / 4] = value;
  }

  /** Runs it, or the first entries of it, with its data as they are. */
  runAgain(entries?: number): void {
    const { table, results, end } = this.#image;
    const last = entries === undefined ? end : table + entries * ENTRY_SIZE;
    callNative(localInterpreter(), table, results, last);
  }

  /** As `runAgain`, on another thread. Its last call tells that it is done: until then nothing here may be used. */
  runElsewhere(): void {
    const { table, results, end } = this.#image;
    callNativeInBackground(localInterpreter(), table, results, end);
  }

  /** Whether a call failed. */
  failed({ entry }: Ref): boolean {
    // The upper half of the result.
    return this.#memory.readInt32LE(this.#resultAt(entry) + 4) < 0;
  }

  /** A call's result; a negative error number when it failed. */
  value(ref: Ref): number {
    const at = this.#resultAt(ref.entry) / 4;
    const low = this.#words[at] as number;
    const high = this.#words[at + 1] as number;
    // Nearly all are small; there are ten thousands of them.
    if (high === 0) return low;
    return high === NEGATIVE ? low - TWO_32 : readI64(this.#memory, at * 4);
  }

  /** Bytes of data or output, as the last run left them: a window, not a copy. */
  bytes({ segment, offset }: Pointer, size: number): Buffer {
    const start = segment === "data" ? 0 : this.#image.output - this.#image.base;
    return this.#memory.subarray(start + offset, start + offset + size);
  }

  word(pointer: Pointer): bigint {
    return this.bytes(pointer, 8).readBigUInt64LE();
  }

  /** Results of the first entries: a window. */
  results(count: number): Buffer {
    const start = this.#resultAt(0);
    return this.#memory.subarray(start, start + count * 8);
  }

  /** All that the last run brought, results and output: a window. */
  get brought(): Buffer {
    const start = this.#image.results - this.#image.base;
    return this.#memory.subarray(start, start + this.#image.downloadSize);
  }

  /** Gives the memory back; nothing of it may be looked at any more. */
  [Symbol.dispose](): void {
    syscall("munmap", this.#base, this.#size);
  }

  #resultAt(entry: number): number {
    return this.#image.results - this.#image.base + entry * 8;
  }
}

/** The upper half of a small negative number. */
const NEGATIVE = 0xffff_ffff;
const TWO_32 = 0x1_0000_0000;

/** The processor's answer to CPUID. */
export function cpuid(
  leaf: number,
  subleaf: number,
): { eax: number; ebx: number; ecx: number; edx: number } {
  cpuidAt ??= loadCode(CPUID);
  const out = Buffer.alloc(16);
  callNative(cpuidAt, leaf, subleaf, addressOf(out));
  return {
    eax: out.readUInt32LE(0),
    ebx: out.readUInt32LE(4),
    ecx: out.readUInt32LE(8),
    edx: out.readUInt32LE(12),
  };
}

/** Machine code in a page of its own in this process. @returns its address */
export function loadCode(instructions: readonly Instruction[]): number {
  const { bytes } = assemble(instructions);
  const at = mapMemory(PAGE_SIZE, PROT_READ | PROT_WRITE);
  memoryAt(at, bytes.length).set(bytes);
  syscall("mprotect", at, PAGE_SIZE, PROT_READ | PROT_EXEC);
  return at;
}

function mapMemory(size: number, prot: number): number {
  const at = syscall("mmap", 0, size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at <= 0) throw new RepriseError("SYSCALL", "cannot map memory for a local program: mmap");
  return at;
}
