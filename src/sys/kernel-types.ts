// The running kernel's own structures as its description of types tells them (/sys/kernel/btf/vmlinux, BTF; Documentation/bpf/btf.rst).
// Whoever reads the kernel's memory finds fields by their names, so that no layout is assumed. Members of anonymous structures and
// unions count as those of what they stand in.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { MAP_PRIVATE, PROT_READ } from "./abi/mman.ts";
import { memoryAt, trySyscall } from "./ffi.ts";

/** Where a field lies in a structure. */
export interface KernelField {
  /** Bytes from the structure's beginning; of a bit field those of the byte with its first bit. */
  readonly offset: number;
  /** Of a bit field: its lowest bit in that byte. */
  readonly bit: number | undefined;
}

const BTF_PATH = "/sys/kernel/btf/vmlinux";
/** struct btf_header: magic, version, flags, its length, then offset and length of types and of strings. */
const HEADER_LENGTH = 4;
const TYPES = 8;
const STRINGS = 16;

/** Kinds of types, by which the length of an entry is known. */
const KIND_INT = 1;
const KIND_ARRAY = 3;
const KIND_STRUCT = 4;
const KIND_UNION = 5;
const KIND_ENUM = 6;
const KIND_TYPEDEF = 8;
const KIND_VOLATILE = 9;
const KIND_CONST = 10;
const KIND_RESTRICT = 11;
const KIND_FUNC_PROTO = 13;
const KIND_VAR = 14;
const KIND_DATASEC = 15;
const KIND_DECL_TAG = 17;
const KIND_TYPE_TAG = 18;
const KIND_ENUM64 = 19;

/** What only names another type. */
const ALIASES = [KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_TYPE_TAG];

export class KernelTypes {
  readonly #words: Uint32Array;
  readonly #strings: Buffer;
  /** Index of each type's first word, by its number. */
  readonly #types: Int32Array;
  readonly #fields = new Map<string, KernelField>();
  /** By where their names are. */
  readonly #constants = new Map<number, number>();
  /** Looking for a name goes through megabytes. */
  readonly #names = new Map<string, number>();
  readonly #structures = new Map<string, number>();
  static #known: KernelTypes | undefined;

  /**
   * The types of the running kernel, read once.
   *
   * @throws RepriseError KERNEL_FEATURE where it has no description of them.
   */
  static ofKernel(): KernelTypes {
    this.#known ??= new KernelTypes(readDescription());
    return this.#known;
  }

  private constructor(bytes: Buffer) {
    const header = bytes.readUInt32LE(HEADER_LENGTH);
    const part = (at: number): Buffer => {
      const start = header + bytes.readUInt32LE(at);
      return bytes.subarray(start, start + bytes.readUInt32LE(at + 4));
    };
    const words = part(TYPES);
    this.#words = new Uint32Array(words.buffer, words.byteOffset, words.length / 4);
    this.#strings = part(STRINGS);
    this.#types = indexTypes(this.#words);
  }

  /**
   * Where a field is: `io_ring_ctx.submit_state.free_list.next` goes through the structures that the first one holds.
   *
   * @throws RepriseError KERNEL_FEATURE where this kernel has no such field.
   */
  field(path: string): KernelField {
    let known = this.#fields.get(path);
    if (known === undefined) this.#fields.set(path, (known = this.#find(path)));
    return known;
  }

  /**
   * The number that an enumeration has for a name.
   *
   * @throws RepriseError KERNEL_FEATURE
   */
  constant(name: string): number {
    const wanted = this.#nameOffset(name);
    const words = this.#words;
    for (let id = 1; id < this.#types.length && !this.#constants.has(wanted); id++) {
      const at = this.#types[id] as number;
      const kind = kindAt(words, at);
      if (kind !== KIND_ENUM && kind !== KIND_ENUM64) continue;
      const step = kind === KIND_ENUM ? 2 : 3;
      const end = at + 3 + step * ((words[at + 1] as number) & 0xffff);
      const members: (readonly [number, number])[] = [];
      for (let place = at + 3; place < end; place += step)
        members.push([words[place] as number, words[place + 1] as number]);
      if (!members.some(([member]) => member === wanted)) continue;
      // Who asks for one asks for others of the same kind.
      for (const [member, value] of members) this.#constants.set(member, value);
    }
    const value = this.#constants.get(wanted);
    if (value === undefined) throw missing(name);
    return value;
  }

  /** Bytes of a structure. */
  size(name: string): number {
    return this.#words[this.#structure(name) + 2] as number;
  }

