// Standard output, written to as it is: the stream of Node would make a pipe non-blocking for everyone who shares it.

import { writeSync } from "node:fs";

const STDOUT = 1;
const PAUSE_MS = 5;

/** Prints a text. A reader that has gone is no error of the operation. */
export function printOut(text: string): void {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(STDOUT, bytes, at);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code !== "EAGAIN" && code !== "EINTR") return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS);
    }
  }
}
