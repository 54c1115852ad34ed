// Damage that a checksum of bytes would not be needed for: images that are well formed, with one thing in them that is not as it was.
// See protobuf's wire format: a key (number of the field, kind), and a varint (kind 0) or a length and bytes (kind 2).

import type { randomOf } from "./engine-death.ts";

type Random = ReturnType<typeof randomOf>;

interface Field {
  readonly number: number;
  readonly kind: number;
  /** Of a varint or of fixed length. */
  readonly value?: bigint;
  readonly bytes?: Buffer;
}

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

const NUMBERS = [
  0n,
  1n,
  3n,
  255n,
  4095n,
  4096n,
  65_536n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 47n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const TEXTS = [
  "",
  "/",
  "..",
  "../../../../../../etc/passwd",
  "/proc/self/mem",
  "x\0y",
  "a".repeat(300),
  "/b".repeat(2500),
];

/** Another image, with something changed in one of its messages; undefined when it has none that can be read. */
export function damageMessage(image: Buffer, random: Random): Buffer | undefined {
  const entries = entriesOf(image);
  if (entries === undefined || entries.length === 0) return undefined;
  const at = random.below(entries.length);
  const chosen = entries[at] as Buffer;
  const how = random.below(10);
  if (how === 0) entries.splice(at, 1);
  else if (how === 1) entries.splice(random.below(entries.length + 1), 0, chosen);
  else {
    const damaged = damage(chosen, random);
    if (damaged === undefined) return undefined;
    entries[at] = damaged;
  }
  const framed = entries.flatMap((entry) => [word(entry.length), entry]);
  return Buffer.concat([image.subarray(0, HEAD), ...framed]);
}

/** Two magics. */
const HEAD = 8;

/** Undefined when something else than messages is in it. */
function entriesOf(image: Buffer): Buffer[] | undefined {
  const entries: Buffer[] = [];
  for (let at = HEAD; at < image.length;) {
    if (at + 4 > image.length) return undefined;
    const length = image.readUInt32LE(at);
    at += 4;
    if (at + length > image.length) return undefined;
    entries.push(image.subarray(at, (at += length)));
  }
  return entries;
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function damage(message: Buffer, random: Random): Buffer | undefined {
  const fields = parse(message);
  if (fields === undefined || fields.length === 0) return undefined;
  const at = random.below(fields.length);
  const field = fields[at] as Field;
  const how = random.below(10);
  if (how === 0) fields.splice(at, 1);
  else if (how === 1) fields.push(field);
  else fields[at] = changed(field, random);
  return Buffer.concat(fields.map(serialize));
}

function changed(field: Field, random: Random): Field {
  const { bytes, value = 0n } = field;
  if (bytes === undefined) {
    const near = value + (random.below(2) === 0 ? 1n : -1n);
    const other = NUMBERS[random.below(NUMBERS.length)] ?? 0n;
    return { ...field, value: BigInt.asUintN(64, random.below(3) === 0 ? near : other) };
  }
  const inner = random.below(4) === 0 ? undefined : damage(bytes, random);
  const text = Buffer.from(TEXTS[random.below(TEXTS.length)] ?? "");
  return { ...field, bytes: inner ?? text };
}

function parse(message: Buffer): Field[] | undefined {
  const fields: Field[] = [];
  for (let at = 0; at < message.length;) {
    const key = varint(message, at);
    if (key === undefined || key.value >> 3n === 0n) return undefined;
    const [number, kind] = [Number(key.value >> 3n), Number(key.value & 7n)];
    at = key.end;
    const size = { [FIXED64]: 8, [FIXED32]: 4 }[kind];
    if (size !== undefined) {
      if (at + size > message.length) return undefined;
      const value = size === 8 ? message.readBigUInt64LE(at) : BigInt(message.readUInt32LE(at));
      fields.push({ number, kind, value });
      at += size;
      continue;
    }
    const read = varint(message, at);
    if (read === undefined || (kind !== VARINT && kind !== BYTES)) return undefined;
    at = read.end;
    if (kind === VARINT) fields.push({ number, kind, value: read.value });
    else {
      const end = at + Number(read.value);
      if (end > message.length) return undefined;
      fields.push({ number, kind, bytes: message.subarray(at, end) });
      at = end;
    }
  }
  return fields;
}

function varint(bytes: Buffer, from: number): { value: bigint; end: number } | undefined {
  let value = 0n;
  for (let at = from, shift = 0n; at < bytes.length && shift < 64n; at++, shift += 7n) {
    const byte = bytes[at] ?? 0;
    value |= BigInt(byte & 0x7f) << shift;
    if (byte < 0x80) return { value, end: at + 1 };
  }
  return undefined;
}

function serialize({ number, kind, value = 0n, bytes }: Field): Buffer {
  const key = varintBytes(BigInt(number * 8 + kind));
  if (bytes !== undefined) return Buffer.concat([key, varintBytes(BigInt(bytes.length)), bytes]);
  if (kind === VARINT) return Buffer.concat([key, varintBytes(value)]);
  const fixed = Buffer.alloc(8);
  fixed.writeBigUInt64LE(value);
  return Buffer.concat([key, fixed.subarray(0, kind === FIXED64 ? 8 : 4)]);
}

function varintBytes(value: bigint): Buffer {
  const bytes: number[] = [];
  for (let left = value; ; left >>= 7n) {
    const isLast = left < 0x80n;
    bytes.push(Number(left & 0x7fn) | (isLast ? 0 : 0x80));
    if (isLast) return Buffer.from(bytes);
  }
}
