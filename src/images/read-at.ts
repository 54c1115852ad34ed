// Reading a piece of a raw image into the engine.

import { closeSync, openSync, readSync } from "node:fs";

/** Bytes of a file at an offset; shorter at its end. System errors are thrown as they are. */
export function readAt(path: string, offset: number, length: number): Buffer {
  const fd = openSync(path, "r");
  try {
    const bytes = Buffer.alloc(length);
    return bytes.subarray(0, readSync(fd, bytes, 0, length, offset));
  } finally {
    closeSync(fd);
  }
}