  #find(path: string): KernelField {
    const [name = "", ...members] = path.split(".");
    let at = this.#structure(name);
    let bits = 0;
    let isBits = false;
    for (const member of members) {
      const found = at < 0 ? undefined : this.#member(at, this.#nameOffset(member));
      if (found === undefined) throw missing(path);
      bits += found.bits;
      isBits = found.isBits;
      at = this.#resolve(found.type);
    }
    return { offset: bits >> 3, bit: isBits ? bits & 7 : undefined };
  }

  #structure(name: string): number {
    const known = this.#structures.get(name);
    if (known !== undefined) return known;
    const wanted = this.#nameOffset(name);
    const words = this.#words;
    const types = this.#types;
    for (let id = 1; id < types.length; id++) {
      const at = types[id] as number;
      if (words[at] !== wanted || kindAt(words, at) !== KIND_STRUCT) continue;
      this.#structures.set(name, at);
      return at;
    }
    throw missing(name);
  }

  /** Strings are kept once each. */
  #nameOffset(name: string): number {
    const known = this.#names.get(name);
    if (known !== undefined) return known;
    const at = this.#strings.indexOf(`\0${name}\0`, 0, "latin1");
    if (at < 0) throw missing(name);
    this.#names.set(name, at + 1);
    return at + 1;
  }

  #member(
    at: number,
    name: number,
  ): { readonly bits: number; readonly isBits: boolean; readonly type: number } | undefined {
    const words = this.#words;
    const info = words[at + 1] as number;
    // With this bit the upper byte of a member's offset is the size of a bit field.
    const hasBitFields = info >>> 31 === 1;
    for (let index = 0; index < (info & 0xffff); index++) {
      const place = at + 3 + 3 * index;
      const type = words[place + 1] as number;
      const offset = words[place + 2] as number;
      const bits = hasBitFields ? offset & 0xff_ffff : offset;
      if (words[place] === name) return { bits, isBits: hasBitFields && offset >>> 24 !== 0, type };
      if (words[place] !== 0) continue;
      const inner = this.#resolve(type);
      const found = inner < 0 ? undefined : this.#member(inner, name);
      if (found !== undefined) return { ...found, bits: found.bits + bits };
    }
    return undefined;
  }

  /** The structure or union behind a type; -1 for what is neither. */
  #resolve(type: number): number {
    let at = this.#types[type] as number;
    while (type !== 0 && ALIASES.includes(kindAt(this.#words, at)))
      at = this.#types[(type = this.#words[at + 2] as number)] as number;
    const kind = type === 0 ? 0 : kindAt(this.#words, at);
    return kind === KIND_STRUCT || kind === KIND_UNION ? at : -1;
  }
}

/** It has megabytes: from Linux 6.16 on they can be mapped, and nothing is copied. */
function readDescription(): Buffer {
  try {
    const fd = openSync(BTF_PATH, "r");
    try {
      const { size } = fstatSync(fd);
      const mapped = trySyscall("mmap", 0, size, PROT_READ, MAP_PRIVATE, fd, 0);
      if (mapped > 0) {
        const memory = memoryAt(mapped, size);
        return Buffer.from(memory.buffer, memory.byteOffset, size);
      }
      const bytes = Buffer.allocUnsafeSlow(size);
      for (let at = 0; at < bytes.length;) {
        const length = readSync(fd, bytes, at, bytes.length - at, at);
        if (length === 0) throw new Error("it is shorter than it should be");
        at += length;
      }
      return bytes;
    } finally {
      closeSync(fd);
    }
  } catch {
    throw new RepriseError(
      "KERNEL_FEATURE",
      `cannot read the kernel's description of its types (${BTF_PATH})`,
      { hint: "The kernel must be built with CONFIG_DEBUG_INFO_BTF, and /sys be mounted." },
    );
  }
}

function missing(what: string): RepriseError {
  return new RepriseError("KERNEL_FEATURE", `cannot find ${what} in the kernel's types`);
}

function kindAt(words: Uint32Array, at: number): number {
  return ((words[at + 1] as number) >>> 24) & 0x1f;
}

function indexTypes(words: Uint32Array): Int32Array {
  // The shortest has three words.
  const starts = new Int32Array(words.length / 3 + 1);
  let count = 1;
  for (let at = 0; at < words.length; at += lengthAt(words, at)) starts[count++] = at;
  return starts.subarray(0, count);
}

function lengthAt(words: Uint32Array, at: number): number {
  const entries = (words[at + 1] as number) & 0xffff;
  switch (kindAt(words, at)) {
    case KIND_INT:
    case KIND_VAR:
    case KIND_DECL_TAG:
      return 4;
    case KIND_ARRAY:
      return 6;
    case KIND_STRUCT:
    case KIND_UNION:
    case KIND_DATASEC:
    case KIND_ENUM64:
      return 3 + 3 * entries;
    case KIND_ENUM:
    case KIND_FUNC_PROTO:
      return 3 + 2 * entries;
    default:
      return 3;
  }
}
