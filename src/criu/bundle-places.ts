// From a place in a bundle to the file and line of our source. A source map is JSON that takes 15 ms to parse, and the first
// warning of a dump may be written while the tree stands still; so the build writes, beside each bundle, a table in which a
// place is found by halving: u32 count, `count` pairs of words (line << 20 | column; number of the source << 20 | line of the
// source) in the order of the bundle, names of the sources. The bundle has few lines, and long ones.

import { readFileSync } from "node:fs";

/** Of a column in a bundle's line, and of a line in a source. */
const LOW_BITS = 20;
const LOW = 2 ** LOW_BITS;
const WORD = 4;

/** A place in our source. */
export interface SourceLine {
  readonly source: string;
  readonly line: number;
}

/** Where a piece of a bundle begins and what it was made from; nobody's source is undefined. Lines count from 1, columns too. */
export interface BundlePiece {
  readonly line: number;
  readonly column: number;
  readonly from: SourceLine | undefined;
}

/** Encodes the table of a bundle's pieces, which come in its order. @throws RangeError if a line is too long to be told apart */
export function encodeBundlePlaces(pieces: readonly BundlePiece[]): Buffer {
  const sources = new Map<string, number>();
  const words = Buffer.alloc((pieces.length * 2 + 1) * WORD);
  words.writeUInt32LE(pieces.length, 0);
  pieces.forEach(({ line, column, from }, index) => {
    if (column >= LOW) throw new RangeError(`line ${line} of the bundle has ${column} columns`);
    words.writeUInt32LE(line * LOW + column, (index * 2 + 1) * WORD);
    if (from === undefined) return;
    const number = sources.get(from.source) ?? sources.size + 1;
    sources.set(from.source, number);
    words.writeUInt32LE(number * LOW + from.line, (index * 2 + 2) * WORD);
  });
  return Buffer.concat([words, Buffer.from([...sources.keys()].join("\n"))]);
}

/** What a place of the bundle was made from; undefined when the table is missing or does not know. */
export function findBundlePlace(
  table: Buffer,
  line: number,
  column: number,
): SourceLine | undefined {
  const count = table.length < WORD ? 0 : table.readUInt32LE(0);
  const place = line * LOW + Math.min(column, LOW - 1);
  let [low, high] = [0, count];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (table.readUInt32LE((middle * 2 + 1) * WORD) <= place) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return undefined;
  if (table.readUInt32LE((low * 2 - 1) * WORD) < line * LOW) return undefined;
  const word = table.readUInt32LE(low * 2 * WORD);
  const names = table.subarray((count * 2 + 1) * WORD).toString("utf8");
  const source = names.split("\n")[(word >>> LOW_BITS) - 1];
  return source === undefined ? undefined : { source, line: word & (LOW - 1) };
}

const tables = new Map<string, Buffer>();

/** The table that lies beside a bundle; read when the first warning or error is logged, and only then. */
export function bundlePlacesOf(bundle: string): Buffer {
  let table = tables.get(bundle);
  if (table === undefined) {
    try {
      table = readFileSync(`${bundle}.places`);
    } catch {
      table = Buffer.alloc(0); // not a bundle of ours: places are told as V8 has them
    }
    tables.set(bundle, table);
  }
  return table;
}
