// Where the components of the extended state lie in the XSAVE area that NT_X86_XSTATE shows: the standard format, whose
// offsets differ between makers and are told by CPUID leaf 0xD (Intel SDM vol. 1, 13.4; AMD puts them closer together).

import { cpuid } from "../../local.ts";

/** Components by their bit in XCR0 and xstate_bv. */
export const XFEATURE = {
  FP: 0,
  SSE: 1,
  YMM: 2,
  BNDREGS: 3,
  BNDCSR: 4,
  OPMASK: 5,
  ZMM_HI256: 6,
  HI16_ZMM: 7,
  PKRU: 9,
} as const;

/** Offsets in the legacy area that every CPU has (struct fxregs_state). */
export const FX = {
  cwd: 0,
  swd: 2,
  twd: 4,
  fop: 6,
  rip: 8,
  rdp: 16,
  mxcsr: 24,
  mxcsrMask: 28,
  st: 32,
  xmm: 160,
} as const;

/** Offset of the XSAVE header: xstate_bv, xcomp_bv. */
export const XSTATE_BV = 512;
/** Where the kernel's register set shows XCR0. */
const XCR0 = 464;

export interface Component {
  readonly offset: number;
  readonly size: number;
}

const components = new Map<number, Component>();

/** Place of a component in the register set of this CPU; size 0 when the CPU lacks it. */
export function component(feature: number): Component {
  let found = components.get(feature);
  if (found === undefined) {
    const { eax, ebx } = cpuid(0xd, feature);
    found = { offset: ebx, size: eax };
    components.set(feature, found);
  }
  return found;
}

/** The enabled features of a register set. */
export function enabledFeatures(xstate: Buffer): bigint {
  return xstate.readBigUInt64LE(XCR0);
}
