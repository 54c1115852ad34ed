// Writes protobuf's wire format into one buffer that grows: a message inside a message is written in place, and moved by a byte
// or two when its length turns out to need them. Images hold tens of thousands of small fields, and are written while tasks
// stand still; see protobuf.dev/programming-guides/encoding.

const FIRST_SIZE = 16 * 1024;
/** Most bytes of a varint. */
const VARINT_MAX = 10;
/** Bytes of the word before an entry. */
const ENTRY_HEAD = 4;
const TWO_32 = 0x1_0000_0000;

export class WireWriter {
  #bytes = new Uint8Array(FIRST_SIZE);
  #view = new DataView(this.#bytes.buffer);
  #at = 0;
  readonly #words = new BigUint64Array(1);
  readonly #halves = new Uint32Array(this.#words.buffer);

  /** Starts anew, with the room that is there. */
  reset(): void {
    this.#at = 0;
  }

  /** Leaves room for the word that tells the length of an entry; give the result to `endEntry`. */
  beginEntry(): number {
    this.#reserve(ENTRY_HEAD);
    this.#at += ENTRY_HEAD;
    return this.#at;
  }

  /** Fills in the length of the entry that was begun at `start`. */
  endEntry(start: number): void {
    this.#view.setUint32(start - ENTRY_HEAD, this.#at - start, true);
  }

  /** What was written; good until something else is. */
  get written(): Uint8Array {
    return this.#bytes.subarray(0, this.#at);
  }

  /** A copy of what was written. */
  finish(): Uint8Array {
    return this.#bytes.slice(0, this.#at);
  }

  /** Where the next byte goes. */
  get position(): number {
    return this.#at;
  }

  /** A copy of what was written from a position on. */
  since(position: number): Uint8Array {
    return this.#bytes.slice(position, this.#at);
  }

  /** Bytes as they are. */
  raw(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#bytes.set(bytes, this.#at);
    this.#at += bytes.length;
  }

  /** What was written from a position on, once more. */
  repeat(position: number): void {
    const length = this.#at - position;
    this.#reserve(length);
    this.#bytes.copyWithin(this.#at, position, this.#at);
    this.#at += length;
  }

  /** A varint of an integer from 0 to 2^32 - 1. */
  uint32(value: number): void {
    this.#reserve(VARINT_MAX);
    let rest = value;
    while (rest > 0x7f) {
      this.#bytes[this.#at++] = (rest & 0x7f) | 0x80;
      rest >>>= 7;
    }
    this.#bytes[this.#at++] = rest;
  }

  /** A varint with a tag before it for each of many integers from 0 to 2^32 - 1. */
  uint32Fields(tag: number, values: readonly number[]): void {
    this.#reserve(values.length * 2 * VARINT_MAX);
    const bytes = this.#bytes;
    let at = this.#at;
    for (let index = 0; index < values.length; index += 1) {
      let rest = tag;
      for (; rest > 0x7f; rest >>>= 7) bytes[at++] = (rest & 0x7f) | 0x80;
      bytes[at++] = rest;
      rest = values[index] as number;
      for (; rest > 0x7f; rest >>>= 7) bytes[at++] = (rest & 0x7f) | 0x80;
      bytes[at++] = rest;
    }
    this.#at = at;
  }

  /** The fields 1, 2, … as varints of 64-bit words that lie in memory. */
  wordFields(words: DataView): void {
    for (let from = 0; from < words.byteLength; from += 8) {
      this.uint32(from + 8); // the tag: field number from / 8 + 1, in the upper bits
      this.#halfWords(words.getUint32(from, true), words.getUint32(from + 4, true));
    }
  }

  /** A varint of an int32: negative numbers are written as 64 bits. */
  int32(value: number): void {
    if (value >= 0) this.uint32(value);
    else this.#halfWords(value >>> 0, 0xffff_ffff);
  }

  /** A varint of an exact integer from 0 to 2^53. */
  exact(value: number): void {
    if (value < TWO_32) this.uint32(value);
    else this.#halfWords(value >>> 0, Math.floor(value / TWO_32));
  }

  /** A varint of the low 64 bits of a bigint. */
  word(value: bigint): void {
    this.#words[0] = BigInt.asUintN(64, value);
    this.#halfWords(this.#halves[0] ?? 0, this.#halves[1] ?? 0);
  }

  /** Eight bytes, the lowest first. */
  fixed64(value: bigint): void {
    this.#reserve(8);
    this.#view.setBigUint64(this.#at, BigInt.asUintN(64, value), true);
    this.#at += 8;
  }

  /** Length and content. */
  bytes(content: Uint8Array): void {
    this.uint32(content.length);
    this.raw(content);
  }

  /** Begins something whose length stands before it; give the result to `end`. */
  begin(): number {
    this.#reserve(1);
    this.#at += 1;
    return this.#at;
  }

  /** Fills in the length of what was begun at `start`. */
  end(start: number): void {
    const length = this.#at - start;
    const room = varintSize(length);
    if (room > 1) {
      this.#reserve(room);
      this.#bytes.copyWithin(start + room - 1, start, this.#at);
    }
    this.#at = start - 1;
    this.uint32(length);
    this.#at += length;
  }

  #halfWords(low: number, high: number): void {
    this.#reserve(VARINT_MAX);
    const bytes = this.#bytes;
    let a = low;
    let b = high;
    while (b > 0 || a > 0x7f) {
      bytes[this.#at++] = (a & 0x7f) | 0x80;
      a = ((a >>> 7) | (b << 25)) >>> 0;
      b >>>= 7;
    }
    bytes[this.#at++] = a;
  }

  #reserve(count: number): void {
    const wanted = this.#at + count;
    if (wanted <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(wanted, this.#bytes.length * 2));
    grown.set(this.#bytes.subarray(0, this.#at));
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
  }
}

function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest > 0x7f; rest >>>= 7) size++;
  return size;
}
