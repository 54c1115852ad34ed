// tar archives, as GNU tar writes them (the content of tmpfs in the images) and in the POSIX form (pax), in which ours are:
// long names, extended attributes, times with fractions and files with holes. Pure: bytes in, bytes out. Format: GNU tar's
// manual, "Tar Internals"; POSIX pax(1).

import { RepriseError } from "../errors.ts";
import { bytesToText, textToBytes } from "./text.ts";

export type TarType = "file" | "link" | "symlink" | "character" | "block" | "directory" | "fifo";

/** A stretch of a file that has data. */
export interface TarRange {
  readonly offset: number;
  readonly length: number;
}

/** One member of an archive; its data, if it is a file, follows. */
export interface TarMember {
  readonly name: string;
  readonly type: TarType;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Nanoseconds. */
  readonly mtime: bigint;
  /** Size of a file, holes included. */
  readonly size: number;
  /** Of a link and a symbolic link. */
  readonly target: string;
  readonly devMajor: number;
  readonly devMinor: number;
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
  /** Where a file has data; undefined when everywhere. */
  readonly data: readonly TarRange[] | undefined;
}

/** A member that was read. */
export interface StoredMember extends TarMember {
  /** The data of a file: where it stands in the archive and where it belongs. */
  readonly parts: readonly {
    readonly at: number;
    readonly offset: number;
    readonly length: number;
  }[];
}

const TAR_BLOCK = 512;
/** Two empty blocks end an archive. */
export const TAR_END: Buffer = Buffer.alloc(2 * TAR_BLOCK);
const NANO = 1_000_000_000n;

const TYPES: Readonly<Record<TarType, string>> = {
  file: "0",
  link: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
};
const TYPE_OF: ReadonlyMap<string, TarType> = new Map([
  ...Object.entries(TYPES).map(([type, flag]) => [flag, type as TarType] as const),
  ["\0", "file"],
  ["7", "file"],
  ["S", "file"],
]);

/** Largest numbers of the fields of the header: what is above stands in the pax header. */
const MAX_ID = 0o7777777;
const MAX_SIZE = 0o77777777777;
const NAME_LENGTH = 100;

/** The header of a member; its data follows, the ranges one behind the other, filled up to whole blocks. */
export function tarHeader(member: TarMember): Buffer {
  const { data } = member;
  const map = data === undefined ? Buffer.alloc(0) : sparseMap(data, member.size);
  const stored = data?.reduce((sum, { length }) => sum + length, map.length) ?? member.size;
  const name = textToBytes(member.name);
  const target = textToBytes(member.target);
  const pax = Buffer.concat(paxRecords(member, { name, target, stored }));
  const parts: Buffer[] = [];
  if (pax.length > 0) {
    const fields = { mode: 0o644, uid: 0, gid: 0, mtime: 0, size: pax.length, flag: "x" };
    parts.push(header({ ...fields, name: Buffer.from("./PaxHeaders"), target: Buffer.alloc(0) }));
    parts.push(pax, tarPadding(pax.length));
  }
  parts.push(
    header({
      name: name.subarray(0, NAME_LENGTH),
      target: target.subarray(0, NAME_LENGTH),
      mode: member.mode & 0o7777,
      uid: Math.min(member.uid, MAX_ID),
      gid: Math.min(member.gid, MAX_ID),
      mtime: Number(member.mtime / NANO),
      size: member.type === "file" ? Math.min(stored, MAX_SIZE) : 0,
      flag: TYPES[member.type],
      devMajor: member.devMajor,
      devMinor: member.devMinor,
    }),
    map,
  );
  return Buffer.concat(parts);
}

/** What fills data up to whole blocks. */
export function tarPadding(length: number): Buffer {
  return Buffer.alloc((TAR_BLOCK - (length % TAR_BLOCK)) % TAR_BLOCK);
}

interface HeaderFields {
  readonly name: Uint8Array;
  readonly target: Uint8Array;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtime: number;
  readonly size: number;
  readonly flag: string;
  readonly devMajor?: number;
  readonly devMinor?: number;
}

