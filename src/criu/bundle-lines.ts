// From a line of a bundle to the file and line of our source. A source map is JSON that takes 15 ms to parse, and the first
// warning of a dump is written while the tree stands still; so the build writes, beside each bundle, a table in which a
// line's entry is found by its number: u32 count, `count` words (number of the source << 20 | line), names of the sources.

import { readFileSync } from "node:fs";

const LINE_BITS = 20;
const WORD = 4;

/** A place in our source. */
export interface SourceLine {
  readonly source: string;
  readonly line: number;
}

/** Encodes the table; line 1 of the bundle comes first, and a line of nobody's source is undefined. */
export function encodeBundleLines(lines: readonly (SourceLine | undefined)[]): Buffer {
  const sources = new Map<string, number>();
  const words = Buffer.alloc((lines.length + 1) * WORD);
  words.writeUInt32LE(lines.length, 0);
  lines.forEach((place, index) => {
    if (place === undefined) return;
    const number = sources.get(place.source) ?? sources.size + 1;
    sources.set(place.source, number);
    words.writeUInt32LE(number * 2 ** LINE_BITS + place.line, (index + 1) * WORD);
  });
  return Buffer.concat([words, Buffer.from([...sources.keys()].join("\n"))]);
}

/** The place that a line of a bundle was made from; undefined when the table is missing or does not know. */
export function findBundleLine(table: Buffer, line: number): SourceLine | undefined {
  const count = table.length < WORD ? 0 : table.readUInt32LE(0);
  if (line < 1 || line > count) return undefined;
  const word = table.readUInt32LE(line * WORD);
  const names = table.subarray((count + 1) * WORD).toString("utf8");
  const source = names.split("\n")[(word >>> LINE_BITS) - 1];
  return source === undefined ? undefined : { source, line: word & (2 ** LINE_BITS - 1) };
}

const tables = new Map<string, Buffer>();

/** The table that lies beside a bundle; read when the first warning or error is logged, and only then. */
export function bundleLinesOf(bundle: string): Buffer {
  let table = tables.get(bundle);
  if (table === undefined) {
    try {
      table = readFileSync(`${bundle}.lines`);
    } catch {
      table = Buffer.alloc(0); // not a bundle of ours: places are told as V8 has them
    }
    tables.set(bundle, table);
  }
  return table;
}
