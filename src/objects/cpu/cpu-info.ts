// cpuinfo.img: what the processor can, as CPUID tells it, in the words that Linux keeps (x86_capability, arch/x86/include/asm/
// cpufeatures.h); see the Intel SDM, CPUID. A program may have chosen its code by it, so where it comes back the processor must
// have at least the same.

import type { CpuinfoEntry, CpuinfoX86Entry } from "../../images/schema/messages.generated.ts";
import { RepriseError } from "../../errors.ts";
import { cpuid } from "../../tracee/local.ts";

/** What is compared. */
export interface CpuCapabilities {
  /** State that is saved and restored: the parts of XSAVE, and their sizes. */
  readonly fpu: boolean;
  /** Instructions that programs may use. */
  readonly ins: boolean;
  /** Everything, both ways. */
  readonly cpu: boolean;
}

const INTEL = 1;
const AMD = 2;
const VENDORS: Readonly<Record<string, number>> = {
  GenuineIntel: INTEL,
  AuthenticAMD: AMD,
  HygonGenuine: AMD,
};

/** The list of words that this is, and how many they are. */
const CAPABILITY_VERSION = 2;
const WORDS = 19;

/** Where the words are. */
const WORD = {
  leaf1Edx: 0,
  extendedEdx: 1,
  linux: 3,
  leaf1Ecx: 4,
  extendedEcx: 6,
  leaf7Ebx: 9,
  xsave: 10,
  leaf7Ecx: 11,
  qosEdx: 12,
  leaf8000_0008Ebx: 13,
  leaf6Eax: 14,
  leaf8000_000aEdx: 15,
  leafFEdx: 16,
  leaf8000_0007Ebx: 17,
  leaf7Edx: 18,
} as const;

type Word = keyof typeof WORD;

/** Bits of instructions that user code may have chosen; what only the kernel uses is left out. */
const INSTRUCTIONS: Partial<Record<Word, readonly number[]>> = {
  leaf1Edx: [0, 4, 8, 11, 15, 19, 23, 24, 25, 26],
  extendedEdx: [11, 22, 27, 30, 31],
  linux: [16, 20],
  leaf1Ecx: [0, 1, 3, 9, 13, 19, 20, 22, 23, 25, 26, 27, 28, 29, 30],
  extendedEcx: [5, 6, 7, 8, 11, 16, 21],
  leaf7Ebx: [0, 3, 4, 5, 8, 9, 11, 14, 16, 17, 18, 19, 23, 26, 27, 28, 29, 30, 31],
  xsave: [0, 1, 2],
  leaf7Ecx: [1, 6, 8, 9, 10, 11, 12, 13, 14, 22],
  leaf8000_0008Ebx: [0],
  leaf7Edx: [2, 3],
};

/** FPU, FXSR, OSXSAVE, XSAVES. */
const FPU_BITS: readonly (readonly [Word, number])[] = [
  ["leaf1Edx", 0],
  ["leaf1Edx", 24],
  ["leaf1Ecx", 27],
  ["xsave", 3],
];

/** Parts of XSAVE in order, each with the feature that it belongs to. */
const XSAVE_PARTS: readonly (readonly [Word, number] | undefined)[] = [
  ["leaf1Edx", 0], // x87
  ["leaf1Edx", 25], // SSE
  ["leaf1Ecx", 28], // AVX
  ["leaf7Ebx", 14], // MPX bounds
  ["leaf7Ebx", 14], // MPX status
  ["leaf7Ebx", 16], // AVX-512 masks
  ["leaf7Ebx", 16], // upper halves
  ["leaf7Ebx", 16], // upper registers
  undefined, // trace, of the kernel
  ["leaf7Ecx", 3], // protection keys
];

/** This processor, as the image has it. @throws RepriseError UNSUPPORTED */
export function cpuInfoEntry(): CpuinfoEntry {
  return { x86_entry: [readCpu()], ppc64_entry: [], s390_entry: [] };
}

/** This processor. @throws RepriseError UNSUPPORTED for a vendor that the image cannot name */
export function readCpu(): CpuinfoX86Entry {
  const first = cpuid(0, 0);
  const vendor = text([first.ebx, first.edx, first.ecx]);
  const vendor_id = VENDORS[vendor];
  if (vendor_id === undefined) {
    throw new RepriseError("UNSUPPORTED", `cannot describe a processor of ${vendor}`);
  }
  const highest = first.eax;
  const one = cpuid(1, 0);
  const family = familyOf(one.eax);
  const words = capabilityWords(highest, vendor_id, family);
  return {
    vendor_id,
    cpu_family: family,
    model: ((one.eax >>> 4) & 0xf) + (family >= 6 ? ((one.eax >>> 16) & 0xf) << 4 : 0),
    stepping: one.eax & 0xf,
    capability_ver: CAPABILITY_VERSION,
    capability: words,
    model_id: modelName(),
    ...xsave(words),
  };
}

