// Protobuf (proto2) messages of CRIU's images: bytes to plain objects and back, driven by the table
// that tools/generate-schema.ts makes. Bytes are read with @bufbuild/protobuf; what is ours is the
// table, exactness (fields in ascending number, set-but-default values written: the bytes are those
// that CRIU writes), and limits, since an image may come from anywhere.
//
// Letters of the table: u uint32, i int32, s sint32, e enum (all `number`); U uint64, I int64,
// S sint64, F fixed64 (`bigint`); N uint64 and Z sint64 as an exact `number`; A a page address as
// `number`; b bool, t string, y bytes, m message. Labels: ! required, ? optional, * repeated, + packed.
import { RepriseError } from "../errors.ts";
import { MESSAGE_TABLE, type Messages } from "./schema/messages.generated.ts";
import { bytesToText, textToBytes } from "./text.ts";
import { wireTypeIn, WireReader, WireType } from "./wire-reader.ts";
import { WireWriter } from "./wire-writer.ts";

export type MessageName = keyof Messages;

/** One entry: the largest real ones are mm entries of 65,530 mappings (4 MB) and AppArmor policies. */
export const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
/** Messages inside messages: only cgroup directories and AppArmor namespaces nest by themselves. */
export const MAX_NESTING = 100;
/** Elements of all repeated fields of one entry together. */
const MAX_ELEMENTS = 4_000_000;

/** What `encode` takes: as the message, but lists may be left out. */
export type MessageInput<T> = T extends Uint8Array | string | number | bigint | boolean | undefined
  ? T
  : T extends readonly (infer Item)[]
    ? readonly MessageInput<Item>[]
    : {
        readonly [K in keyof T as T[K] extends readonly unknown[] ? never : K]: MessageInput<T[K]>;
      } & {
        readonly [K in keyof T as T[K] extends readonly unknown[] ? K : never]?:
          | MessageInput<T[K]>
          | undefined;
      };

/**
 * Bytes of a message.
 * @throws RepriseError BAD_IMAGE when a required field is missing or a value does not fit its field.
 */
export function encode<N extends MessageName>(
  name: N,
  value: MessageInput<Messages[N]>,
): Uint8Array {
  writer.reset();
  writeMessage(fieldsOf(name), value);
  return writer.finish();
}

/**
 * The entry of a message in an image, its length before it; good until the next message is encoded.
 * @throws RepriseError as `encode` does
 */
export function encodeEntry<N extends MessageName>(
  name: N,
  value: MessageInput<Messages[N]>,
): Uint8Array {
  return encodeImage(NO_HEAD, name, [value]);
}

const NO_HEAD = new Uint8Array(0);

/**
 * A whole image: what stands at its beginning, and its entries; good until the next message is encoded.
 * @throws RepriseError as `encode` does
 */
export function encodeImage<N extends MessageName>(
  head: Uint8Array,
  name: N,
  values: readonly MessageInput<Messages[N]>[],
): Uint8Array {
  writer.reset();
  writer.raw(head);
  const fields = fieldsOf(name);
  for (let index = 0; index < values.length; index += 1) {
    const start = writer.beginEntry();
    writeMessage(fields, values[index] as PlainMessage);
    writer.endEntry(start);
  }
  return writer.written;
}

/** Bytes of messages that were encoded ahead, and as what. */
const encoded = new WeakMap<
  object,
  { readonly message: MessageFields; readonly bytes: Uint8Array }
>();

/**
 * Encodes a message that will be written later, alone or within others, when somebody waits for it. It must not change any more:
 * it is frozen.
 * @throws RepriseError as `encode` does
 */
export function encodeAhead<N extends MessageName>(
  name: N,
  value: MessageInput<Messages[N]> & object,
): void {
  if (encoded.has(value)) return;
  Object.freeze(value);
  encoded.set(value, { message: fieldsOf(name), bytes: encode(name, value) });
}

/** Used again for each message: nothing here is asynchronous. */
const writer = new WireWriter();

/**
 * The message in `bytes`. Lists that are absent are empty; byte fields are views into `bytes`;
 * unknown fields are skipped.
 * @throws RepriseError BAD_IMAGE naming message and field.
 */
export function decode<N extends MessageName>(name: N, bytes: Uint8Array): Messages[N] {
  if (bytes.length > MAX_MESSAGE_BYTES) {
    throw badMessage(name, `${bytes.length} bytes, more than ${MAX_MESSAGE_BYTES}`);
  }
  return decodePart(name, new WireReader(bytes), { start: 0, end: bytes.length });
}

