// Text in images. A path, a command name or a mount option is any bytes but zero in the kernel, and
// CRIU stores them as they are, though protobuf calls the field a string. So that nothing is lost, a
// byte that is not UTF-8 becomes the lone surrogate U+DC00 + byte (as Python's surrogateescape
// does), and goes back to that byte when it is written. Use `textToBytes` before a system call.
import { isAscii } from "node:buffer";
import { TextDecoder } from "node:util";

const ESCAPE_BASE = 0xdc00;
const ESCAPE_PATTERN = /[\udc80-\udcff]/;

let strictDecoder: TextDecoder | undefined;

/** Bytes to text; bytes that are not UTF-8 become lone surrogates U+DC80 to U+DCFF. */
export function bytesToText(bytes: Uint8Array): string {
  if (isAscii(bytes))
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
  try {
    strictDecoder ??= new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    return strictDecoder.decode(bytes);
  } catch {
    return escapeInvalid(bytes);
  }
}

/** Text to bytes: the inverse of `bytesToText`. */
export function textToBytes(text: string): Uint8Array {
  if (!ESCAPE_PATTERN.test(text) || isWellFormed(text)) return Buffer.from(text, "utf8");
  const parts: Uint8Array[] = [];
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    const escaped = code >= ESCAPE_BASE + 0x80 && code <= ESCAPE_BASE + 0xff;
    parts.push(escaped ? Uint8Array.of(code - ESCAPE_BASE) : Buffer.from(character, "utf8"));
  }
  return Buffer.concat(parts);
}

/** A text with surrogates only in pairs holds no escaped byte. */
function isWellFormed(text: string): boolean {
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    if (code >= 0xd800 && code <= 0xdfff) return false;
  }
  return true;
}

function escapeInvalid(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const length = sequenceLength(bytes, at);
    text +=
      length === 0
        ? String.fromCharCode(ESCAPE_BASE + (bytes[at] ?? 0))
        : Buffer.from(bytes.subarray(at, at + length)).toString("utf8");
    at += length === 0 ? 1 : length;
  }
  return text;
}

/** Length of the valid UTF-8 sequence at `at`, or 0. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at] ?? 0;
  if (first < 0x80) return 1;
  const length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || at + length > bytes.length) return 0;
  const second = bytes[at + 1] ?? 0;
  const low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  if (second < low || second > high) return 0;
  for (let i = 2; i < length; i++) {
    if (((bytes[at + i] ?? 0) & 0xc0) !== 0x80) return 0;
  }
  return length;
}
