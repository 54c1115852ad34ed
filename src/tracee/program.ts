// A remote program: a table of system calls that the interpreter runs inside a process. It is built in TypeScript, sent in
// one piece, run in one stop and its results come back in one piece.
//
//   const program = new Program();
//   const fd = program.call("openat", [AT_FDCWD, program.string("/etc/motd"), O_RDONLY, 0], { label: "open the file" });
//   program.call("dup3", [fd, 7, 0]);
//
// In the work area a program lies as [data | table] (sent) [results | output] (fetched).

import { RepriseError } from "../errors.ts";
import { errnoName } from "../sys/errno.ts";
import { AT_FDCWD } from "../sys/abi/fcntl.ts";
import { readI64 } from "../sys/memory.ts";
import { SYSCALLS, type SyscallName } from "../sys/syscalls.x86_64.ts";
import {
  ENTRY_ARGUMENTS,
  ENTRY_COPY_32,
  ENTRY_COPY_64,
  ENTRY_EXPECT,
  ENTRY_EXPECTED,
  ENTRY_MAY_FAIL,
  ENTRY_REPEAT,
  ENTRY_SIZE,
} from "./arch/x86_64/code.ts";

/** The result of an earlier call, as an argument of a later one. */
export interface Ref {
  readonly kind: "ref";
  readonly entry: number;
  readonly plus?: number;
}

/** A place in the program's data (sent with it), or in what is fetched after it: results of its calls, and output. */
export interface Pointer {
  readonly kind: "pointer";
  readonly segment: "data" | "results" | "output";
  readonly offset: number;
}

/** A word that is read from the program's memory when the call is made (what pipe2 wrote there, say). */
export interface Load {
  readonly kind: "load";
  readonly from: Pointer;
  readonly width: 4 | 8;
  readonly plus?: number;
}

/**
 * A place in other memory, at a distance from where a word of the program's data points to: its address, or what stands there when the call
 * is made.
 */
export interface Distant {
  readonly kind: "distant";
  readonly base: Pointer;
  readonly offset: number;
  readonly read: "address" | 4 | 8;
}

export type Argument = number | bigint | Ref | Pointer | Load | Distant;

/** How far a program was when something was added to it: the calls and the output from there on. */
export interface Mark {
  readonly entry: number;
  readonly output: number;
}

/** The place of an argument in the table: where a copy writes to. */
interface ArgumentPlace {
  readonly kind: "argument";
  readonly entry: number;
  readonly index: number;
}

export interface CallOptions {
  /**
   * What the call is for: "open /var/log/app.log for fd 7 of pid 42". Told when it fails; a function where there are so many calls that
   * the texts would take their time.
   */
  readonly label?: string | (() => string);
  /** Go on when the call fails; the caller looks at the result. */
  readonly mayFail?: boolean;
  /** The one result that is right: a read of fewer bytes, say, is a failure. */
  readonly expect?: number;
  /** What to do about a failure. */
  readonly hint?: string;
}

/** Every entry has every field: there are ten thousands of them, and V8 is quick with objects of one form. */
interface Entry {
  readonly nr: number;
  readonly flags: number;
  readonly expect: number | undefined;
  readonly args: readonly (Argument | ArgumentPlace)[];
  /** Undefined where a word is copied, or something repeated. */
  readonly name: SyscallName | undefined;
  readonly label: CallOptions["label"];
  readonly hint: string | undefined;
}

const DATA_ALIGNMENT = 16;
const NO_OPTIONS: CallOptions = {};

const MEMORY_CALLS: ReadonlySet<string> = new Set(["mmap", "mprotect", "madvise", "mremap", "brk"]);

/** What is meant by a failure that says little. */
function hintFor(call: string | undefined, errno: string): string | undefined {
  return errno === "ENOMEM" && call !== undefined && MEMORY_CALLS.has(call)
    ? "Memory, a limit on it (RLIMIT_AS, a cgroup) or the number of areas (vm.max_map_count) does not suffice: raise it."
    : undefined;
}