/** As `decode`, for one of many messages that lie in the same bytes. */
export function decodePart<N extends MessageName>(
  name: N,
  reader: WireReader,
  { start, end }: { readonly start: number; readonly end: number },
): Messages[N] {
  const budget = { elements: MAX_ELEMENTS };
  reader.pos = start;
  try {
    const value: unknown = readMessage(reader, fieldsOf(name), { end, depth: 0, budget });
    return value as Messages[N];
  } catch (error) {
    if (error instanceof RepriseError) throw error;
    throw badMessage(name, errorText(error), error);
  }
}

export type FieldLabel = "!" | "?" | "*" | "+";

/** A field as the codec sees it. */
export interface FieldSpec {
  readonly number: number;
  readonly name: string;
  readonly type: string;
  readonly label: FieldLabel;
  /** Name of the message or enum. */
  readonly typeName: string;
  /** What stands before a value: number and wire type. */
  readonly tag: number;
  /** The fields of the message, once they were looked up. */
  fields?: MessageFields;
  /** The message that was read last; the same bytes are the same one again. */
  last?: {
    readonly bytes: Uint8Array;
    readonly value: PlainMessage;
    /** How many before it were others. */
    readonly differed: number;
  };
  /** The same for a long list of plain values. */
  lastList?: {
    /** From behind the first tag; undefined when it is kept no longer. */
    readonly bytes: Uint8Array | undefined;
    readonly value: readonly unknown[];
    readonly differed: number;
  };
}

export interface MessageFields {
  readonly name: string;
  /** In ascending number. */
  readonly list: readonly FieldSpec[];
  readonly byNumber: ReadonlyMap<number, FieldSpec>;
  /** By number and wire type. */
  readonly byTag: ReadonlyMap<number, FieldSpec>;
  readonly repeated: readonly FieldSpec[];
  readonly required: readonly FieldSpec[];
}

const expanded = new Map<string, MessageFields>();

/** The fields of a message, from the table; expanded at first use. */
export function fieldsOf(name: string): MessageFields {
  const known = expanded.get(name);
  if (known !== undefined) return known;
  const list = MESSAGE_TABLE[name as MessageName].split(" ").filter(Boolean).map(parseSpec);
  const fields = {
    name,
    list,
    byNumber: new Map(list.map((field) => [field.number, field])),
    byTag: new Map(list.map((field) => [field.tag, field])),
    repeated: list.filter(isRepeated),
    required: list.filter(({ label }) => label === "!"),
  };
  expanded.set(name, fields);
  return fields;
}

function parseSpec(spec: string): FieldSpec {
  const [number = "", name = "", code = "", typeName = ""] = spec.split(",");
  const label = code.charAt(1) as FieldLabel;
  const type = code.charAt(0);
  const tag = Number(number) * 8 + wireTypeOf(type);
  return { number: Number(number), name, type, label, typeName, tag };
}

function isRepeated({ label }: FieldSpec): boolean {
  return label === "*" || label === "+";
}

type PlainMessage = Record<string, unknown>;

// The loops here have no iterators: while V8 interprets them each step would leave an object behind, some hundred thousand of them.

function writeMessage(message: MessageFields, value: PlainMessage, from = 0): void {
  const known = encoded.get(value);
  if (known?.message === message) return writer.raw(known.bytes);
  const { list } = message;
  for (let index = from; index < list.length; index += 1) {
    const field = list[index] as FieldSpec;
    const content = value[field.name];
    if (content === undefined) {
      if (field.label === "!") throw badField(message, field, "missing");
      continue;
    }
    try {
      writeField(field, content);
    } catch (error) {
      if (error instanceof RepriseError) throw error;
      throw badField(message, field, errorText(error), error);
    }
  }
}

function writeField(field: FieldSpec, content: unknown): void {
  if (field.label === "+") {
    const items = content as readonly unknown[];
    if (items.length === 0) return;
    writer.uint32(field.number * 8 + WireType.LengthDelimited);
    const start = writer.begin();
    for (let index = 0; index < items.length; index += 1) writeValue(field, items[index]);
    writer.end(start);
  } else if (field.label === "*") {
    writeList(field, content as readonly unknown[]);
  } else {
    writeTagged(field, content);
  }
}

