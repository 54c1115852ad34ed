// struct rt_sigframe of x86-64 (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h, uapi/asm-generic/ucontext.h): what
// rt_sigreturn reads to put back every register, the extended state and the signal mask.

import { writeU64 } from "../../../sys/memory.ts";
import type { RegisterName, Registers } from "./registers.ts";

const UC_FP_XSTATE = 1;
const UC_SIGCONTEXT_SS = 2;
const UC_STRICT_RESTORE_SS = 4;

const FP_XSTATE_MAGIC1 = 0x46505853;
const FP_XSTATE_MAGIC2 = 0x46505845;
const FP_XSTATE_MAGIC2_SIZE = 4;
/** Offset of struct _fpx_sw_bytes in the extended state. */
const SW_RESERVED = 464;

/** Offsets in struct ucontext. */
const UC_FLAGS = 0;
const UC_STACK_FLAGS = 24;
const UC_MCONTEXT = 40;
const UC_SIGMASK = UC_MCONTEXT + 256;
const UC_SIZE = UC_SIGMASK + 8;
/** The extended state must be aligned to 64 bytes. */
const XSTATE_OFFSET = Math.ceil(UC_SIZE / 64) * 64;

/** General registers in the order of struct sigcontext. */
const SIGCONTEXT_ORDER = [
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
  "rdi",
  "rsi",
  "rbp",
  "rbx",
  "rdx",
  "rax",
  "rcx",
  "rsp",
  "rip",
  "eflags",
] as const;
const SIGCONTEXT_CS = 18 * 8;
const SIGCONTEXT_SS = SIGCONTEXT_CS + 6;
const SIGCONTEXT_FPSTATE = 23 * 8;

/** An alternate stack setting that the kernel refuses, so that rt_sigreturn leaves the real one alone. */
const SS_FLAGS_INVALID = 7;

/** Size in bytes of a frame for an extended state of `xstateSize` bytes, a multiple of 64. */
export function signalFrameSize(xstateSize: number): number {
  return XSTATE_OFFSET + Math.ceil((xstateSize + FP_XSTATE_MAGIC2_SIZE) / 64) * 64;
}

/**
 * Builds the frame for rt_sigreturn with rsp at `address` (aligned to 64): the registers `regs`, the extended state as
 * NT_X86_XSTATE gives it, and the mask. `frame` is of that size, and all zero.
 */
export function putSignalFrame(
  frame: Buffer,
  {
    address,
    regs,
    xstate,
    mask,
  }: {
    readonly address: number;
    readonly regs: Registers;
    readonly xstate: Uint8Array;
    readonly mask: bigint;
  },
): void {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
  view.setUint32(UC_FLAGS, flags, true);
  view.setUint32(UC_STACK_FLAGS, SS_FLAGS_INVALID, true);
  for (let index = 0; index < SIGCONTEXT_ORDER.length; index += 1)
    regs.copyWord(SIGCONTEXT_ORDER[index] as RegisterName, view, UC_MCONTEXT + index * 8);
  view.setUint16(UC_MCONTEXT + SIGCONTEXT_CS, regs.getNumber("cs"), true);
  view.setUint16(UC_MCONTEXT + SIGCONTEXT_SS, regs.getNumber("ss"), true);
  writeU64(frame, UC_MCONTEXT + SIGCONTEXT_FPSTATE, address + XSTATE_OFFSET);
  view.setBigUint64(UC_SIGMASK, mask, true);
  frame.set(xstate, XSTATE_OFFSET);
  const sw = XSTATE_OFFSET + SW_RESERVED;
  view.setUint32(sw, FP_XSTATE_MAGIC1, true);
  view.setUint32(sw + 4, xstate.length + FP_XSTATE_MAGIC2_SIZE, true);
  // The register set carries the enabled features (XCR0) in the same place where the frame has them.
  frame.set(xstate.subarray(SW_RESERVED, SW_RESERVED + 8), sw + 8);
  view.setUint32(sw + 16, xstate.length, true);
  view.setUint32(XSTATE_OFFSET + xstate.length, FP_XSTATE_MAGIC2, true);
}
