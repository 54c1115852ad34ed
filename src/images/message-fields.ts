// The fields of CRIU's messages, from the table that tools/generate-schema.ts makes, as the codec sees them.
//
// Letters of the table: u uint32, i int32, s sint32, e enum (all `number`); U uint64, I int64,
// S sint64, F fixed64 (`bigint`); N uint64 and Z sint64 as an exact `number`; A a page address as
// `number`; b bool, t string, y bytes, m message. Labels: ! required, ? optional, * repeated, + packed.
import { RepriseError } from "../errors.ts";
import { MESSAGE_TABLE, type Messages } from "./schema/messages.generated.ts";
import { WireType } from "./wire-reader.ts";

export type MessageName = keyof Messages;

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

export function isRepeated({ label }: FieldSpec): boolean {
  return label === "*" || label === "+";
}

export type PlainMessage = Record<string, unknown>;

export function wireTypeOf(type: string): number {
  if (type === "m" || type === "t" || type === "y") return WireType.LengthDelimited;
  return type === "F" ? WireType.Bit64 : WireType.Varint;
}

export function badField(
  message: MessageFields,
  field: FieldSpec,
  what: string,
  cause?: unknown,
): RepriseError {
  return badMessage(`${message.name}.${field.name}`, what, cause);
}

export function badMessage(name: string, what: string, cause?: unknown): RepriseError {
  return new RepriseError("BAD_IMAGE", `bad ${name}: ${what}`, { cause });
}

export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
