// CRC-32 from Node's zlib, loaded when the first checksum is asked for: loading it takes almost 2 ms,
// and most runs of the executables touch no image.

type Crc32 = (bytes: Uint8Array, value: number) => number;

let compute: Crc32 | undefined;

/** CRC-32 of `bytes`, going on from `value`. */
export function crc32(bytes: Uint8Array, value = 0): number {
  compute ??= process.getBuiltinModule("node:zlib").crc32;
  return compute(bytes, value);
}

/**
 * To be called at a time when nobody waits: has `crc32` use what computes the same and is at hand, or else loads what it needs.
 * Lazily given, since only the first one counts.
 */
export function prepareCrc32(atHand: () => Crc32 | undefined): void {
  compute ??= atHand();
  crc32(new Uint8Array(0));
}
