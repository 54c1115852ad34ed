import * as fc from "fast-check";
import { describe, expect, expectTypeOf, it } from "vitest";
import { RepriseError } from "../errors.ts";
import {
  constantList,
  constantMessage,
  decode,
  encode,
  encodeAhead,
  fieldsOf,
  MAX_NESTING,
  type FieldSpec,
  type MessageName,
} from "./codec.ts";
import { MESSAGE_TABLE, type Messages } from "./schema/messages.generated.ts";
import { bytesToText, textToBytes } from "./text.ts";

const FOWN = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
const NAMES = Object.keys(MESSAGE_TABLE) as MessageName[];

describe("every message of the schema", () => {
  it("is the same after encode and decode", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...NAMES).chain((name) => fc.tuple(fc.constant(name), messageOf(name, 0))),
        ([name, value]) => {
          const bytes = encode(name, value as never);
          const decoded: unknown = decode(name, bytes);
          expect(decoded).toEqual(value);
          expect(encode(name, decoded as never)).toEqual(bytes);
        },
      ),
      { numRuns: 1500 },
    );
  });

  it("rejects or reads random bytes, without any other error", () => {
    fc.assert(
      fc.property(fc.constantFrom(...NAMES), fc.uint8Array({ maxLength: 60 }), (name, bytes) => {
        try {
          decode(name, bytes);
        } catch (error) {
          expect(error).toBeInstanceOf(RepriseError);
          expect((error as RepriseError).code).toBe("BAD_IMAGE");
        }
      }),
      { numRuns: 5000 },
    );
  });
});

describe("encode and decode", () => {
  it("writes fields in ascending number and values that are a default", () => {
    const bytes = encode("fown_entry", { pid: 0, pid_type: 1, signum: 0, euid: 0, uid: 300 });
    expect(Buffer.from(bytes).toString("hex")).toBe("08ac021000180020012800");
  });

  it("writes a list that was announced as constant like any other, in each of its fields", () => {
    const words = [0n, 1n, 2n ** 64n - 1n];
    const other = { xstate_bv: 1n, ymmh_space: [], bndcsr_state: [], opmask_reg: [], pkru: [] };
    const plain = { ...other, bndreg_state: words, zmm_upper: words, hi16_zmm: [] };
    const constant = constantList(words);
    for (let round = 0; round < 2; round += 1) {
      expect(
        encode("user_x86_xsave_entry", { ...plain, bndreg_state: constant, zmm_upper: constant }),
      ).toEqual(encode("user_x86_xsave_entry", plain));
    }
  });

  it("writes a message that was announced as constant like any other", () => {
    const fown = { uid: 300, euid: 2 ** 32 - 1, signum: 0, pid_type: 1, pid: 5 };
    const file = { id: 1, flags: 0, inode_id: 1, pos: 0n };
    const constant = constantMessage({ ...fown });
    for (let round = 0; round < 2; round += 1)
      expect(encode("memfd_file_entry", { ...file, fown: constant })).toEqual(
        encode("memfd_file_entry", { ...file, fown }),
      );
  });

  it("reads lists that are like the one before, longer, shorter or others", () => {
    const other = { xstate_bv: 1n, bndreg_state: [], bndcsr_state: [], zmm_upper: [], pkru: [] };
    const words = Array.from({ length: 20 }, (_, index) => index * 0x0cff_ffff);
    const wide = words.map((word) => BigInt(word) << 20n);
    const lists = [words, words, [...words, 7], words, words.slice(1), words.slice(0, -1), words];
    for (const ymmh_space of lists) {
      for (const hi16_zmm of [wide, wide, [...wide, 1n], []]) {
        const entry = { ...other, ymmh_space, opmask_reg: hi16_zmm, hi16_zmm };
        const bytes = encode("user_x86_xsave_entry", entry);
        expect(decode("user_x86_xsave_entry", bytes)).toEqual(entry);
      }
    }
  });

  it("refuses an element of a list that does not fit", () => {
    const xsave = { xstate_bv: 1n, bndreg_state: [], bndcsr_state: [], opmask_reg: [], pkru: [] };
    for (const bad of [-1, 2 ** 32, 0.5])
      expect(() =>
        encode("user_x86_xsave_entry", {
          ...xsave,
          ymmh_space: [1, bad],
          zmm_upper: [],
          hi16_zmm: [],
        }),
      ).toThrow(/bad user_x86_xsave_entry.ymmh_space: /);
  });

  it("writes the same object several times as it would write equal ones", () => {
    const action = { sigaction: 1n, flags: 300n, restorer: 0n, mask: 2n ** 64n - 1n };
    const other = { ...action, sigaction: 7n };
    const task = {
      task_state: 1,
      exit_code: 0,
      personality: 0,
      flags: 0,
      blk_sigset: 0n,
      comm: "",
    };
    const encoded = (sigactions: (typeof action)[]): Uint8Array =>
      encode("task_core_entry", { ...task, sigactions });
    const equal = [action, action, action, other, other, action].map((one) => ({ ...one }));
    expect(encoded([action, action, action, other, other, action])).toEqual(encoded(equal));
  });

  it("writes a message that was encoded ahead as any other, alone and within one, and lets nobody change it", () => {
    const eventfd = { id: 3, flags: 0, counter: 7n };
    const early = { ...FOWN, pid: 300 };
    const plain = { ...early };
    encodeAhead("fown_entry", early);
    expect(encode("fown_entry", early)).toEqual(encode("fown_entry", plain));
    expect(encode("eventfd_file_entry", { ...eventfd, fown: early })).toEqual(
      encode("eventfd_file_entry", { ...eventfd, fown: plain }),
    );
    expect(() => (early.pid = 5)).toThrow(TypeError);
  });

  it("names the required field that is missing, both ways", () => {
    expect(() => encode("fown_entry", { uid: 1 } as never)).toThrow("bad fown_entry.euid: missing");
    expect(() => decode("fown_entry", Uint8Array.of(8, 1))).toThrow("bad fown_entry.euid: missing");
    expect(() => decode("pipe_entry", Uint8Array.of(0x22, 0))).toThrow(/fown_entry.uid: missing/);
  });

  it("names the field whose value does not fit", () => {
    expect(() => encode("fown_entry", { ...FOWN, pid: -1 })).toThrow(/bad fown_entry.pid: /);
    const wide = encode("memfd_file_entry", {
      id: 1,
      flags: 0,
      inode_id: 1,
      pos: 2n ** 64n - 1n,
      fown: FOWN,
    });
    expect(decode("memfd_file_entry", wide).pos).toBe(2n ** 64n - 1n);
    // vaddr is a number: 2^63 is no address.
    const far = Uint8Array.of(8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 16, 0);
    expect(() => decode("pagemap_entry", far)).toThrow(/pagemap_entry.vaddr: .* out of range/);
  });

  it("keeps the address of the vsyscall page exact", () => {
    const start = 2 ** 64 - 10 * 1024 * 1024;
    const numbers = { pgoff: 0, shmid: 0, prot: 4, flags: 34, status: 0x204, fd: -1 };
    const vma = { ...numbers, start, end: start + 4096 };
    expect(decode("vma_entry", encode("vma_entry", vma))).toEqual(vma);
  });

  it("skips fields that it does not know", () => {
    const unknown = Uint8Array.of(0xf8, 0xff, 0x07, 5, 0xc2, 0x3e, 2, 1, 2);
    const bytes = Buffer.concat([encode("fown_entry", FOWN), unknown]);
    expect(decode("fown_entry", bytes)).toEqual(FOWN);
  });

  it("reads packed and unpacked lists", () => {
    const head = Uint8Array.of(8, 1, 16, 0, 24, 1, 32, 1);
    const packed = Buffer.concat([head, Uint8Array.of(0x2a, 3, 1, 2, 3)]);
    const unpacked = Buffer.concat([head, Uint8Array.of(0x28, 1, 0x28, 2, 0x28, 3)]);
    expect(decode("pstree_entry", packed).threads).toEqual([1, 2, 3]);
    expect(decode("pstree_entry", unpacked).threads).toEqual([1, 2, 3]);
  });

  it("refuses messages nested without measure", () => {
    let bytes: Uint8Array = Uint8Array.of(0x0a, 0);
    for (let depth = 0; depth < MAX_NESTING + 20; depth++) {
      const length = Buffer.from(varint(bytes.length));
      bytes = Buffer.concat([Uint8Array.of(0x0a, 0, 0x12), length, bytes]);
    }
    expect(() => decode("cgroup_dir_entry", bytes)).toThrow(/nested deeper/);
  });

  it("has lists optional going in and present coming out", () => {
    expectTypeOf<Messages["pstree_entry"]["threads"]>().toEqualTypeOf<readonly number[]>();
    const bytes = encode("pstree_entry", { pid: 1, ppid: 0, pgid: 1, sid: 1 });
    expect(decode("pstree_entry", bytes).threads).toEqual([]);
    // @ts-expect-error a required field is demanded by the type as well
    expect(() => encode("pstree_entry", { pid: 1, ppid: 0, pgid: 1 })).toThrow(/sid/);
  });
});

