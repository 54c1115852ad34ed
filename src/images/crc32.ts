// CRC-32 from Node's zlib, loaded when the first checksum is asked for: loading it takes almost 2 ms,
// and most runs of the executables touch no image.
import type * as Zlib from "node:zlib";

let zlib: typeof Zlib | undefined;

/** CRC-32 of `bytes`, going on from `value`. */
export function crc32(bytes: Uint8Array, value = 0): number {
  zlib ??= process.getBuiltinModule("node:zlib");
  return zlib.crc32(bytes, value);
}

/** Loads what `crc32` needs, at a time when nobody waits. */
export function prepareCrc32(): void {
  crc32(new Uint8Array(0));
}