export class Program {
  readonly #entries: Entry[] = [];
  readonly #data: { offset: number; bytes: Uint8Array }[] = [];
  readonly #fixups: { offset: number; pointer: Pointer }[] = [];
  readonly #strings = new Map<string, Pointer>();
  readonly #words = new Map<number, Pointer>();
  #dataSize = 0;
  #outputSize = 0;
  #calls = 0;
  /** As it was laid out last, while nothing has been added since. */
  #laidOut: LaidOut | undefined;

  /** Number of table entries so far. */
  get length(): number {
    return this.#entries.length;
  }

  /** Where it is now. */
  get mark(): Mark {
    return { entry: this.#entries.length, output: this.#outputSize };
  }

  /** Number of system calls among them. */
  get calls(): number {
    return this.#calls;
  }

  /** Adds a system call; the reference stands for its result. */
  call(name: SyscallName, args: readonly Argument[], options: CallOptions = NO_OPTIONS): Ref {
    // Copies that fill in late arguments come first: they write into the call's own entry.
    let late = 0;
    for (let index = 0; index < args.length; index += 1) late += entriesFor(args[index]);
    const entry = this.#entries.length + late;
    this.#laidOut = undefined;
    if (late > 0) {
      for (let index = 0; index < args.length; index += 1) {
        const arg = args[index];
        if (isLate(arg)) this.#addCopy(arg, { kind: "argument", entry, index });
      }
    }
    const { mayFail, expect, label, hint } = options;
    this.#entries.push({
      nr: SYSCALLS[name].nr,
      flags: (mayFail === true ? ENTRY_MAY_FAIL : 0) | (expect === undefined ? 0 : ENTRY_EXPECT),
      expect,
      args,
      name,
      label,
      hint,
    });
    this.#calls += 1;
    return { kind: "ref", entry };
  }

  /** Puts bytes into the data segment. */
  data(bytes: Uint8Array, alignment: number = DATA_ALIGNMENT): Pointer {
    const offset = Math.ceil(this.#dataSize / alignment) * alignment;
    this.#laidOut = undefined;
    this.#data.push({ offset, bytes });
    this.#dataSize = offset + bytes.length;
    return { kind: "pointer", segment: "data", offset };
  }

  /** Puts a zero-terminated string into the data segment; equal strings share one place. */
  string(text: string): Pointer {
    let pointer = this.#strings.get(text);
    if (pointer === undefined) {
      pointer = this.data(Buffer.from(`${text}\0`), 1);
      this.#strings.set(text, pointer);
    }
    return pointer;
  }

  /** Puts a word of four bytes, which no call changes, into the data segment; equal words share one place. */
  word(value: number): Pointer {
    let pointer = this.#words.get(value);
    if (pointer === undefined) {
      const bytes = Buffer.alloc(4);
      bytes.writeInt32LE(value | 0);
      pointer = this.data(bytes, 4);
      this.#words.set(value, pointer);
    }
    return pointer;
  }

  /** Puts a structure into the data segment in which some words are addresses in the program. */
  structure(bytes: Uint8Array, pointers: Readonly<Record<number, Pointer>>): Pointer {
    const place = this.data(bytes);
    for (const [at, pointer] of Object.entries(pointers)) {
      this.#fixups.push({ offset: place.offset + Number(at), pointer });
    }
    return place;
  }

  /** Adds the copying of a word (the address that mmap gave, say) into the program's data, for a structure that a later call takes. */
  copy(from: Ref | Load, to: Pointer): void {
    this.#addWordCopy(from, to);
  }

  /** Adds the copying of a call's result to a place in other memory. */
  keep(from: Ref, { base, offset }: Pick<Distant, "base" | "offset">): void {
    const entry = this.#entries.length + 1;
    this.#addWordCopy(
      { kind: "load", from: base, width: 8, plus: offset },
      { kind: "argument", entry, index: 1 },
    );
    this.#addWordCopy(from, 0);
  }

  /**
   * Adds steps that are done so many times, at least once. What they bring is of the last time.
   *
   * @returns the place of the counter, which is 0 at the end
   */
  repeat(count: number, steps: () => void): Pointer {
    const counter = Buffer.alloc(8);
    counter.writeBigUInt64LE(BigInt(Math.max(count, 1)));
    const place = this.data(counter);
    this.loop(place, steps);
    return place;
  }

  /** Adds steps that are done as many times as a word of eight bytes says, at least once, which is counted down. */
  loop(counter: Pointer, steps: () => void): void {
    const first = this.#entries.length;
    steps();
    this.#laidOut = undefined;
    // It goes on behind where it goes back to.
    const back = (this.#entries.length - first + 1) * ENTRY_SIZE;
    this.#entries.push({
      nr: ENTRY_REPEAT,
      flags: 0,
      args: [counter, back],
      expect: undefined,
      name: undefined,
      label: undefined,
      hint: undefined,
    });
  }

  /** Where the results of its calls are, 8 bytes an entry, and behind them the output. */
  get results(): Pointer {
    return { kind: "pointer", segment: "results", offset: 0 };
  }

  /** Reserves `size` bytes of output. They may hold anything before: what must be zero goes into data. */
  output(size: number, alignment: number = DATA_ALIGNMENT): Pointer {
    const offset = Math.ceil(this.#outputSize / alignment) * alignment;
    this.#laidOut = undefined;
    this.#outputSize = offset + size;
    return { kind: "pointer", segment: "output", offset };
  }

  /** Lays the program out for an address in the process. The same program again, for another thread, is moved. */
  layout(base: number): ProgramImage {
    const { image, addresses } = (this.#laidOut ??= this.#layOut(base));
    return image.base === base ? image : moved(image, addresses, base);
  }

  #layOut(base: number): LaidOut {
    const table = Math.ceil(this.#dataSize / DATA_ALIGNMENT) * DATA_ALIGNMENT;
    const results = table + this.#entries.length * ENTRY_SIZE;
    const output =
      Math.ceil((results + this.#entries.length * 8) / DATA_ALIGNMENT) * DATA_ALIGNMENT;
    const place: Place = {
      data: base,
      table: base + table,
      results: base + results,
      output: base + output,
    };
    const upload = Buffer.alloc(results);
    const view = new DataView(upload.buffer, upload.byteOffset, upload.length);
    for (const { offset, bytes } of this.#data) upload.set(bytes, offset);
    const addresses: number[] = [];
    for (const { offset, pointer } of this.#fixups) {
      setWord(view, offset, addressIn(place, pointer));
      addresses.push(offset);
    }
    // Loops without closures: the program that opens thousands of files is laid out while tasks wait.
    let at = table;
    for (const { nr, flags, expect, args } of this.#entries) {
      view.setUint32(at, nr, true);
      view.setUint32(at + 4, flags, true);
      if (expect !== undefined) setWord(view, at + ENTRY_EXPECTED, expect);
      for (let position = 0; position < args.length; position++) {
        const arg = args[position] ?? 0;
        // The rest of the table is zero already.
        if (arg === 0) continue;
        const wordAt = at + ENTRY_ARGUMENTS + position * 8;
        setWord(view, wordAt, typeof arg === "number" ? arg : literal(place, arg));
        if (typeof arg === "object" && arg.kind !== "load" && arg.kind !== "distant")
          addresses.push(wordAt);
      }
      at += ENTRY_SIZE;
    }
    const image = {
      base,
      upload,
      table: place.table,
      results: place.results,
      output: place.output,
      end: place.table + this.#entries.length * ENTRY_SIZE,
      downloadSize: output - results + this.#outputSize,
      size: output + this.#outputSize,
    };
    return { image, addresses };
  }

  /** Upper bound of the bytes that the program takes in the work area. */
  get size(): number {
    return (
      this.#dataSize +
      this.#entries.length * (ENTRY_SIZE + 8) +
      this.#outputSize +
      2 * DATA_ALIGNMENT
    );
  }

  /** The error for the entry at which a run ended early. */
  failure(entry: number, result: number, pid: number): RepriseError {
    const failed = this.#entries[entry];
    const errno =
      result < 0
        ? errnoName(-result)
        : `result ${result} instead of ${failed?.expect ?? "another"}`;
    const what = textOf(failed?.label) ?? "run a system call";
    const hint = failed?.hint ?? hintFor(failed?.name, errno);
    const details = {
      pid,
      errno,
      ...(failed?.name === undefined ? {} : { syscall: failed.name }),
      ...(hint === undefined ? {} : { hint }),
    };
    return new RepriseError(
      "REMOTE_CALL",
      `cannot ${what}: ${this.describe(entry)}: ${errno}`,
      details,
    );
  }

  /** One entry as text: `openat(AT_FDCWD, "/a", 0x2, 0)`. */
  describe(entry: number): string {
    const shown = this.#entries[entry];
    if (shown?.name === undefined) return shown?.nr === ENTRY_REPEAT ? "repeat" : "copy a word";
    const kinds = SYSCALLS[shown.name].args.split(" ");
    const args = shown.args
      .slice(0, kinds.length)
      .map((arg, index) => this.#show(arg, kinds[index] ?? "int"));
    return `${shown.name}(${args.join(", ")})`;
  }

  /** All calls as text, with their labels: what `--explain` prints; of a run, with the results of as many entries as were run. */
  explain(run?: { readonly result: ProgramResult; readonly entries: number }): string[] {
    return this.#entries.slice(0, run?.entries).flatMap((entry, index) => {
      if (entry.name === undefined) return [];
      const outcome = run === undefined ? "" : ` = ${outcomeText(run.result, index)}`;
      const label = entry.label === undefined ? "" : `  # ${textOf(entry.label)}`;
      return [`${this.describe(index)}${outcome}${label}`];
    });
  }

  #addCopy(arg: Ref | Load | Distant, to: ArgumentPlace): void {
    if (arg.kind !== "distant") return this.#addWordCopy(arg, to);
    const address: Load = { kind: "load", from: arg.base, width: 8, plus: arg.offset };
    if (arg.read === "address") return this.#addWordCopy(address, to);
    const entry = this.#entries.length + 1;
    this.#addWordCopy(address, { kind: "argument", entry, index: 0 });
    this.#addWordCopy(arg.read, to);
  }

  /** Of a number the copy is of a word of so many bytes whose address is filled in, as `to` is where it is 0. */
  #addWordCopy(from: Ref | Load | 4 | 8, to: Pointer | ArgumentPlace | 0): void {
    this.#laidOut = undefined;
    const width = typeof from === "number" ? from : from.kind === "load" ? from.width : 8;
    this.#entries.push({
      nr: width === 4 ? ENTRY_COPY_32 : ENTRY_COPY_64,
      flags: ENTRY_MAY_FAIL,
      args:
        typeof from === "number"
          ? [0, to, 0]
          : [from.kind === "load" ? from.from : from, to, from.plus ?? 0],
      expect: undefined,
      name: undefined,
      label: undefined,
      hint: undefined,
    });
  }

  #show(arg: Argument | ArgumentPlace, kind: string): string {
    if (typeof arg === "object") {
      if (arg.kind === "argument") return "&argument";
      if (arg.kind === "ref") return `result of ${this.describe(arg.entry).split("(")[0]}`;
      if (arg.kind === "load" || arg.kind === "distant") return "*";
      const text = kind === "path" ? this.#stringAt(arg) : undefined;
      return text === undefined ? "&" : JSON.stringify(text);
    }
    if (kind === "fd" && Number(arg) === AT_FDCWD) return "AT_FDCWD";
    if (kind === "oct") return `0${arg.toString(8)}`;
    if (["ptr", "hex", "prot", "mapflags", "oflags"].includes(kind))
      return `0x${BigInt.asUintN(64, BigInt(arg)).toString(16)}`;
    return arg.toString();
  }

  #stringAt(pointer: Pointer): string | undefined {
    for (const [text, place] of this.#strings) if (place === pointer) return text;
    return undefined;
  }
}

