import { expect, test } from "vitest";
import { Registers, REGISTERS_SIZE, type RegisterName } from "./registers.ts";
import { isRestarted, restartedCall } from "./restarted-call.ts";

const [NANOSLEEP, CLOCK_NANOSLEEP, POLL, FUTEX, READ] = [35, 230, 7, 202, 0];
const RIP = 0x40_1000;
/** Where a time lies, and where none does. */
const [TIME, WORD] = [0x7000_0000, 0x7000_1000];

function registers(values: Partial<Record<RegisterName, number>>): Registers {
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  for (const [name, value] of Object.entries({ orig_rax: 219, rax: -516, rip: RIP, ...values }))
    regs.set(name as RegisterName, value);
  return regs;
}

/** Memory with some code before the call, and a time. */
function memory(code: readonly number[]): (address: number, length: number) => Buffer | undefined {
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(2000n, 0);
  const parts = new Map([
    [RIP - 9, Buffer.from([...Array<number>(9).fill(0x90), ...code, 0x0f, 0x05].slice(-9))],
    [TIME, time],
    [WORD, Buffer.alloc(16, 0xff)],
  ]);
  return (address, length) => parts.get(address)?.subarray(0, length);
}

test("only what is in restart_syscall was restarted", () => {
  expect(isRestarted(registers({}))).toBe(true);
  expect(isRestarted(registers({ orig_rax: NANOSLEEP }))).toBe(false);
  expect(isRestarted(registers({ rax: -4 }))).toBe(false);
});

test.each([
  ["mov to eax", [0xb8, 0xe6, 0, 0, 0], CLOCK_NANOSLEEP],
  ["mov to rax", [0x48, 0xc7, 0xc0, 7, 0, 0, 0], POLL],
  ["push and pop", [0x6a, 35, 0x58], NANOSLEEP],
])("the number stands in the code: %s", (_, code, number) => {
  expect(restartedCall(registers({ rdi: WORD, rsi: 128, r10: TIME }), memory(code))).toBe(number);
});

test.each<[string, Partial<Record<RegisterName, number>>, number]>([
  ["nanosleep with room for the rest", { rdi: TIME, rsi: TIME }, NANOSLEEP],
  ["nanosleep without", { rdi: TIME, rsi: 0, rdx: 17, r10: 3 }, NANOSLEEP],
  ["clock_nanosleep", { rdi: 1, rsi: 0, rdx: TIME, r10: 0 }, CLOCK_NANOSLEEP],
  ["clock_nanosleep on a process's clock", { rdi: -6, rsi: 0, rdx: TIME }, CLOCK_NANOSLEEP],
  ["poll", { rdi: WORD, rsi: 3, rdx: 60_000, r10: WORD }, POLL],
  ["poll of nothing", { rdi: 0, rsi: 0, rdx: 600_000 }, POLL],
  ["futex among processes, at a word like a time", { rdi: TIME, rsi: 0, r10: TIME }, FUTEX],
  ["futex", { rdi: WORD, rsi: 128, rdx: 2, r10: TIME }, FUTEX],
])("the arguments tell: %s", (_, values, number) => {
  expect(restartedCall(registers(values), memory([]))).toBe(number);
  // A number that no such call has is none.
  expect(restartedCall(registers(values), memory([0xb8, READ, 0, 0, 0]))).toBe(number);
});