/** Why what was saved on another processor cannot run on this one; undefined when it can. */
export function cpuMismatch(
  saved: CpuinfoX86Entry,
  here: CpuinfoX86Entry,
  compared: CpuCapabilities,
): string | undefined {
  const lacks = ([word, bit]: readonly [Word, number]): boolean =>
    hasBit(saved, word, bit) && !hasBit(here, word, bit);
  if (compared.fpu) {
    if (FPU_BITS.some(lacks)) return "it lacks a way to save the state of the FPU";
    const parts = (saved.xfeatures_mask ?? 0n) & ~(here.xfeatures_mask ?? 0n);
    if (parts !== 0n) return `it lacks parts of the extended state (0x${parts.toString(16)})`;
    for (const size of ["xsave_size", "xsave_size_max"] as const) {
      if ((saved[size] ?? 0) !== (here[size] ?? 0))
        return `its extended state has ${here[size]} bytes instead of ${saved[size]}`;
    }
  }
  if (compared.ins) {
    for (const [word, bits] of Object.entries(INSTRUCTIONS) as [Word, readonly number[]][]) {
      const missing = bits.filter((bit) => lacks([word, bit]));
      if (missing.length > 0)
        return `it lacks instructions (word ${WORD[word]}, bits ${missing.join(", ")})`;
    }
  }
  const count = Math.max(saved.capability.length, here.capability.length);
  const differs = Array.from({ length: count }, (_, index) => index).find(
    (index) => (saved.capability[index] ?? 0) !== (here.capability[index] ?? 0),
  );
  return compared.cpu && differs !== undefined
    ? `its features are not the same (word ${differs})`
    : undefined;
}

function capabilityWords(highest: number, vendor: number, family: number): number[] {
  const words = Array.from({ length: WORDS }, () => 0);
  const set = (word: Word, value: number): void => void (words[WORD[word]] = value >>> 0);
  const one = cpuid(1, 0);
  set("leaf1Edx", one.edx);
  // Without leaf 13 there is no XSAVE that could be used.
  set("leaf1Ecx", highest < 0xd ? one.ecx & ~(1 << 26) : one.ecx);
  if (highest >= 6) set("leaf6Eax", cpuid(6, 0).eax);
  if (highest >= 7) {
    const seven = cpuid(7, 0);
    set("leaf7Ebx", seven.ebx);
    set("leaf7Ecx", seven.ecx);
    set("leaf7Edx", seven.edx);
  }
  if (highest >= 0xd) set("xsave", cpuid(0xd, 1).eax);
  if (highest >= 0xf) {
    const qos = cpuid(0xf, 0).edx;
    set("leafFEdx", qos);
    if ((qos & 2) !== 0) set("qosEdx", cpuid(0xf, 1).edx);
  }
  const extended = cpuid(0x8000_0000, 0).eax;
  if (extended >= 0x8000_0001) {
    const first = cpuid(0x8000_0001, 0);
    set("extendedEcx", first.ecx);
    set("extendedEdx", first.edx);
  }
  if (extended >= 0x8000_0007) set("leaf8000_0007Ebx", cpuid(0x8000_0007, 0).ebx);
  if (extended >= 0x8000_0008) set("leaf8000_0008Ebx", cpuid(0x8000_0008, 0).ebx);
  if (extended >= 0x8000_000a) set("leaf8000_000aEdx", cpuid(0x8000_000a, 0).edx);
  // Linux's own: CPUID and NOPL are there on x86-64; REP is fast on all but the oldest.
  const isRepGood = vendor === INTEL ? family === 6 : family >= 0x10;
  set("linux", (1 << 25) | (1 << 20) | (isRepGood ? 1 << 16 : 0));
  if (vendor === INTEL && family === 15) set("leaf7Ebx", (words[WORD.leaf7Ebx] ?? 0) & ~(1 << 9));
  // Bit 31 means something else there.
  if (vendor === AMD) set("leaf1Edx", one.edx & 0x7fff_ffff);
  return words;
}

/** SSE and the bounds: CRIU has never counted them, and refuses an image with more than it counts itself. */
const NEVER_SAVED = (1 << 1) | (1 << 3);

function xsave(
  words: readonly number[],
): Pick<CpuinfoX86Entry, "xfeatures_mask" | "xsave_size" | "xsave_size_max"> {
  const has = ([word, bit]: readonly [Word, number]): boolean =>
    (((words[WORD[word]] ?? 0) >>> bit) & 1) === 1;
  if (!has(["leaf1Ecx", 26])) return { xfeatures_mask: 0n, xsave_size: 0, xsave_size_max: 0 };
  const { eax, ebx, ecx } = cpuid(0xd, 0);
  const mask = XSAVE_PARTS.reduce(
    (sum, feature, part) =>
      feature !== undefined && ((eax >>> part) & 1) === 1 && has(feature) ? sum | (1 << part) : sum,
    0,
  );
  return { xfeatures_mask: BigInt(mask & ~NEVER_SAVED), xsave_size: ebx, xsave_size_max: ecx };
}

function hasBit({ capability }: CpuinfoX86Entry, word: Word, bit: number): boolean {
  return (((capability[WORD[word]] ?? 0) >>> bit) & 1) === 1;
}

function familyOf(eax: number): number {
  const family = (eax >>> 8) & 0xf;
  return family === 0xf ? family + ((eax >>> 20) & 0xff) : family;
}

function modelName(): string {
  const words = [0x8000_0002, 0x8000_0003, 0x8000_0004].flatMap((leaf) => {
    const { eax, ebx, ecx, edx } = cpuid(leaf, 0);
    return [eax, ebx, ecx, edx];
  });
  return text(words).trimStart();
}

/** Characters of registers, up to the first null. */
function text(words: readonly number[]): string {
  const bytes = Buffer.alloc(words.length * 4);
  words.forEach((word, index) => bytes.writeUInt32LE(word >>> 0, index * 4));
  const end = bytes.indexOf(0);
  return bytes.toString("latin1", 0, end < 0 ? bytes.length : end);
}
