// Messages to bytes: fields in ascending number, set-but-default values written, as CRIU writes them. Images are encoded while tasks
// stand still, so what is known to be the same is encoded once: messages and lists that never change, and those of the moment before.
import { RepriseError } from "../errors.ts";
import {
  badField,
  errorText,
  fieldsOf,
  type FieldSpec,
  type MessageFields,
  type MessageName,
  type PlainMessage,
} from "./message-fields.ts";
import type { Messages } from "./schema/messages.generated.ts";
import { textToBytes } from "./text.ts";
import { WireType } from "./wire-reader.ts";
import { WireWriter } from "./wire-writer.ts";

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

function safeNumber(value: number): number {
  if (!Number.isSafeInteger(value)) throw outOfRange(value);
  return value;
}
