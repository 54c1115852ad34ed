// Images as JSON, in the form of CRIU's `crit decode`: field names of the schema, enums by name, bytes
// in base64 (lines of 76 characters), names of unix sockets quoted-printable, payload as `extra`.
// 64-bit numbers are printed in full, so the text is made here: JSON.stringify knows no bigint.
import { fieldsOf, type FieldSpec, type MessageName } from "./codec.ts";
import { readEntries, type ImageEntry, type ImageFile, type PayloadPart } from "./image-file.ts";
import { kindSpec, type EntryKind } from "./names.ts";
import { ENUM_TABLE } from "./schema/messages.generated.ts";

export type JsonValue =
  | string
  | number
  | bigint
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [name: string]: JsonValue };

/**
 * An image as `crit decode` shows it: `{magic, entries}`.
 * @throws RepriseError BAD_IMAGE when the image is damaged.
 */
export function imageToJson(file: ImageFile, kind: EntryKind): JsonValue {
  const spec = kindSpec(kind);
  const entries: JsonValue[] = [];
  for (const [index, entry] of readEntries(file, kind).entries()) {
    const name = (index === 0 ? (spec.head ?? spec.message) : spec.message) as MessageName;
    const plain = messageToJson(name, entry.value);
    const payload = payloadToJson(file, kind, entry);
    if (payload.extra !== undefined) plain["extra"] = payload.extra;
    entries.push(plain, ...payload.chunks);
  }
  return { magic: spec.magic ?? "", entries };
}

/** A message as a JSON object; lists without elements are left out. */
function messageToJson(name: MessageName, value: unknown): Record<string, JsonValue> {
  const plain: Record<string, JsonValue> = {};
  for (const field of fieldsOf(name).list) {
    const content = (value as Record<string, unknown>)[field.name];
    if (content === undefined) continue;
    if (!Array.isArray(content)) plain[field.name] = fieldToJson(name, field, content);
    else if (content.length > 0) {
      plain[field.name] = content.map((item) => fieldToJson(name, field, item));
    }
  }
  return plain;
}

/** JSON text; `indent` is the number of spaces a level, 0 for a single line. */
export function stringifyJson(value: JsonValue, { indent = 0 }: { indent?: number } = {}): string {
  return textOf(value, { step: " ".repeat(indent), margin: indent === 0 ? "" : "\n" });
}

function fieldToJson(message: string, field: FieldSpec, value: unknown): JsonValue {
  if (field.type === "m") return messageToJson(field.typeName as MessageName, value);
  if (field.type === "e") return enumName(field.typeName, value as number);
  // Page addresses above 2^53 are exact, but JavaScript prints them rounded.
  if (field.type === "A") return BigInt(value as number);
  if (field.type !== "y") return value as JsonValue;
  const bytes = value as Uint8Array;
  const isSocketName = message === "unix_sk_entry" && field.name === "name";
  return isSocketName ? quotedPrintable(bytes) : base64Lines(bytes);
}

function enumName(type: string, value: number): JsonValue {
  const found = Object.entries(ENUM_TABLE[type] ?? {}).find(([, number]) => number === value);
  return found?.[0] ?? value;
}

interface JsonPayload {
  readonly extra?: JsonValue;
  /** Ghost chunks are entries of their own. */
  readonly chunks: readonly JsonValue[];
}

function payloadToJson(file: ImageFile, kind: EntryKind, entry: ImageEntry<unknown>): JsonPayload {
  const content = ({ offset, length }: PayloadPart) => base64Lines(file.bytes(offset, length));
  const [first, second] = entry.payload;
  switch (kindSpec(kind).payload ?? "none") {
    case "none":
      return { chunks: [] };
    case "tcp-queues":
      return {
        extra: { inq: first ? content(first) : "", outq: second ? content(second) : "" },
        chunks: [],
      };
    case "semaphores":
      return { extra: first === undefined ? [] : semaphoreValues(file, first), chunks: [] };
    case "messages":
      return {
        extra: entry.payload.flatMap((part) => [
          messageToJson("ipc_msg", part.message),
          content(part),
        ]),
        chunks: [],
      };
    case "ghost":
      return ghostToJson(entry, content);
    case "pipe":
    case "packet":
    case "segment":
    case "map":
      break;
  }
  const total = entry.payload.reduce((sum, part) => sum + part.length, 0);
  return { extra: first ? content({ offset: first.offset, length: total }) : "", chunks: [] };
}

function ghostToJson(
  { value, payload }: ImageEntry<unknown>,
  content: (part: PayloadPart) => JsonValue,
): JsonPayload {
  if ((value as { chunks?: boolean }).chunks !== true) {
    return { extra: payload[0] === undefined ? "" : content(payload[0]), chunks: [] };
  }
  const chunks = payload.map((part) => ({
    len: part.length,
    off: part.at ?? 0,
    extra: content(part),
  }));
  return { chunks };
}

function semaphoreValues(file: ImageFile, { offset, length }: PayloadPart): number[] {
  const bytes = file.bytes(offset, length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, length);
  return Array.from({ length: length / 2 }, (_, index) => view.getUint16(index * 2, true));
}

const BASE64_LINE = 76;

function base64Lines(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64");
  let lines = "";
  for (let at = 0; at < text.length; at += BASE64_LINE)
    lines += `${text.slice(at, at + BASE64_LINE)}\n`;
  return lines;
}

function quotedPrintable(bytes: Uint8Array): string {
  let text = "";
  for (const [index, byte] of bytes.entries()) {
    const isBlank = (byte === 0x20 || byte === 0x09) && index < bytes.length - 1;
    const isPlain = isBlank || (byte > 0x20 && byte < 0x7f && byte !== 0x3d);
    text += isPlain
      ? String.fromCharCode(byte)
      : `=${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return text;
}

interface Layout {
  readonly step: string;
  /** Line break and indentation of this level; empty for a single line. */
  readonly margin: string;
}

function textOf(value: JsonValue, layout: Layout): string {
  if (typeof value === "bigint") return value.toString();
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const inner = { ...layout, margin: layout.margin + layout.step };
  const colon = layout.margin === "" ? ":" : ": ";
  if (Array.isArray(value)) {
    return enclosed("[]", { items: value.map((item: JsonValue) => textOf(item, inner)), layout });
  }
  const items = Object.entries(value).map(
    ([name, item]: [string, JsonValue]) => `${JSON.stringify(name)}${colon}${textOf(item, inner)}`,
  );
  return enclosed("{}", { items, layout });
}

function enclosed(
  brackets: string,
  { items, layout }: { items: readonly string[]; layout: Layout },
): string {
  const [open = "", close = ""] = brackets;
  if (items.length === 0) return brackets;
  const inner = layout.margin + layout.step;
  return `${open}${inner}${items.join(`,${inner}`)}${layout.margin}${close}`;
}