/** A program laid out for one address. */
export interface ProgramImage {
  readonly base: number;
  readonly upload: Buffer;
  readonly table: number;
  readonly end: number;
  readonly results: number;
  readonly output: number;
  readonly downloadSize: number;
  readonly size: number;
}

/** An image, and where in it addresses stand. */
interface LaidOut {
  readonly image: ProgramImage;
  readonly addresses: readonly number[];
}

function moved(image: ProgramImage, addresses: readonly number[], base: number): ProgramImage {
  const by = base - image.base;
  const upload = Buffer.from(image.upload);
  const view = new DataView(upload.buffer, upload.byteOffset, upload.length);
  for (let index = 0; index < addresses.length; index += 1) {
    const at = addresses[index] as number;
    const address = view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_32;
    setWord(view, at, address + by);
  }
  return {
    base,
    upload,
    table: image.table + by,
    end: image.end + by,
    results: image.results + by,
    output: image.output + by,
    downloadSize: image.downloadSize,
    size: image.size,
  };
}

const TWO_32 = 0x1_0000_0000;

/** What the calls of a program have said. */
export interface Answers {
  /** A call's result; negative error numbers for calls that may fail. */
  value(ref: Ref): number;
  /** `size` bytes of output. */
  bytes(pointer: Pointer, size: number): Buffer;
  /** Eight bytes of output as a number. */
  word(pointer: Pointer): bigint;
}

