// Reads protobuf's wire format: see protobuf.dev/programming-guides/encoding. Most of an image are varints of one byte, tens of
// thousands of them, so these take the shortest way, and a 64-bit value becomes a bigint only where the field is one.

/** Wire types. */
export const VARINT = 0;
export const BIT_64 = 1;
export const LENGTH_DELIMITED = 2;
export const START_GROUP = 3;
export const END_GROUP = 4;
export const BIT_32 = 5;

const TWO_32 = 0x1_0000_0000;
/** Bytes of a varint that make up the low word; the next one holds bits of both. */
const LOW_BITS = 28;

export class WireReader {
  /** Where the next byte comes from. */
  at = 0;
  readonly #bytes: Uint8Array;
  /** The halves of the varint that was read last. */
  #low = 0;
  #high = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Number and wire type of the next field. @throws Error when there is no such tag */
  tag(): number {
    const tag = this.uint32();
    if (tag < 8 || (tag & 7) > BIT_32)
      throw new Error(`illegal tag: field ${tag >>> 3}, wire type ${tag & 7}`);
    return tag;
  }

  /** Goes behind the next tag if it is this one, as in a list. */
  passTag(tag: number): boolean {
    const at = this.at;
    const bytes = this.#bytes;
    if (tag < 0x80) {
      if (bytes[at] !== tag) return false;
      this.at = at + 1;
      return true;
    }
    if (tag >= 0x4000 || bytes[at] !== ((tag & 0x7f) | 0x80) || bytes[at + 1] !== tag >>> 7)
      return false;
    this.at = at + 2;
    return true;
  }

  /** The low 32 bits of a varint. */
  uint32(): number {
    const first = this.#bytes[this.at] ?? 0x80;
    if (first < 0x80) {
      this.at += 1;
      return first;
    }
    this.#varint();
    return this.#low >>> 0;
  }

  int32(): number {
    return this.uint32() | 0;
  }

  sint32(): number {
    const zigZag = this.uint32();
    return (zigZag >>> 1) ^ -(zigZag & 1);
  }

  bool(): boolean {
    this.#varint();
    return this.#low !== 0 || this.#high !== 0;
  }

  uint64(): bigint {
    const first = this.#bytes[this.at] ?? 0x80;
    if (first === 0) {
      this.at += 1;
      return 0n;
    }
    this.#varint();
    return this.#high === 0 ? BigInt(this.#low >>> 0) : this.#unsigned();
  }

  int64(): bigint {
    return BigInt.asIntN(64, this.uint64());
  }

  sint64(): bigint {
    const zigZag = this.uint64();
    return (zigZag & 1n) === 0n ? zigZag >> 1n : -(zigZag >> 1n) - 1n;
  }

  /** A 64-bit varint as the nearest number; exact up to 2^53. */
  number(): number {
    const first = this.#bytes[this.at] ?? 0x80;
    if (first < 0x80) {
      this.at += 1;
      return first;
    }
    this.#varint();
    return (this.#high >>> 0) * TWO_32 + (this.#low >>> 0);
  }

  fixed64(): bigint {
    const at = this.at;
    this.#move(8);
    const word = (from: number): number =>
      ((this.#bytes[from] ?? 0) |
        ((this.#bytes[from + 1] ?? 0) << 8) |
        ((this.#bytes[from + 2] ?? 0) << 16) |
        ((this.#bytes[from + 3] ?? 0) << 24)) >>>
      0;
    return (BigInt(word(at + 4)) << 32n) | BigInt(word(at));
  }

  /** A view of what has its length before it. */
  bytes(): Uint8Array {
    const length = this.uint32();
    const start = this.at;
    this.#move(length);
    return this.#bytes.subarray(start, start + length);
  }

  /** Goes over the content of a field; groups have no end of their own. */
  skip(wireType: number): void {
    if (wireType === VARINT) this.#varint();
    else if (wireType === LENGTH_DELIMITED) this.#move(this.uint32());
    else this.#move(wireType === BIT_64 ? 8 : 4);
  }

  #unsigned(): bigint {
    return (BigInt(this.#high >>> 0) << 32n) | BigInt(this.#low >>> 0);
  }

  #move(count: number): void {
    this.at += count;
    this.#checkEnd();
  }

  #checkEnd(): void {
    if (this.at > this.#bytes.length) throw new RangeError("premature EOF");
  }

  #varint(): void {
    const bytes = this.#bytes;
    let at = this.at;
    let low = 0;
    for (let shift = 0; shift < LOW_BITS; shift += 7) {
      const byte = bytes[at++] ?? 0;
      low |= (byte & 0x7f) << shift;
      if (byte < 0x80) return this.#took(at, low, 0);
    }
    const middle = bytes[at++] ?? 0;
    low |= (middle & 0x0f) << LOW_BITS;
    let high = (middle & 0x70) >> 4;
    if (middle < 0x80) return this.#took(at, low, high);
    for (let shift = 3; shift <= 31; shift += 7) {
      const byte = bytes[at++] ?? 0;
      high |= (byte & 0x7f) << shift;
      if (byte < 0x80) return this.#took(at, low, high);
    }
    throw new Error("invalid varint");
  }

  #took(at: number, low: number, high: number): void {
    this.at = at;
    this.#low = low;
    this.#high = high;
    this.#checkEnd();
  }
}