function header(fields: HeaderFields): Buffer {
  const block = Buffer.alloc(TAR_BLOCK);
  const octal = (value: number, at: number, digits: number): void => {
    block.write(value.toString(8).padStart(digits, "0"), at, "latin1");
  };
  block.set(fields.name, 0);
  octal(fields.mode, 100, 7);
  octal(fields.uid, 108, 7);
  octal(fields.gid, 116, 7);
  octal(fields.size, 124, 11);
  octal(Math.min(Math.max(fields.mtime, 0), MAX_SIZE), 136, 11);
  block.fill(" ", CHECKSUM_AT, CHECKSUM_AT + 8);
  block.write(fields.flag, 156, "latin1");
  block.set(fields.target, 157);
  block.write("ustar\x0000", 257, "latin1");
  octal(Math.min(fields.devMajor ?? 0, MAX_ID), 329, 7);
  octal(Math.min(fields.devMinor ?? 0, MAX_ID), 337, 7);
  octal(checksum(block), CHECKSUM_AT, 6);
  block[CHECKSUM_AT + 6] = 0;
  return block;
}

const CHECKSUM_AT = 148;

function checksum(block: Buffer): number {
  return block.reduce(
    (sum, byte, at) => sum + (at >= CHECKSUM_AT && at < CHECKSUM_AT + 8 ? 0x20 : byte),
    0,
  );
}

function paxRecords(
  member: TarMember,
  { name, target, stored }: { name: Uint8Array; target: Uint8Array; stored: number },
): Buffer[] {
  const records: Buffer[] = [];
  const add = (key: string, value: string | Uint8Array): number =>
    records.push(paxRecord(key, typeof value === "string" ? Buffer.from(value) : value));
  if (member.data !== undefined) {
    add("GNU.sparse.major", "1");
    add("GNU.sparse.minor", "0");
    add("GNU.sparse.name", name);
    add("GNU.sparse.realsize", `${member.size}`);
  }
  if (name.length > NAME_LENGTH) add("path", name);
  if (target.length > NAME_LENGTH) add("linkpath", target);
  if (member.uid > MAX_ID) add("uid", `${member.uid}`);
  if (member.gid > MAX_ID) add("gid", `${member.gid}`);
  if (member.type === "file" && stored > MAX_SIZE) add("size", `${stored}`);
  if (member.mtime < 0n || member.mtime % NANO !== 0n) add("mtime", decimal(member.mtime));
  for (const [key, value] of member.xattrs) add(`SCHILY.xattr.${key}`, value);
  return records;
}

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
function paxRecord(key: string, value: Uint8Array): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from("\n")]);
  let length = rest.length;
  while (`${length}`.length + rest.length !== length) length = `${length}`.length + rest.length;
  return Buffer.concat([Buffer.from(`${length}`), rest]);
}

function decimal(nanoseconds: bigint): string {
  const seconds = nanoseconds / NANO - (nanoseconds % NANO < 0n ? 1n : 0n);
  return `${seconds}.${(nanoseconds - seconds * NANO).toString().padStart(9, "0")}`;
}

function fromDecimal(text: string): bigint {
  const [whole = "0", fraction = ""] = text.split(".");
  const part = BigInt(fraction.slice(0, 9).padEnd(9, "0"));
  return BigInt(whole) * NANO + part;
}

/** GNU tar takes the end of the last range for the end of the file: a hole there has an empty range behind it. */
function sparseMap(data: readonly TarRange[], size: number): Buffer {
  const last = data.at(-1);
  const ends = last !== undefined && last.offset + last.length === size;
  const ranges = ends ? data : [...data, { offset: size, length: 0 }];
  const numbers = [ranges.length, ...ranges.flatMap(({ offset, length }) => [offset, length])];
  const text = Buffer.from(numbers.map((number) => `${number}\n`).join(""));
  return Buffer.concat([text, tarPadding(text.length)]);
}

/** Bytes of an archive. */
export interface TarSource {
  readonly size: number;
  read(at: number, length: number): Buffer;
}

/**
 * The members of an archive, one after the other.
 *
 * @throws RepriseError BAD_IMAGE
 */
