// Registers and extended state of a thread on x86-64, between ptrace's register sets and CRIU's thread_info_x86.

import { RepriseError } from "../../errors.ts";
import { constantList, constantMessage, wordsMessage } from "../../images/codec.ts";
import type {
  ThreadInfoX86,
  UserX86FpregsEntry,
  UserX86RegsEntry,
  UserX86XsaveEntry,
  CoreEntry,
} from "../../images/schema/messages.generated.ts";
import {
  REGISTERS,
  REGISTERS_SIZE,
  Registers,
  repeatedRegisters,
  withoutEintr,
  type RegisterName,
} from "../../tracee/arch/x86_64/registers.ts";
import {
  component,
  enabledFeatures,
  FX,
  XFEATURE,
  XSTATE_BV,
} from "../../tracee/arch/x86_64/xstate.ts";
import type { StoppedThread } from "../../tracee/injection.ts";

/** user_x86_regs_entry.mode of a 64-bit task. */
const MODE_NATIVE = 1;
/** Unused TLS descriptors (set_thread_area) of a 64-bit task. */
const TLS_ENTRIES = [12, 13, 14];

/** The kernel's names for the registers in the order of the image. */
const IMAGE_NAMES: Readonly<Partial<Record<RegisterName, string>>> = {
  rbp: "bp",
  rbx: "bx",
  rax: "ax",
  rcx: "cx",
  rdx: "dx",
  rsi: "si",
  rdi: "di",
  orig_rax: "orig_ax",
  rip: "ip",
  eflags: "flags",
  rsp: "sp",
};

/**
 * The image of a stopped thread's registers: with an interrupted system call to be made again, and all of the extended
 * state that the format knows.
 */
export function cpuStateEntry(
  thread: StoppedThread,
  registers: Registers,
  clearTidAddress: bigint,
): ThreadInfoX86 {
  return {
    clear_tid_addr: clearTidAddress,
    gpregs: registersEntry(repeatedRegisters(registers)),
    fpregs: extendedStateEntry(thread),
    tls: UNUSED_TLS,
  };
}

const UNUSED_TLS = constantList(
  TLS_ENTRIES.map((entry_number) => ({
    entry_number,
    base_addr: 0,
    limit: 0,
    seg_32bit: false,
    contents_h: false,
    contents_l: false,
    read_exec_only: true,
    limit_in_pages: false,
    seg_not_present: true,
    usable: false,
  })),
);

/** Registers and what the image calls them. */
const IMAGED = REGISTERS.map((name) => ({ name, key: IMAGE_NAMES[name] ?? name }));

/** The fields of the message stand in the order of the kernel's register set (codec.test.ts holds it). */
function registersEntry(regs: Registers): UserX86RegsEntry {
  return wordsMessage<UserX86RegsEntry, "mode">(regs.bytes, { mode: MODE_NATIVE });
}

function extendedStateEntry({ xstate, tracee }: StoppedThread): UserX86FpregsEntry {
  if (xstate.length > XSTATE_BV) refuseUnknown(xstate.readBigUInt64LE(XSTATE_BV), tracee.tid);
  const xsave = xstate.length > XSTATE_BV ? knownXsave(xstate) : undefined;
  return {
    cwd: xstate.readUInt16LE(FX.cwd),
    swd: xstate.readUInt16LE(FX.swd),
    twd: xstate.readUInt16LE(FX.twd),
    fop: xstate.readUInt16LE(FX.fop),
    rip: xstate.readBigUInt64LE(FX.rip),
    rdp: xstate.readBigUInt64LE(FX.rdp),
    mxcsr: xstate.readUInt32LE(FX.mxcsr),
    mxcsr_mask: xstate.readUInt32LE(FX.mxcsrMask),
    st_space: words32(xstate, FX.st, 128),
    // Few threads have the same.
    xmm_space: readWords32(xstate, FX.xmm, 256),
    padding: [],
    ...(xsave === undefined ? {} : { xsave }),
  };
}

/** Components that the image has a place for. */
const SAVED = Object.values(XFEATURE).reduce((bits, feature) => bits | (1n << BigInt(feature)), 0n);