function writeList(field: FieldSpec, items: readonly unknown[]): void {
  const known = constants.get(items);
  const bytes = known?.get(field);
  if (bytes !== undefined) return writer.raw(bytes);
  const start = writer.position;
  if (field.type === "u") {
    for (let index = 0; index < items.length; index += 1) unsigned32(items[index] as number);
    writer.uint32Fields(field.tag, items as readonly number[]);
    known?.set(field, writer.since(start));
    return;
  }
  let before = start;
  for (let index = 0; index < items.length; index += 1) {
    // The same object once more is the same bytes once more.
    const isSame = index > 0 && items[index] === items[index - 1];
    const at = writer.position;
    if (isSame) writer.repeat(before);
    else writeTagged(field, items[index]);
    before = at;
  }
  known?.set(field, writer.since(start));
}

/** Lists and messages that never change, and what was written for them. */
const constants = new WeakMap<object, Map<FieldSpec, Uint8Array>>();

/** Announces a list that is written again and again: it is encoded once. Nothing in it may change. */
export function constantList<T>(items: readonly T[]): readonly T[] {
  const list = Object.freeze([...items]);
  constants.set(list, new Map());
  return list;
}

/** Announces a message inside others that is written again and again: it is encoded once. Nothing in it may change. */
export function constantMessage<T extends object>(message: T): T {
  constants.set(Object.freeze(message), new Map());
  return message;
}

class WordsMessage {
  readonly words: DataView;
  readonly rest: PlainMessage;

  constructor(words: DataView, rest: PlainMessage) {
    this.words = words;
    this.rest = rest;
  }
}

/**
 * A message inside others, to be encoded and nothing else, whose first fields are 64-bit words that lie in memory in the order of the
 * fields: of a thread's registers no objects are made.
 */
export function wordsMessage<T extends object, K extends keyof T>(
  words: Uint8Array,
  rest: Pick<T, K>,
): T {
  const view = new DataView(words.buffer, words.byteOffset, words.length);
  return new WordsMessage(view, rest) as unknown as T;
}

function writeTagged(field: FieldSpec, value: unknown): void {
  if (field.type === "m") return writeInner(field, value as PlainMessage);
  writer.uint32(field.tag);
  writeValue(field, value);
}

function writeInner(field: FieldSpec, value: PlainMessage): void {
  const known = constants.get(value);
  const bytes = known?.get(field);
  if (bytes !== undefined) return writer.raw(bytes);
  const begun = writer.position;
  writer.uint32(field.tag);
  field.fields ??= fieldsOf(field.typeName);
  const start = writer.begin();
  if (value instanceof WordsMessage) {
    writer.wordFields(value.words);
    writeMessage(field.fields, value.rest, value.words.byteLength / 8);
  } else {
    writeMessage(field.fields, value);
  }
  writer.end(start);
  known?.set(field, writer.since(begun));
}

const MAX_U64 = 2n ** 64n;
const MAX_I64 = 2n ** 63n;

function writeValue(field: FieldSpec, value: unknown): void {
  switch (field.type) {
    case "u":
      return writer.uint32(unsigned32(value as number));
    case "i":
    case "e":
      return writer.int32(signed32(value as number));
    case "s":
      return writer.uint32(zigZag32(signed32(value as number)));
    case "N":
      return writer.exact(notNegative(safeNumber(value as number)));
    case "Z":
      return writer.word(zigZag64(BigInt(safeNumber(value as number))));
    case "A":
      return writeAddress(value as number);
    case "U":
      return writer.word(unsigned64(value as bigint));
    case "I":
      return writer.word(signed64(value as bigint));
    case "S":
      return writer.word(zigZag64(signed64(value as bigint)));
    case "F":
      return writer.fixed64(unsigned64(value as bigint));
    case "b":
      return writer.uint32((value as boolean) ? 1 : 0);
    case "t":
      return writer.bytes(textToBytes(value as string));
    default:
      return writer.bytes(value as Uint8Array);
  }
}

/** The highest addresses (vsyscall) are no safe integers, but exact ones. */
function writeAddress(value: number): void {
  if (Number.isSafeInteger(value)) writer.exact(notNegative(value));
  else writer.word(unsigned64(BigInt(value)));
}

function unsigned32(value: number): number {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) throw outOfRange(value);
  return value;
}

function signed32(value: number): number {
  if (!Number.isInteger(value) || value < -0x8000_0000 || value > 0x7fff_ffff)
    throw outOfRange(value);
  return value;
}

function notNegative(value: number): number {
  if (value < 0) throw outOfRange(value);
  return value;
}

function unsigned64(value: bigint): bigint {
  if (value < 0n || value >= MAX_U64) throw outOfRange(value);
  return value;
}