export function* tarMembers(source: TarSource): Generator<StoredMember> {
  const pax = new Map<string, Uint8Array>();
  let longName: Uint8Array | undefined;
  let longTarget: Uint8Array | undefined;
  for (let at = 0; at + TAR_BLOCK <= source.size;) {
    const block = source.read(at, TAR_BLOCK);
    if (block.every((byte) => byte === 0)) return;
    if (numberIn(block, CHECKSUM_AT, 8) !== checksum(block)) throw damaged("a checksum is wrong");
    const flag = String.fromCharCode(block[156] ?? 0);
    const size = pax.has("size") ? Number(textOf(pax, "size")) : numberIn(block, 124, 12);
    at += TAR_BLOCK;
    const after = at + Math.ceil(size / TAR_BLOCK) * TAR_BLOCK;
    if (flag === "x") readPax(source.read(at, size), pax);
    else if (flag === "L") longName = untilZero(source.read(at, size));
    else if (flag === "K") longTarget = untilZero(source.read(at, size));
    else if (flag !== "g") {
      const context = { source, block, pax, flag, longName, longTarget, size };
      const { member, end } = readMember(context, at);
      yield member;
      pax.clear();
      longName = longTarget = undefined;
      at = end;
      continue;
    }
    at = after;
  }
}

interface MemberContext {
  readonly source: TarSource;
  readonly block: Buffer;
  readonly pax: ReadonlyMap<string, Uint8Array>;
  readonly flag: string;
  readonly longName: Uint8Array | undefined;
  readonly longTarget: Uint8Array | undefined;
  readonly size: number;
}

function readMember(context: MemberContext, start: number): { member: StoredMember; end: number } {
  const { block, pax, flag, size } = context;
  const type = TYPE_OF.get(flag);
  if (type === undefined) throw damaged(`it has a member of type ${JSON.stringify(flag)}`);
  const layout = type === "file" ? readLayout(context, start) : plainLayout(start, 0);
  const name = pax.get("GNU.sparse.name") ?? pax.get("path") ?? context.longName ?? nameIn(block);
  const target = pax.get("linkpath") ?? context.longTarget ?? untilZero(block.subarray(157, 257));
  const member: StoredMember = {
    name: bytesToText(name),
    type,
    mode: numberIn(block, 100, 8) & 0o7777,
    uid: pax.has("uid") ? Number(textOf(pax, "uid")) : numberIn(block, 108, 8),
    gid: pax.has("gid") ? Number(textOf(pax, "gid")) : numberIn(block, 116, 8),
    mtime: pax.has("mtime")
      ? fromDecimal(textOf(pax, "mtime"))
      : BigInt(numberIn(block, 136, 12)) * NANO,
    size: layout.size,
    target: bytesToText(target),
    devMajor: numberIn(block, 329, 8),
    devMinor: numberIn(block, 337, 8),
    xattrs: xattrsIn(pax),
    data: layout.isSparse ? layout.parts : undefined,
    parts: layout.parts,
  };
  const stored = type === "file" ? size : 0;
  return { member, end: layout.data + Math.ceil(stored / TAR_BLOCK) * TAR_BLOCK };
}

interface Layout {
  readonly size: number;
  readonly isSparse: boolean;
  readonly parts: StoredMember["parts"];
  /** Where the member's blocks begin, as its size counts them. */
  readonly data: number;
}

function plainLayout(at: number, size: number): Layout {
  return { size, isSparse: false, data: at, parts: [{ at, offset: 0, length: size }] };
}

function readLayout(context: MemberContext, start: number): Layout {
  const { pax, flag, size } = context;
  if (flag === "S") return readOldSparse(context, start);
  if (textOf(pax, "GNU.sparse.major") === "1") return readSparse(context, start);
  if (pax.has("GNU.sparse.map") || pax.has("GNU.sparse.offset"))
    throw damaged("it has a file with holes in an old pax form");
  return plainLayout(start, size);
}

