// The same questions to thousands of descriptors of this process, in one call of the interpreter: a loop takes a descriptor from a list,
// asks, and appends all that it was told to a file in memory. So a second survey of the same descriptors is compared with the first
// as a whole. A record has nothing in it but what the kernel has said: output is zero before each descriptor is asked.

import { assert, RepriseError } from "../errors.ts";
import { MAP_POPULATE, MAP_SHARED, MFD_CLOEXEC, PROT_READ } from "../sys/abi/mman.ts";
import { EINTR } from "../sys/errno.ts";
import { O_CLOEXEC, SEEK_CUR } from "../sys/abi/fcntl.ts";
import { memoryAt, syscall, trySyscall } from "../sys/ffi.ts";
import { ResidentProgram } from "./local.ts";
import { Program, type CallOptions, type Load, type Pointer, type Ref } from "./program.ts";
import type { SyscallName } from "../sys/syscalls.x86_64.ts";

/** What a survey asks is added by these; all calls may fail. */
export interface SurveyQuestions {
  /** The descriptor that is asked: it has the same number for all, so that equal answers are equal records. */
  readonly fd: number;
  /** Its own number. */
  readonly number: Load;
  call(name: SyscallName, args: Parameters<Program["call"]>[1]): Ref;
  /** Room for what a call tells. */
  output(size: number): Pointer;
  /** Memory that is so before each descriptor is asked, whatever the calls write there. */
  input(bytes: Uint8Array): Pointer;
}

/** Calls that follow each other, and what they have told. */
export interface SurveyRange {
  readonly first: Ref;
  readonly last: Ref;
  /** Of the output. */
  readonly start: number;
  readonly end: number;
}

/** What was told, a record a descriptor. */
export class SurveyAnswers {
  readonly bytes: Buffer;
  readonly #words: Int32Array;
  readonly #size: number;
  readonly #outputAt: number;

  constructor(bytes: Buffer, { size, outputAt }: { size: number; outputAt: number }) {
    this.bytes = bytes;
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    this.#size = size;
    this.#outputAt = outputAt;
  }

  /** A call's result, which is small; a negative error number when it failed. */
  value(index: number, { entry }: Ref): number {
    return this.#words[(index * this.#size + entry * 8) >>> 2] as number;
  }

  /** A word of output, on a boundary of words. */
  word(index: number, { offset }: Pointer, plus = 0): number {
    return this.#words[(index * this.#size + this.#outputAt + offset + plus) >>> 2] as number;
  }

  /** Bytes of output: a window. */
  output(index: number, { offset }: Pointer, size: number): Buffer {
    const start = index * this.#size + this.#outputAt + offset;
    return this.bytes.subarray(start, start + size);
  }