/** AMX tiles could only be put into a thread that has used them already. */
function refuseUnknown(present: bigint, tid: number): void {
  const unknown = present & ~SAVED;
  if (unknown === 0n) return;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump thread ${tid}: it uses registers that no image holds: state components 0x${unknown.toString(16)}`,
    { pid: tid, hint: "Try again when it has released its AMX tiles (TILERELEASE)." },
  );
}

interface KnownXsave {
  readonly features: bigint;
  /** Behind the legacy area. */
  readonly components: Buffer;
  readonly entry: UserX86XsaveEntry;
  isConstant: boolean;
}

/** What many threads have in common as a whole: they use few of the registers beyond the first sixteen. The last ones seen. */
const knownXsaves: KnownXsave[] = [];
const MOST_XSAVES = 8;

function knownXsave(xstate: Buffer): UserX86XsaveEntry {
  const features = enabledFeatures(xstate);
  const components = xstate.subarray(XSTATE_BV);
  const known = knownXsaves.find(
    (other) => other.features === features && other.components.equals(components),
  );
  if (known === undefined) {
    const entry = xsaveEntry(xstate);
    const added = { features, components, entry, isConstant: false };
    if (knownXsaves.push(added) > MOST_XSAVES) knownXsaves.shift();
    return entry;
  }
  if (!known.isConstant) constantMessage(known.entry);
  known.isConstant = true;
  return known.entry;
}

function xsaveEntry(xstate: Buffer): UserX86XsaveEntry {
  const enabled = enabledFeatures(xstate);
  const part = (feature: number): { offset: number; size: number } => {
    const place = component(feature);
    return (enabled & (1n << BigInt(feature))) === 0n || place.offset + place.size > xstate.length
      ? { offset: 0, size: 0 }
      : place;
  };
  const narrow = (feature: number): readonly number[] =>
    words32(xstate, part(feature).offset, part(feature).size);
  const wide = (feature: number): readonly bigint[] =>
    words64(xstate, part(feature).offset, part(feature).size);
  return {
    xstate_bv: xstate.readBigUInt64LE(XSTATE_BV),
    ymmh_space: narrow(XFEATURE.YMM),
    bndreg_state: wide(XFEATURE.BNDREGS),
    bndcsr_state: wide(XFEATURE.BNDCSR),
    opmask_reg: wide(XFEATURE.OPMASK),
    zmm_upper: wide(XFEATURE.ZMM_HI256),
    hi16_zmm: wide(XFEATURE.HI16_ZMM),
    pkru: narrow(XFEATURE.PKRU),
  };
}

/** The registers of a thread from its image. */
export function registersOf(core: CoreEntry): Registers {
  const entry = threadInfo(core).gpregs as unknown as Readonly<Record<string, bigint>>;
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  for (const { name, key } of IMAGED) regs.set(name, entry[key] ?? 0n);
  return withoutEintr(regs);
}

/**
 * Puts the extended state of an image into a register set of this CPU. `template` is what a fresh task here has: it gives
 * the size and the components that the image lacks.
 *
 * @throws RepriseError KERNEL_FEATURE when the image uses registers that this CPU does not have.
 */
export function extendedStateOf(core: CoreEntry, template: Buffer): Buffer {
  const xstate = Buffer.from(template);
  const fp = threadInfo(core).fpregs;
  if (fp === undefined) return xstate;
  xstate.writeUInt16LE(fp.cwd, FX.cwd);
  xstate.writeUInt16LE(fp.swd, FX.swd);
  xstate.writeUInt16LE(fp.twd, FX.twd);
  xstate.writeUInt16LE(fp.fop, FX.fop);
  xstate.writeBigUInt64LE(fp.rip, FX.rip);
  xstate.writeBigUInt64LE(fp.rdp, FX.rdp);
  xstate.writeUInt32LE(fp.mxcsr, FX.mxcsr);
  putWords32(xstate, FX.st, fp.st_space);
  putWords32(xstate, FX.xmm, fp.xmm_space);
  if (fp.xsave === undefined || xstate.length <= XSTATE_BV) return xstate;
  putXsave(xstate, fp.xsave);
  return xstate;
}

function putXsave(xstate: Buffer, xsave: UserX86XsaveEntry): void {
  // x87 and SSE are always taken from the image, whatever the bits say.
  const present = xsave.xstate_bv | 3n;
  const enabled = enabledFeatures(xstate);
  const unknown = present & ~enabled;
  if (unknown !== 0n) {
    throw new RepriseError(
      "KERNEL_FEATURE",
      `cannot restore the registers: this CPU lacks state components 0x${unknown.toString(16)}`,
      {
        hint: "The program was saved on a CPU with more vector registers; restore it on one that has them.",
      },
    );
  }
  const tail = xstate.subarray(XSTATE_BV);
  if (lastPut?.before.equals(tail) === true && isSameXsave(lastPut.xsave, xsave)) {
    tail.set(lastPut.after);
    return;
  }
  const before = Buffer.from(tail);
  xstate.writeBigUInt64LE(present, XSTATE_BV);
  putWords32(xstate, component(XFEATURE.YMM).offset, xsave.ymmh_space, enabled, XFEATURE.YMM);
  putWords64(
    xstate,
    component(XFEATURE.BNDREGS).offset,
    xsave.bndreg_state,
    enabled,
    XFEATURE.BNDREGS,
  );
  putWords64(
    xstate,
    component(XFEATURE.BNDCSR).offset,
    xsave.bndcsr_state,
    enabled,
    XFEATURE.BNDCSR,
  );
  putWords64(xstate, component(XFEATURE.OPMASK).offset, xsave.opmask_reg, enabled, XFEATURE.OPMASK);
  putWords64(
    xstate,
    component(XFEATURE.ZMM_HI256).offset,
    xsave.zmm_upper,
    enabled,
    XFEATURE.ZMM_HI256,
  );
  putWords64(
    xstate,
    component(XFEATURE.HI16_ZMM).offset,
    xsave.hi16_zmm,
    enabled,
    XFEATURE.HI16_ZMM,
  );
  putWords32(xstate, component(XFEATURE.PKRU).offset, xsave.pkru, enabled, XFEATURE.PKRU);
  lastPut = { xsave, before, after: Buffer.from(tail) };
}

/** What was put last, and where: most threads have the same. */
let lastPut:
  | { readonly xsave: UserX86XsaveEntry; readonly before: Buffer; readonly after: Buffer }
  | undefined;

/** Long lists that are the same are one object (see the codec). */
function isSameXsave(a: UserX86XsaveEntry, b: UserX86XsaveEntry): boolean {
  return (
    a.xstate_bv === b.xstate_bv &&
    isSameList(a.ymmh_space, b.ymmh_space) &&
    isSameList(a.bndreg_state, b.bndreg_state) &&
    isSameList(a.bndcsr_state, b.bndcsr_state) &&
    isSameList(a.opmask_reg, b.opmask_reg) &&
    isSameList(a.zmm_upper, b.zmm_upper) &&
    isSameList(a.hi16_zmm, b.hi16_zmm) &&
    isSameList(a.pkru, b.pkru)
  );
}

function isSameList<T extends number | bigint>(a: readonly T[], b: readonly T[]): boolean {
  return a === b || (a.length === b.length && a.every((word, index) => word === b[index]));
}

function threadInfo(core: CoreEntry): ThreadInfoX86 {
  if (core.thread_info === undefined) {
    throw new RepriseError(
      "BAD_IMAGE",
      "cannot restore a thread: its core image has no x86-64 registers",
    );
  }
  return core.thread_info;
}

function words32(bytes: Buffer, offset: number, size: number): readonly number[] {
  return known32.get(bytes, { offset, size }, () => readWords32(bytes, offset, size));
}

function readWords32(bytes: Buffer, offset: number, size: number): readonly number[] {
  const view = viewOf(bytes);
  const words: number[] = [];
  for (let at = offset; at < offset + size; at += 4) words.push(view.getUint32(at, true));
  return words;
}

function words64(bytes: Buffer, offset: number, size: number): readonly bigint[] {
  return known64.get(bytes, { offset, size }, (view) => {
    const words: bigint[] = [];
    for (let at = offset; at < offset + size; at += 8) {
      // A bigint is an object of its own, but for the one that is always there.
      const isZero = view.getUint32(at, true) === 0 && view.getUint32(at + 4, true) === 0;
      words.push(isZero ? 0n : view.getBigUint64(at, true));
    }
    return words;
  });
}

/**
 * Lists of words that were asked for already. Most threads use few of the registers, and what the C library left in the others is the
 * same in all of them: what comes a second time is made and encoded once.
 */
class KnownWords<T extends number | bigint> {
  readonly #lists = new Map<string, readonly T[] | undefined>();

  get(
    bytes: Buffer,
    { offset, size }: { readonly offset: number; readonly size: number },
    make: (view: DataView) => readonly T[],
  ): readonly T[] {
    if (size === 0) return [];
    const key = bytes.toString("latin1", offset, offset + size);
    const known = this.#lists.get(key);
    if (known !== undefined) return known;
    const isSecond = this.#lists.has(key);
    const list = make(viewOf(bytes));
    if (!isSecond && this.#lists.size >= MOST_KNOWN) return list;
    const kept = isSecond ? constantList(list) : undefined;
    this.#lists.set(key, kept);
    return kept ?? list;
  }
}

/** Blocks of registers that are remembered. */
const MOST_KNOWN = 256;

const known32 = new KnownWords<number>();
const known64 = new KnownWords<bigint>();

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function putWords32(
  bytes: Buffer,
  offset: number,
  words: readonly number[],
  enabled = ~0n,
  feature = 0,
): void {
  if ((enabled & (1n << BigInt(feature))) === 0n) return;
  const view = viewOf(bytes);
  for (let index = 0; index < words.length; index += 1)
    view.setUint32(offset + index * 4, (words[index] as number) >>> 0, true);
}

function putWords64(
  bytes: Buffer,
  offset: number,
  words: readonly bigint[],
  enabled: bigint,
  feature: number,
): void {
  if ((enabled & (1n << BigInt(feature))) === 0n) return;
  const view = viewOf(bytes);
  for (let index = 0; index < words.length; index += 1)
    view.setBigUint64(offset + index * 8, words[index] as bigint, true);
}