function signed64(value: bigint): bigint {
  if (value < -MAX_I64 || value >= MAX_I64) throw outOfRange(value);
  return value;
}

function zigZag32(value: number): number {
  return ((value << 1) ^ (value >> 31)) >>> 0;
}

function zigZag64(value: bigint): bigint {
  return value < 0n ? -2n * value - 1n : 2n * value;
}

function outOfRange(value: number | bigint): RangeError {
  return new RangeError(`${value} is out of range`);
}

interface ReadScope {
  readonly end: number;
  readonly depth: number;
  readonly budget: { elements: number };
}

function readMessage(reader: WireReader, message: MessageFields, scope: ReadScope): PlainMessage {
  if (scope.depth > MAX_NESTING)
    throw badMessage(message.name, `nested deeper than ${MAX_NESTING}`);
  const value: PlainMessage = {};
  const { repeated, required } = message;
  for (let index = 0; index < repeated.length; index += 1)
    value[(repeated[index] as FieldSpec).name] = [];
  const target = { message, value, scope };
  while (reader.pos < scope.end) {
    const tag = reader.nextTag();
    const field = message.byTag.get(tag);
    if (field === undefined) readOther(reader, tag, target);
    else readField(reader, field, target);
    if (reader.pos > scope.end) throw badMessage(message.name, "a field runs beyond the end");
  }
  for (let index = 0; index < required.length; index += 1) {
    const field = required[index] as FieldSpec;
    if (value[field.name] === undefined) throw badField(message, field, "missing");
  }
  return value;
}

/** A field that is unknown, or in another form than its own. */
function readOther(reader: WireReader, tag: number, target: ReadTarget): void {
  const { message } = target;
  const wireType = wireTypeIn(tag);
  const field = message.byNumber.get(tag >>> 3);
  if (field !== undefined) {
    if (!isRepeated(field) || wireType !== WireType.LengthDelimited)
      throw badField(message, field, `wire type ${wireType}, not ${wireTypeOf(field.type)}`);
    return readPacked(reader, field, target);
  }
  // Groups nest without a length; nobody who writes images uses them.
  if (wireType === WireType.StartGroup || wireType === WireType.EndGroup) {
    throw badMessage(message.name, "a group field");
  }
  reader.skip(wireType);
}

interface ReadTarget {
  readonly message: MessageFields;
  readonly value: PlainMessage;
  readonly scope: ReadScope;
}

function readField(reader: WireReader, field: FieldSpec, target: ReadTarget): void {
  const { message, value, scope } = target;
  if (!isRepeated(field)) {
    value[field.name] = readItem(reader, field, target);
  } else {
    const list = value[field.name] as unknown[];
    const start = reader.pos;
    if (list.length === 0 && passSameList(reader, field, target)) return;
    do {
      spendElement(field, target);
      list.push(readItem(reader, field, target));
      if (reader.pos > scope.end) break;
    } while (reader.pos < scope.end && reader.passTag(field.tag));
    if (list.length >= LONG_LIST && reader.pos <= scope.end)
      keepList(reader, field, { start, list });
  }
  if (reader.pos > scope.end) throw badField(message, field, "runs beyond the end");
}

/** Takes the list before where this one is the same to its end: threads leave most of their registers alone. */
function passSameList(
  reader: WireReader,
  field: FieldSpec,
  { message, value, scope }: ReadTarget,
): boolean {
  const { lastList } = field;
  if (lastList?.bytes === undefined) return false;
  const start = reader.pos;
  const end = start + lastList.bytes.length;
  if (end > scope.end || !reader.passSame(lastList.bytes, end)) return false;
  // It may be longer.
  if (end < scope.end && reader.passTag(field.tag)) {
    reader.pos = start;
    return false;
  }
  scope.budget.elements -= lastList.value.length;
  if (scope.budget.elements < 0) throw tooMany(message, field);
  value[field.name] = lastList.value;
  return true;
}

/** Keeps a list of plain values for the next one, if not too many were others. */
function keepList(
  reader: WireReader,
  field: FieldSpec,
  { start, list }: { readonly start: number; readonly list: readonly unknown[] },
): void {
  const { lastList } = field;
  if (field.type === "m" || (lastList?.differed ?? 0) >= ENOUGH) return;
  if (reader.pos - start > LONGEST_LIST) return;
  const differed = lastList === undefined ? 0 : lastList.differed + 1;
  const bytes = differed < ENOUGH ? reader.between(start, reader.pos) : undefined;
  field.lastList = { bytes, value: Object.freeze(list), differed };
}