/** GNU tar's own form: a few ranges in the header, more in blocks behind it, which the size does not count. */
function readOldSparse({ source, block }: MemberContext, start: number): Layout {
  const ranges: TarRange[] = [];
  const take = (from: Buffer, at: number, count: number): void => {
    for (let index = 0; index < count; index++) {
      const place = at + index * 24;
      if (from[place + 12] === 0) return;
      ranges.push({ offset: numberIn(from, place, 12), length: numberIn(from, place + 12, 12) });
    }
  };
  take(block, 386, 4);
  let data = start;
  for (let more = block[482] !== 0; more; data += TAR_BLOCK) {
    const extension = source.read(data, TAR_BLOCK);
    take(extension, 0, 21);
    more = extension[504] !== 0;
  }
  return { size: numberIn(block, 483, 12), isSparse: true, data, parts: placed(ranges, data) };
}

/** The pax form: a list of numbers in front of the data. */
function readSparse({ source, pax, size }: MemberContext, start: number): Layout {
  let text = "";
  let read = 0;
  let numbers: readonly number[] = [];
  for (let wanted = 1; numbers.length < wanted;) {
    if (read >= size) throw damaged("the map of a file with holes has no end");
    text += source.read(start + read, TAR_BLOCK).toString("latin1");
    read += TAR_BLOCK;
    numbers = text.split("\n").slice(0, -1).map(Number);
    wanted = 1 + 2 * (numbers[0] ?? 0);
  }
  const ranges = Array.from({ length: numbers[0] ?? 0 }, (_, index) => ({
    offset: numbers[1 + 2 * index] ?? 0,
    length: numbers[2 + 2 * index] ?? 0,
  }));
  return {
    size: Number(textOf(pax, "GNU.sparse.realsize")),
    isSparse: true,
    data: start,
    parts: placed(ranges, start + read),
  };
}

function placed(ranges: readonly TarRange[], start: number): StoredMember["parts"] {
  let at = start;
  return ranges.map((range) => {
    const part = { ...range, at };
    at += range.length;
    return part;
  });
}

function nameIn(block: Buffer): Uint8Array {
  const name = untilZero(block.subarray(0, NAME_LENGTH));
  // GNU's own magic has no prefix there.
  const isPosix = block.toString("latin1", 257, 263) === "ustar\0";
  const prefix = isPosix ? untilZero(block.subarray(345, 500)) : Buffer.alloc(0);
  return prefix.length === 0 ? name : Buffer.concat([prefix, Buffer.from("/"), name]);
}

function untilZero(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

/** A number of a header: octal digits, or binary with the top bit set. */
function numberIn(block: Buffer, at: number, length: number): number {
  const first = block[at] ?? 0;
  if ((first & 0x80) === 0) {
    const text = block.toString("latin1", at, at + length).trimStart();
    const digits = text.replace(/[\0 ].*$/s, "");
    return digits === "" ? 0 : Number.parseInt(digits, 8);
  }
  let value = first === 0xff ? -1 : first & 0x7f;
  for (let index = 1; index < length; index++) value = value * 256 + (block[at + index] ?? 0);
  return value;
}

function readPax(bytes: Buffer, into: Map<string, Uint8Array>): void {
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at);
    const length = Number(bytes.toString("latin1", at, space));
    const equals = bytes.indexOf(0x3d, space);
    if (space < 0 || equals < 0 || !(length > 0)) throw damaged("a pax header cannot be read");
    into.set(
      bytes.toString("utf8", space + 1, equals),
      bytes.subarray(equals + 1, at + length - 1),
    );
    at += length;
  }
}

function textOf(pax: ReadonlyMap<string, Uint8Array>, key: string): string {
  return Buffer.from(pax.get(key) ?? []).toString();
}

const XATTR = "SCHILY.xattr.";

function xattrsIn(pax: ReadonlyMap<string, Uint8Array>): Map<string, Uint8Array> {
  return new Map(
    [...pax]
      .filter(([key]) => key.startsWith(XATTR))
      .map(([key, value]) => [key.slice(XATTR.length), value]),
  );
}

function damaged(what: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot read a tar archive: ${what}`);
}
