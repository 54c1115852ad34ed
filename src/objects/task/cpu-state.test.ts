import { expect, test } from "vitest";
import { decode, encode } from "../../images/codec.ts";
import { REGISTERS, REGISTERS_SIZE, Registers } from "../../tracee/arch/x86_64/registers.ts";
import { XSTATE_BV } from "../../tracee/arch/x86_64/xstate.ts";
import { Tracee } from "../../tracee/tracee.ts";
import { cpuStateEntry, extendedStateOf, registersOf } from "./cpu-state.ts";

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

test("each register is in its own field, and components that threads have in common in all of their images", () => {
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  REGISTERS.forEach((name, index) => regs.set(name, (BigInt(index) << 59n) | BigInt(index)));
  regs.set("orig_rax", -1n);
  const tracee = new Tracee(4711, 4711, { stops: 0, remoteCalls: 0 });
  const images = [1, 2, 3, 2].map((fill) => {
    const xstate = Buffer.alloc(4096, fill);
    // With AVX, which the engine says as the kernel does, in the bytes that are left to software.
    for (const at of [464, XSTATE_BV]) xstate.writeBigUInt64LE(0b111n, at);
    const bytes = encode(
      "thread_info_x86",
      cpuStateEntry({ tracee, regs, xstate, mask: 0n }, regs, 7n),
    );
    return decode("thread_info_x86", bytes);
  });
  const core = { mtype: 1, thread_info: images[0] };
  for (const name of REGISTERS)
    expect([name, registersOf(core).get(name)]).toEqual([name, regs.get(name)]);
  expect(images[0]?.gpregs.mode).toBe(1);
  expect(images.map(({ fpregs }) => fpregs?.xmm_space)).toEqual(
    [0x01010101, 0x02020202, 0x03030303, 0x02020202].map((word) => Array<number>(64).fill(word)),
  );
  expect(images[3]?.fpregs?.xsave).toEqual(images[1]?.fpregs?.xsave);
  expect(images[3]?.fpregs?.xsave?.ymmh_space).not.toEqual(images[0]?.fpregs?.xsave?.ymmh_space);
  // And back again, into threads that are fresh, or have something else there.
  const fresh = Buffer.alloc(4096);
  fresh.writeBigUInt64LE(0b111n, 464);
  const used = Buffer.from(fresh).fill(9, 3000);
  for (const template of [fresh, used]) {
    const states = images.map((thread_info) =>
      extendedStateOf({ mtype: 1, thread_info }, template),
    );
    expect(states.map((state) => state[600])).toEqual([1, 2, 3, 2]);
    expect(states.map((state) => state[200])).toEqual([1, 2, 3, 2]);
    expect(states.map((state) => state[3000])).toEqual(Array(4).fill(template[3000]));
    expect(states[3]).toEqual(states[1]);
  }
});
