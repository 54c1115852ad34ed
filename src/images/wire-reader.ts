// Reads protobuf's wire format with @bufbuild/protobuf's reader. Most of an image are varints of one byte, tens of thousands of
// them, so these take a shorter way, and a 64-bit value becomes a bigint only where the field is one.

import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

export { WireType };

/** By their numbers: protobuf.dev/programming-guides/encoding. */
const WIRE_TYPES = [
  WireType.Varint,
  WireType.Bit64,
  WireType.LengthDelimited,
  WireType.StartGroup,
  WireType.EndGroup,
  WireType.Bit32,
];

/** The wire type in a tag that `nextTag` has read. */
export function wireTypeIn(tag: number): WireType {
  return WIRE_TYPES[tag & 7] ?? WireType.EndGroup;
}

export class WireReader extends BinaryReader {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    super(bytes);
    this.#bytes = bytes;
  }

  /** Number and wire type of the next field, in one number. @throws Error when there is no such tag */
  nextTag(): number {
    const first = this.#bytes[this.pos] ?? 0;
    if (first >= 8 && first < 0x80 && (first & 7) < WIRE_TYPES.length) {
      this.pos += 1;
      return first;
    }
    const [number, wireType] = this.tag();
    return number * 8 + wireType;
  }

  /** Goes behind the next tag if it is this one, as in a list. */
  passTag(tag: number): boolean {
    const at = this.pos;
    const bytes = this.#bytes;
    if (tag < 0x80) {
      if (bytes[at] !== tag) return false;
      this.pos = at + 1;
      return true;
    }
    if (tag >= 0x4000 || bytes[at] !== ((tag & 0x7f) | 0x80) || bytes[at + 1] !== tag >>> 7)
      return false;
    this.pos = at + 2;
    return true;
  }

  /** A copy of what lies between here and `end`. */
  part(end: number): Uint8Array {
    return this.between(this.pos, end);
  }

  /** A copy of what lies between two positions. */
  between(start: number, end: number): Uint8Array {
    return this.#bytes.slice(start, end);
  }

  /** Goes to `end` if what lies before it are these bytes. */
  passSame(bytes: Uint8Array, end: number): boolean {
    const { length } = bytes;
    const from = this.pos;
    if (end - from !== length) return false;
    for (let at = 0; at < length; at += 1) if (this.#bytes[from + at] !== bytes[at]) return false;
    this.pos = end;
    return true;
  }

  /** A 64-bit varint as the nearest number; exact up to 2^53. */
  number(): number {
    const first = this.#bytes[this.pos] ?? 0x80;
    if (first >= 0x80) return Number(this.uint64());
    this.pos += 1;
    return first;
  }
}
