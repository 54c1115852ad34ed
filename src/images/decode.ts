// Bytes to messages, with limits, since an image may come from anywhere.
import { RepriseError } from "../errors.ts";
import {
  badField,
  badMessage,
  errorText,
  fieldsOf,
  isRepeated,
  wireTypeOf,
  type FieldSpec,
  type MessageFields,
  type MessageName,
  type PlainMessage,
} from "./message-fields.ts";
import type { Messages } from "./schema/messages.generated.ts";
import { bytesToText } from "./text.ts";
import { wireTypeIn, WireReader, WireType } from "./wire-reader.ts";

/** One entry: the largest real ones are mm entries of 65,530 mappings (4 MB) and AppArmor policies. */
export const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
/** Messages inside messages: only cgroup directories and AppArmor namespaces nest by themselves. */
export const MAX_NESTING = 100;
/** Elements of all repeated fields of one entry together. */
const MAX_ELEMENTS = 4_000_000;

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
