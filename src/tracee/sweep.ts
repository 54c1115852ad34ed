// One and the same question to hundreds of threads: a program of this process that goes from record to record of a table, a record for
// each thread, and leaves in it what the kernel says. It is one call through the FFI for all of them, and no JavaScript runs meanwhile.

import { addressOf, callNative, callNativeInBackground, trySyscall } from "../sys/ffi.ts";
import { readI64 } from "../sys/memory.ts";
import type { SyscallName } from "../sys/syscalls.x86_64.ts";
import { localInterpreter } from "./local.ts";
import {
  Program,
  type Answers,
  type Argument,
  type CallOptions,
  type Pointer,
  type ProgramImage,
  type Ref,
} from "./program.ts";

/** A part of a record: `read` it in an argument, or give its address there. */
export interface Field {
  readonly offset: number;
  readonly size: number;
}

/** The steps for one record. Its output, and the results of its calls, are parts of the record. */
export class RecordProgram extends Program {
  /** Holds the address of the record. */
  readonly #record: Pointer = this.data(Buffer.alloc(8));
  readonly #results: number[] = [];
  #size = 0;

  /** Room in each record. */
  field(size: number, alignment = 8): Field {
    const offset = Math.ceil(this.#size / alignment) * alignment;
    this.#size = offset + size;
    return { offset, size };
  }

  /** What stands in a field when the call is made, a number of four bytes or eight. */
  contentOf({ offset, size }: Field): Argument {
    return { kind: "distant", base: this.#record, offset, read: size === 4 ? 4 : 8 };
  }

  addressOf({ offset }: Field): Argument {
    return { kind: "distant", base: this.#record, offset, read: "address" };
  }

  /** How long the record is so far. */
  get end(): number {
    return this.#size;
  }

  override output(size: number, alignment = 16): Pointer {
    return { kind: "pointer", segment: "output", offset: this.field(size, alignment).offset };
  }

  override call(name: SyscallName, args: readonly Argument[], options?: CallOptions): Ref {
    const found = super.call(
      name,
      args.map((arg) => (isOutput(arg) ? this.addressOf({ ...arg, size: 0 }) : arg)),
      options,
    );
    const { offset } = this.field(8);
    this.#results[found.entry] = offset;
    this.keep(found, { base: this.#record, offset });
    return found;
  }

  /** Where in a record the result of a call is. */
  resultAt({ entry }: Ref): number {
    return this.#results[entry] ?? 0;
  }

  /** Ends the steps: on to the next record. @returns the size of one */
  advance(): number {
    const size = Math.ceil(this.#size / 64) * 64;
    this.copy({ kind: "load", from: this.#record, width: 8, plus: size }, this.#record);
    return size;
  }

  get record(): Pointer {
    return this.#record;
  }
}

function isOutput(arg: Argument): arg is Pointer {
  return typeof arg === "object" && arg.kind === "pointer" && arg.segment === "output";
}

export class Sweep implements Answers {
  /** Of records, in order. */
  readonly memory: Buffer;
  readonly count: number;
  /** Size of a record. */
  readonly size: number;
  readonly #program = new RecordProgram();
  readonly #counter: Pointer;
  readonly #image: ProgramImage;
  /** The program, and behind it the records. */
  readonly #bytes: Buffer;
  readonly #records: number;
  /** The record that is asked for answers. */
  #at = 0;

  /** `steps` adds what is done for each record. */
  constructor(count: number, steps: (program: RecordProgram) => void) {
    this.count = count;
    this.#counter = this.#program.data(Buffer.alloc(8));
    let size = 0;
    this.#program.loop(this.#counter, () => {
      steps(this.#program);
      size = this.#program.advance();
    });
    this.size = size;
    const room = Math.ceil(this.#program.size / 64) * 64;
    // Pages that nothing is written to are none.
    const bytes = Buffer.alloc(room + size * count + 64);
    const base = Math.ceil(addressOf(bytes) / 64) * 64;
    this.#bytes = bytes.subarray(base - addressOf(bytes));
    this.#records = base + room;
    this.#image = this.#program.layout(base);
    this.memory = this.#bytes.subarray(room, room + size * count);
  }

  /** Address of a field of a record. */
  address(index: number, { offset }: Field): number {
    return this.#records + index * this.size + offset;
  }

  /** Where a field of a record is in `memory`. */
  place(index: number, { offset }: Field): number {
    return index * this.size + offset;
  }

  /** Does the steps for the first records. All calls may fail. */
  run(count = this.count): void {
    if (count === 0) return;
    const { table, results, end } = this.#send(count);
    callNative(localInterpreter(), table, results, end);
  }

  /** The same for all records on another thread of this process: not for calls that only a tracer may make. To be waited for. */
  runElsewhere(): void {
    const { table, results, end } = this.#send(this.count);
    callNativeInBackground(localInterpreter(), table, results, end);
  }

  /** Waits for it without going back to the event loop: nearly always it has ended long ago. */
  awaitEnd(): void {
    // It is counted down behind the last step.
    while (this.#left() !== 0) trySyscall("sched_yield");
  }

  /** Gives the answers of one record from here on. */
  select(index: number): this {
    this.#at = index * this.size;
    return this;
  }

  value(ref: Ref): number {
    return readI64(this.memory, this.#at + this.#program.resultAt(ref));
  }

  bytes({ offset }: Pointer, size: number): Buffer {
    const at = this.#at + offset;
    return this.memory.subarray(at, at + size);
  }

  word({ offset }: Pointer): bigint {
    return this.memory.readBigUInt64LE(this.#at + offset);
  }

  /** All that was said of a record from a place in it on, for comparing. */
  textFrom(offset: number): string {
    return this.memory.toString("latin1", this.#at + offset, this.#at + this.size);
  }

  #send(count: number): ProgramImage {
    const { upload } = this.#image;
    upload.writeBigUInt64LE(BigInt(count), this.#counter.offset);
    upload.writeBigUInt64LE(BigInt(this.#records), this.#program.record.offset);
    this.#bytes.set(upload);
    return this.#image;
  }

  #left(): number {
    return readI64(this.#bytes, this.#counter.offset);
  }
}