/** Lists with fewer elements are read as quickly as compared; and the most bytes of one that is kept. */
const LONG_LIST = 8;
const LONGEST_LIST = 4096;

function readItem(reader: WireReader, field: FieldSpec, target: ReadTarget): unknown {
  return field.type === "m"
    ? readChild(reader, field, target)
    : readValue(reader, field, target.message);
}

function readPacked(reader: WireReader, field: FieldSpec, target: ReadTarget): void {
  const { message, value, scope } = target;
  const length = reader.uint32();
  const end = reader.pos + length;
  if (end > scope.end) throw badField(message, field, "runs beyond the end");
  const list = value[field.name] as unknown[];
  while (reader.pos < end) {
    spendElement(field, target);
    list.push(readValue(reader, field, message));
  }
  if (reader.pos !== end) throw badField(message, field, "runs beyond its length");
}

function readChild(
  reader: WireReader,
  field: FieldSpec,
  { message, scope }: ReadTarget,
): PlainMessage {
  const length = reader.uint32();
  const end = reader.pos + length;
  if (end > scope.end) throw badField(message, field, "runs beyond the end");
  const depth = scope.depth + 1;
  field.fields ??= fieldsOf(field.typeName);
  // Thousands of files have the same options, or no owner.
  const { last } = field;
  if (last !== undefined && reader.passSame(last.bytes, end)) return last.value;
  const differed = last === undefined ? 0 : last.differed + 1;
  const isKept = length <= SHORT_MESSAGE && differed < ENOUGH && !isRepeated(field);
  const bytes = isKept ? reader.part(end) : undefined;
  const child = readMessage(reader, field.fields, { end, depth, budget: scope.budget });
  if (bytes !== undefined) field.last = { bytes, value: Object.freeze(child), differed };
  return child;
}

/** Messages that may be compared with the one before; and how often it is kept when the next one differs each time. */
const SHORT_MESSAGE = 256;
const ENOUGH = 8;

function spendElement(field: FieldSpec, { message, scope }: ReadTarget): void {
  scope.budget.elements -= 1;
  if (scope.budget.elements < 0) throw tooMany(message, field);
}

function tooMany(message: MessageFields, field: FieldSpec): RepriseError {
  return badField(message, field, `more than ${MAX_ELEMENTS} elements`);
}

function readValue(reader: WireReader, field: FieldSpec, message: MessageFields): unknown {
  switch (field.type) {
    case "u":
      return reader.uint32();
    case "i":
    case "e":
      return reader.int32();
    case "s":
      return reader.sint32();
    case "N":
    case "A":
      return exactNumber(reader, field, message);
    case "Z":
      return safeZigZag(BigInt(reader.sint64()), field, message);
    case "U":
      return BigInt(reader.uint64());
    case "I":
      return BigInt(reader.int64());
    case "S":
      return BigInt(reader.sint64());
    case "F":
      return BigInt(reader.fixed64());
    case "b":
      return reader.bool();
    case "t":
      return bytesToText(reader.bytes());
    default:
      return reader.bytes();
  }
}

function exactNumber(reader: WireReader, field: FieldSpec, message: MessageFields): number {
  const start = reader.pos;
  const value = reader.number();
  if (Number.isSafeInteger(value)) return value;
  reader.pos = start;
  const wide = BigInt(reader.uint64());
  if (field.type === "A" && BigInt(value) === wide) return value;
  throw badField(message, field, `${wide} is out of range`);
}

function safeZigZag(wide: bigint, field: FieldSpec, message: MessageFields): number {
  const value = Number(wide);
  if (Number.isSafeInteger(value)) return value;
  throw badField(message, field, `${wide} is out of range`);
}

function safeNumber(value: number): number {
  if (!Number.isSafeInteger(value)) throw outOfRange(value);
  return value;
}

function wireTypeOf(type: string): number {
  if (type === "m" || type === "t" || type === "y") return WireType.LengthDelimited;
  return type === "F" ? WireType.Bit64 : WireType.Varint;
}

function badField(
  message: MessageFields,
  field: FieldSpec,
  what: string,
  cause?: unknown,
): RepriseError {
  return badMessage(`${message.name}.${field.name}`, what, cause);
}

function badMessage(name: string, what: string, cause?: unknown): RepriseError {
  return new RepriseError("BAD_IMAGE", `bad ${name}: ${what}`, { cause });
}

function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