  /** Whether some calls have told of one what they told of another one, in a survey with the same questions. */
  isAlike(index: number, other: SurveyPlace, { first, last, start, end }: SurveyRange): boolean {
    const [here, there] = [index * this.#size, other.index * this.#size];
    const [from, to] = [first.entry * 8, (last.entry + 1) * 8];
    const { bytes } = other.answers;
    if (this.bytes.compare(bytes, there + from, there + to, here + from, here + to) !== 0)
      return false;
    const [a, b] = [this.#outputAt + start, this.#outputAt + end];
    return this.bytes.compare(bytes, there + a, there + b, here + a, here + b) === 0;
  }

  /** The numbers of those that answered otherwise at another time. */
  differences(other: SurveyAnswers): number[] {
    if (this.bytes.equals(other.bytes)) return [];
    const found: number[] = [];
    const size = this.#size;
    for (let index = 0, at = 0; at < this.bytes.length; index += 1, at += size) {
      if (this.bytes.compare(other.bytes, at, at + size, at, at + size) !== 0) found.push(index);
    }
    return found;
  }
}

/** One descriptor's record. */
export interface SurveyPlace {
  readonly answers: SurveyAnswers;
  readonly index: number;
}

const NUMBER_SIZE = 4;
const ALIGNMENT = 16;
const MAY_FAIL: CallOptions = { mayFail: true };
const PROGRAM_NAME = Buffer.from("reprise\0");

export class Survey implements Disposable {
  readonly #count: number;
  readonly #program: ResidentProgram;
  readonly #counter: Buffer;
  readonly #write: Ref;
  readonly #files: number[] = [];
  /** An eventfd. */
  readonly #done: number;
  #isRunning = false;
  readonly #mapped: { readonly at: number; readonly size: number }[] = [];
  readonly #recordSize: number;
  readonly #outputAt: number;

  constructor(numbers: readonly number[], ask: (questions: SurveyQuestions) => void) {
    this.#count = numbers.length;
    const list = this.#memoryFile();
    const template = this.#memoryFile();
    writeAll(list, Buffer.from(Uint32Array.from(numbers).buffer));
    // A number that is ours.
    const fd = this.#memoryFile();
    const program = new Program();
    const inputs: { readonly at: number; readonly bytes: Uint8Array }[] = [];
    const sizes = Buffer.alloc(8);
    const sizesAt = program.data(sizes);
    const size = (at: number): Load => ({
      kind: "load",
      from: { ...sizesAt, offset: at },
      width: 4,
    });
    const place = program.output(NUMBER_SIZE);
    const number: Load = { kind: "load", from: place, width: 4 };
    let write: Ref | undefined;
    program.call("lseek", [list, 0, 0], MAY_FAIL);
    const counter = program.repeat(numbers.length, () => {
      program.call("pread64", [template, place, size(0), 0], MAY_FAIL);
      program.call("read", [list, place, NUMBER_SIZE], MAY_FAIL);
      program.call("dup3", [number, fd, O_CLOEXEC], MAY_FAIL);
      ask({
        fd,
        number,
        call: (name, args) => program.call(name, args, MAY_FAIL),
        output: (room) => program.output(room, 4),
        input: (bytes) => {
          const at = program.output(bytes.length, 4);
          inputs.push({ at: at.offset, bytes });
          return at;
        },
      });
      write = program.call("write", [0, program.results, size(4)], MAY_FAIL);
    });
    this.#done = syscall("eventfd2", 0, O_CLOEXEC);
    this.#files.push(this.#done);
    program.call("dup3", [list, fd, O_CLOEXEC], MAY_FAIL);
    program.call("write", [this.#done, program.data(ONE), ONE.length], MAY_FAIL);
    assert(write !== undefined && place.offset === 0, "a survey is laid out in this order");
    // So that all records begin where words do.
    program.output(0, ALIGNMENT);
    const outputSize = program.mark.output;
    const bytes = Buffer.alloc(outputSize);
    for (const input of inputs) bytes.set(input.bytes, input.at);
    writeAll(template, bytes);
    this.#outputAt = Math.ceil((program.length * 8) / ALIGNMENT) * ALIGNMENT;
    this.#recordSize = this.#outputAt + outputSize;
    sizes.writeUInt32LE(outputSize, 0);
    sizes.writeUInt32LE(this.#recordSize, 4);
    this.#write = write;
    this.#program = new ResidentProgram(program);
    assert(this.#program.brought.length === this.#recordSize, "a record is all that is brought");
    this.#counter = this.#program.bytes(counter, 8);
  }

  /** How many are asked. */
  get count(): number {
    return this.#count;
  }

  /** Asks all of them. @throws RepriseError SYSCALL when there is no memory for the answers */
  run(): SurveyAnswers {
    const file = this.#prepare();
    this.#program.runAgain();
    return this.#answers(file);
  }

  /** Asks all of them on another thread. What is returned waits for it, and throws as `run` does. */
  runElsewhere(): () => SurveyAnswers {
    const file = this.#prepare();
    this.#program.runElsewhere();
    this.#isRunning = true;
    return () => this.#answers(file);
  }

  #prepare(): number {
    const file = this.#memoryFile();
    this.#counter.writeUInt32LE(Math.max(1, this.#count), 0);
    this.#program.brought.fill(0);
    this.#program.setArgument([this.#write], 0, file);
    return file;
  }

  #answers(file: number): SurveyAnswers {
    this.#wait();
    const size = this.#count * this.#recordSize;
    const told = syscall("lseek", file, 0, SEEK_CUR);
    if (told !== size) {
      throw new RepriseError("SYSCALL", "cannot keep what descriptors have told: write", {
        syscall: "write",
      });
    }
    // Nothing at all cannot be mapped.
    if (size === 0) return new SurveyAnswers(Buffer.allocUnsafeSlow(0), { size: 0, outputAt: 0 });
    const at = syscall("mmap", 0, size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    this.#mapped.push({ at, size });
    trySyscall("close", this.#files.splice(this.#files.indexOf(file), 1)[0] ?? -1);
    const bytes = memoryAt(at, size);
    return new SurveyAnswers(Buffer.from(bytes.buffer, bytes.byteOffset, size), {
      size: this.#recordSize,
      outputAt: this.#outputAt,
    });
  }

  #wait(): void {
    let result = -EINTR;
    while (result === -EINTR) result = trySyscall("read", this.#done, WORD, WORD.length);
    this.#isRunning = false;
  }

  /** Gives the memory back: nothing that was told may be looked at any more. */
  [Symbol.dispose](): void {
    if (this.#isRunning) this.#wait();
    for (const { at, size } of this.#mapped.splice(0)) syscall("munmap", at, size);
    for (const file of this.#files.splice(0)) trySyscall("close", file);
    this.#program[Symbol.dispose]();
  }

  #memoryFile(): number {
    const file = syscall("memfd_create", PROGRAM_NAME, MFD_CLOEXEC);
    this.#files.push(file);
    return file;
  }
}

/** Words of an eventfd. */
const ONE = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
const WORD = Buffer.alloc(8);

function writeAll(file: number, bytes: Buffer): void {
  for (let at = 0; at < bytes.length;)
    at += syscall("pwrite64", file, bytes.subarray(at), bytes.length - at, at);
}
