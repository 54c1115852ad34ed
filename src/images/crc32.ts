// CRC-32 (IEEE 802.3). Most sets are small: for them a table does. Node's zlib is quicker with much data, but
// loading it takes almost 2 ms.
import type * as Zlib from "node:zlib";

/** From this many bytes on zlib is asked. */
const MUCH = 512 * 1024;
/** The polynomial, lowest bit first. */
const POLYNOMIAL = 0xedb8_8320;

let zlib: typeof Zlib | undefined;
let table: Int32Array | undefined;
let done = 0;

/** CRC-32 of `bytes`, going on from `value`. */
export function crc32(bytes: Uint8Array, value = 0): number {
  done += bytes.length;
  if (done < MUCH) return small(bytes, value);
  zlib ??= process.getBuiltinModule("node:zlib");
  return zlib.crc32(bytes, value);
}

function small(bytes: Uint8Array, value: number): number {
  table ??= Int32Array.from({ length: 256 }, (_, byte) => remainder(byte));
  let crc = ~value;
  for (let at = 0; at < bytes.length; at++)
    crc = (crc >>> 8) ^ (table[(crc ^ (bytes[at] ?? 0)) & 0xff] ?? 0);
  return ~crc >>> 0;
}

function remainder(byte: number): number {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ POLYNOMIAL;
  return crc;
}
