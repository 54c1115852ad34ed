import { expect, test } from "vitest";
import { REGISTERS_SIZE, Registers } from "../../tracee/arch/x86_64/registers.ts";
import { XSTATE_BV } from "../../tracee/arch/x86_64/xstate.ts";
import { Tracee } from "../../tracee/tracee.ts";
import { cpuStateEntry } from "./cpu-state.ts";

const TILE_DATA = 18n;

test("registers that the image has no place for are refused, and not lost", () => {
  const xstate = Buffer.alloc(16384);
  xstate.writeBigUInt64LE(0b111n, XSTATE_BV);
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  const tracee = new Tracee(4711, 4711, { stops: 0, remoteCalls: 0 });
  const thread = { tracee, regs, xstate, mask: 0n };
  expect(cpuStateEntry(thread, regs, 0n).fpregs?.xsave?.xstate_bv).toBe(0b111n);
  xstate.writeBigUInt64LE((1n << TILE_DATA) | 0b111n, XSTATE_BV);
  expect(() => cpuStateEntry(thread, regs, 0n)).toThrow(/thread 4711.*state components 0x40000/);
});
