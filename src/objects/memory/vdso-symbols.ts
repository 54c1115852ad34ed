// The functions of a vdso: it is a small shared library (elf(5)), whose dynamic symbols say where they begin. The text comes
// from an image and is not trusted.

/** Offset of each function in the vdso, by its name; functions with two names stand once, under the longer one. */
export type VdsoSymbols = ReadonlyMap<string, number>;

const ELF_MAGIC = 0x464c457f;
const ELFCLASS64 = 2;
const PHOFF = 32;
const PHENTSIZE = 54;
const PHNUM = 56;
const PT_DYNAMIC = 2;
const DT_HASH = 4;
const DT_STRTAB = 5;
const DT_SYMTAB = 6;
const SYMBOL_SIZE = 24;
const STT_FUNC = 2;
const PREFIX = "__vdso_";

/** Reads the functions; undefined when the bytes are no vdso that can be understood. */
export function readVdsoSymbols(vdso: Buffer): VdsoSymbols | undefined {
  try {
    return parse(vdso);
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function parse(vdso: Buffer): VdsoSymbols | undefined {
  if (vdso.readUInt32LE(0) !== ELF_MAGIC || vdso[4] !== ELFCLASS64) return undefined;
  const dynamic = dynamicSection(vdso);
  const strings = dynamic.get(DT_STRTAB);
  const symbols = dynamic.get(DT_SYMTAB);
  if (strings === undefined || symbols === undefined) return undefined;
  const hash = dynamic.get(DT_HASH);
  // Without the old hash table nothing tells the number of symbols; the names lie behind them.
  const count =
    hash === undefined
      ? Math.floor((strings - symbols) / SYMBOL_SIZE)
      : vdso.readUInt32LE(hash + 4);
  const found = new Map<string, number>();
  for (let index = 1; index < count; index++) {
    const at = symbols + index * SYMBOL_SIZE;
    const name = text(vdso, strings + vdso.readUInt32LE(at));
    const isFunction = ((vdso[at + 4] ?? 0) & 0xf) === STT_FUNC;
    const isDefined = vdso.readUInt16LE(at + 6) !== 0;
    const offset = Number(vdso.readBigUInt64LE(at + 8));
    if (isFunction && isDefined && name.startsWith(PREFIX) && offset < vdso.length)
      found.set(name, offset);
  }
  return found.size === 0 ? undefined : found;
}

function dynamicSection(vdso: Buffer): Map<number, number> {
  const headers = Number(vdso.readBigUInt64LE(PHOFF));
  const size = vdso.readUInt16LE(PHENTSIZE);
  for (let index = 0; index < vdso.readUInt16LE(PHNUM); index++) {
    const header = headers + index * size;
    if (vdso.readUInt32LE(header) !== PT_DYNAMIC) continue;
    const start = Number(vdso.readBigUInt64LE(header + 8));
    return new Map(entries(vdso, start));
  }
  return new Map();
}

function* entries(vdso: Buffer, start: number): Generator<[number, number]> {
  for (let at = start; ; at += 16) {
    const tag = Number(vdso.readBigInt64LE(at));
    if (tag === 0) return;
    yield [tag, Number(vdso.readBigUInt64LE(at + 8))];
  }
}

function text(vdso: Buffer, at: number): string {
  const end = vdso.indexOf(0, at);
  if (end < 0) throw new RangeError("a name without an end");
  return vdso.toString("latin1", at, end);
}
