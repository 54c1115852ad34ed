// struct rt_sigframe of x86-64 (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h, uapi/asm-generic/ucontext.h): what
// rt_sigreturn reads to put back every register, the extended state and the signal mask.

import { writeU64 } from "../../../sys/memory.ts";
import type { Registers } from "./registers.ts";

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
 * NT_X86_XSTATE gives it, and the mask.
 */
export function signalFrame(
  address: number,
  regs: Registers,
  xstate: Uint8Array,
  mask: bigint,
): Buffer {
  const frame = Buffer.alloc(signalFrameSize(xstate.length));
  writeU64(frame, UC_FLAGS, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
  frame.writeUInt32LE(SS_FLAGS_INVALID, UC_STACK_FLAGS);
  SIGCONTEXT_ORDER.forEach((name, index) =>
    frame.writeBigUInt64LE(regs.get(name), UC_MCONTEXT + index * 8),
  );
  frame.writeUInt16LE(Number(regs.get("cs") & 0xffffn), UC_MCONTEXT + SIGCONTEXT_CS);
  frame.writeUInt16LE(Number(regs.get("ss") & 0xffffn), UC_MCONTEXT + SIGCONTEXT_SS);
  writeU64(frame, UC_MCONTEXT + SIGCONTEXT_FPSTATE, address + XSTATE_OFFSET);
  frame.writeBigUInt64LE(mask, UC_SIGMASK);
  writeExtendedState(frame, xstate);
  return frame;
}

function writeExtendedState(frame: Buffer, xstate: Uint8Array): void {
  frame.set(xstate, XSTATE_OFFSET);
  const sw = XSTATE_OFFSET + SW_RESERVED;
  // The register set carries the enabled features (XCR0) in the same place where the frame has them.
  const features = Buffer.from(xstate.buffer, xstate.byteOffset).readBigUInt64LE(SW_RESERVED);
  frame.writeUInt32LE(FP_XSTATE_MAGIC1, sw);
  frame.writeUInt32LE(xstate.length + FP_XSTATE_MAGIC2_SIZE, sw + 4);
  frame.writeBigUInt64LE(features, sw + 8);
  frame.writeUInt32LE(xstate.length, sw + 16);
  frame.writeUInt32LE(FP_XSTATE_MAGIC2, XSTATE_OFFSET + xstate.length);
}
