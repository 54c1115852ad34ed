// zlib without Node's module of that name, which brings streams along: both together take 2 ms to load, 6 ms where V8 has settings.

import { functionInProcess } from "./ffi.ts";

/** "123456789", whose checksum every description of CRC-32 tells. */
const CHECK = Buffer.from("123456789");
const CHECK_VALUE = 0xcbf43926;

/**
 * zlib's crc32(), which Node exports for its addons, or a shared library that Node is linked with. Undefined where there is none
 * that computes this checksum.
 */
export function crc32OfZlib(): ((bytes: Uint8Array, value: number) => number) | undefined {
  const crc32 = functionInProcess("crc32", "uint", ["ulong", "void *", "uint"]);
  if (crc32?.(0, CHECK, CHECK.length) !== CHECK_VALUE) return undefined;
  return (bytes, value) => Number(crc32(value, bytes, bytes.length));
}