describe("text", () => {
  it("keeps any bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
        expect(Buffer.from(textToBytes(bytesToText(bytes))).equals(bytes)).toBe(true);
      }),
    );
  });

  it("keeps UTF-8 next to bytes that are not", () => {
    const bytes = Buffer.from("/tmp/\u00fc\u{1f600}\xff", "utf8");
    const broken = Buffer.concat([bytes, Uint8Array.of(0xff, 0xc3, 0x28, 0xed, 0xa0, 0x80)]);
    expect(bytesToText(broken)).toContain("/tmp/ü😀");
    expect(Buffer.from(textToBytes(bytesToText(broken))).equals(broken)).toBe(true);
  });
});

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varint(value >>> 7)];
}

const MAX_DEPTH = 3;

/** A value of any message; lists that are absent are empty, as decode gives them. */
function messageOf(name: string, depth: number): fc.Arbitrary<Record<string, unknown>> {
  const { list } = fieldsOf(name);
  const members = list.map((field) => [field.name, memberOf(field, depth)] as const);
  const requiredKeys = list.filter(({ label }) => label !== "?").map((field) => field.name);
  return fc.record(Object.fromEntries(members), { requiredKeys, noNullPrototype: true });
}

function memberOf(field: FieldSpec, depth: number): fc.Arbitrary<unknown> {
  const isList = field.label === "*" || field.label === "+";
  if (isList && depth >= MAX_DEPTH) return fc.constant([]);
  if (!isList) return valueOf(field, depth);
  return fc.array(valueOf(field, depth), { maxLength: 3 });
}

function valueOf(field: FieldSpec, depth: number): fc.Arbitrary<unknown> {
  switch (field.type) {
    case "m":
      return messageOf(field.typeName, depth + 1);
    case "u":
      return fc.nat({ max: 2 ** 31 - 1 }).map((value) => value * 2 + (value & 1));
    case "i":
    case "e":
    case "s":
      return fc.integer();
    case "N":
    case "A":
      return fc.maxSafeNat();
    case "Z":
      return fc.maxSafeInteger();
    case "U":
    case "F":
      return fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    case "I":
    case "S":
      return fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
    case "b":
      return fc.boolean();
    case "t":
      return fc.uint8Array({ maxLength: 60 }).map(bytesToText);
    default:
      return fc.uint8Array({ maxLength: 20 });
  }
}