/** What a program that ran to its end brought back. */
export class ProgramResult implements Answers {
  readonly #bytes: Buffer;
  readonly #outputStart: number;

  /** `bytes` are the results and the output, as fetched from the work area. */
  constructor(image: ProgramImage, bytes: Buffer) {
    this.#bytes = bytes;
    this.#outputStart = image.output - image.results;
  }

  /** A call's result; negative error numbers for calls that may fail. */
  value(ref: Ref): number {
    return readI64(this.#bytes, ref.entry * 8);
  }

  /** All results and output from a mark on, for comparing answers. */
  since({ entry, output }: Mark): string {
    const results = this.#bytes.toString("latin1", entry * 8, this.#outputStart);
    return results + this.#bytes.toString("latin1", this.#outputStart + output);
  }

  /** `size` bytes of output. */
  bytes(pointer: Pointer, size: number): Buffer {
    const at = this.#outputStart + pointer.offset;
    return this.#bytes.subarray(at, at + size);
  }

  word({ offset }: Pointer): bigint {
    return this.#bytes.readBigUInt64LE(this.#outputStart + offset);
  }
}

interface Place {
  readonly data: number;
  readonly table: number;
  readonly results: number;
  readonly output: number;
}

function isLate(arg: Argument | undefined): arg is Ref | Load | Distant {
  return typeof arg === "object" && arg.kind !== "pointer";
}

/** How many copies fill an argument in. */
function entriesFor(arg: Argument | undefined): number {
  if (!isLate(arg)) return 0;
  return arg.kind === "distant" && arg.read !== "address" ? 2 : 1;
}

function addressIn(place: Place, pointer: Pointer): number {
  return place[pointer.segment] + pointer.offset;
}

/** What stands in the table before the run. A late argument of a call is 0 until a copy fills it in. */
function literal(place: Place, arg: Argument | ArgumentPlace): number | bigint {
  if (typeof arg !== "object") return arg;
  switch (arg.kind) {
    case "pointer":
      return addressIn(place, arg);
    case "ref":
      return place.results + arg.entry * 8;
    case "argument":
      return place.table + arg.entry * ENTRY_SIZE + ENTRY_ARGUMENTS + arg.index * 8;
    case "load":
    case "distant":
      return 0;
  }
}

function textOf(label: string | (() => string) | undefined): string | undefined {
  return typeof label === "function" ? label() : label;
}

function outcomeText(result: ProgramResult, entry: number): string {
  const value = result.value({ kind: "ref", entry });
  if (value < 0 && value > -4096) return errnoName(-value);
  return value > 0xffff_ffff ? `0x${value.toString(16)}` : `${value}`;
}

function setWord(view: DataView, at: number, value: number | bigint): void {
  if (typeof value === "bigint") {
    view.setBigUint64(at, BigInt.asUintN(64, value), true);
    return;
  }
  // DataView takes the number modulo 2^32.
  view.setUint32(at, value, true);
  const isShort = value >= 0 && value <= 0xffff_ffff;
  view.setInt32(at + 4, isShort ? 0 : Math.floor(value / 0x1_0000_0000), true);
}
