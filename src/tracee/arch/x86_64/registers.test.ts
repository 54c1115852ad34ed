import { expect, test } from "vitest";
import {
  interruption,
  REGISTERS,
  REGISTERS_SIZE,
  Registers,
  repeatedRegisters,
  restartError,
  resumedRegisters,
  undecidedRegisters,
  withoutEintr,
  withoutSpuriousEintr,
  type RegisterName,
} from "./registers.ts";

const RIP = 0x40_1234n;
const ERESTARTSYS = -512n;
const ERESTARTNOINTR = -513n;
const ERESTARTNOHAND = -514n;
const ERESTART_RESTARTBLOCK = -516n;
const NANOSLEEP = 35n;
const CLOCK_NANOSLEEP = 230n;
const POLL = 7n;
const READ = 0n;
const RESTART_SYSCALL = 219n;

/** A set in which every register has a value of its own. */
function registers(values: Partial<Record<RegisterName, bigint>>): Registers {
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  REGISTERS.forEach((name, index) => regs.set(name, 0x1000_0000_0000n + BigInt(index)));
  regs.set("rip", RIP);
  for (const [name, value] of Object.entries(values)) regs.set(name as RegisterName, value);
  return regs;
}

/** The registers in which two sets differ, with the values of the second. */
function changes(before: Registers, after: Registers): Record<string, bigint> {
  const names = REGISTERS.filter((name) => before.get(name) !== after.get(name));
  return Object.fromEntries(names.map((name) => [name, BigInt.asIntN(64, after.get(name))]));
}

interface Row {
  readonly what: string;
  readonly regs: Partial<Record<RegisterName, bigint>>;
  readonly kind: ReturnType<typeof interruption>;
  readonly resumed: Record<string, bigint>;
  readonly repeated: Record<string, bigint>;
}

const ROWS: readonly Row[] = [
  {
    what: "outside of system calls",
    regs: { orig_rax: -1n, rax: ERESTARTSYS },
    kind: "none",
    resumed: {},
    repeated: {},
  },
  {
    what: "after a call that ended well",
    regs: { orig_rax: READ, rax: 5n },
    kind: "none",
    resumed: { orig_rax: -1n },
    repeated: {},
  },
  {
    what: "after a call that failed with EINTR",
    regs: { orig_rax: READ, rax: -4n },
    kind: "none",
    resumed: { orig_rax: -1n },
    repeated: {},
  },
  ...[ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND].map((rax) => ({
    what: `read() interrupted with ${rax}`,
    regs: { orig_rax: READ, rax },
    kind: "restart" as const,
    resumed: { orig_rax: -1n, rax: READ, rip: RIP - 2n },
    repeated: { rax: READ, rip: RIP - 2n },
  })),
  {
    what: "nanosleep() with room for the rest",
    regs: { orig_rax: NANOSLEEP, rax: ERESTART_RESTARTBLOCK, rsi: 0x7000n },
    kind: "restart-block",
    resumed: { orig_rax: -1n, rax: RESTART_SYSCALL, rip: RIP - 2n },
    repeated: { rax: NANOSLEEP, rip: RIP - 2n, rdi: 0x7000n },
  },
  {
    what: "nanosleep() without room for the rest",
    regs: { orig_rax: NANOSLEEP, rax: ERESTART_RESTARTBLOCK, rsi: 0n },
    kind: "restart-block",
    resumed: { orig_rax: -1n, rax: RESTART_SYSCALL, rip: RIP - 2n },
    repeated: { rax: NANOSLEEP, rip: RIP - 2n },
  },
  {
    what: "clock_nanosleep() with room for the rest",
    regs: { orig_rax: CLOCK_NANOSLEEP, rax: ERESTART_RESTARTBLOCK, r10: 0x7000n },
    kind: "restart-block",
    resumed: { orig_rax: -1n, rax: RESTART_SYSCALL, rip: RIP - 2n },
    repeated: { rax: CLOCK_NANOSLEEP, rip: RIP - 2n, rdx: 0x7000n },
  },
  {
    what: "clock_nanosleep() without room for the rest",
    regs: { orig_rax: CLOCK_NANOSLEEP, rax: ERESTART_RESTARTBLOCK, r10: 0n },
    kind: "restart-block",
    resumed: { orig_rax: -1n, rax: RESTART_SYSCALL, rip: RIP - 2n },
    repeated: { rax: CLOCK_NANOSLEEP, rip: RIP - 2n },
  },
  {
    what: "poll(), another call with a restart block",
    regs: { orig_rax: POLL, rax: ERESTART_RESTARTBLOCK, rsi: 0x7000n, r10: 0x8000n },
    kind: "restart-block",
    resumed: { orig_rax: -1n, rax: RESTART_SYSCALL, rip: RIP - 2n },
    repeated: { rax: POLL, rip: RIP - 2n },
  },
];

test.each(ROWS)("interrupted calls: $what", ({ regs, kind, resumed, repeated }) => {
  const before = registers(regs);
  expect(interruption(before)).toBe(kind);
  expect(changes(before, resumedRegisters(before))).toEqual(resumed);
  expect(changes(before, repeatedRegisters(before))).toEqual(repeated);
  expect(changes(before, registers(regs))).toEqual({}); // the input is not touched
});

test.each(ROWS)("calls that an image ends with EINTR: $what", ({ regs, kind, repeated }) => {
  const ended = registers({ ...regs, rax: -4n });
  // Others end with EINTR by themselves (epoll_wait), or in images of ours are made again already.
  const expected = kind === "restart-block" ? repeated : {};
  expect(changes(ended, withoutEintr(ended))).toEqual(expected);
  const afterHandler = registers({ ...regs, rax: -4n, orig_rax: -1n });
  expect(changes(afterHandler, withoutEintr(afterHandler))).toEqual({});
});

test.each([
  { what: "epoll_wait without a limit", regs: { orig_rax: 232n, r10: 0xffff_ffffn }, goesOn: true },
  { what: "epoll_wait with a limit", regs: { orig_rax: 232n, r10: 5n }, goesOn: false },
  { what: "semop", regs: { orig_rax: 65n }, goesOn: true },
  { what: "semtimedop with a limit", regs: { orig_rax: 220n, r10: 0x7000n }, goesOn: false },
  { what: "rt_sigtimedwait without a limit", regs: { orig_rax: 128n, rdx: 0n }, goesOn: true },
  { what: "io_getevents without a limit", regs: { orig_rax: 208n, r8: 0n }, goesOn: true },
  { what: "io_uring_enter without a limit", regs: { orig_rax: 426n, r10: 1n }, goesOn: true },
  { what: "io_uring_enter with a limit", regs: { orig_rax: 426n, r10: 9n }, goesOn: false },
  {
    what: "read, which a timeout of its socket has ended",
    regs: { orig_rax: READ },
    goesOn: false,
  },
  { what: "what a handler has ended", regs: { orig_rax: -1n }, goesOn: false },
])("EINTR of a stop alone: $what", ({ regs, goesOn }) => {
  const cut = registers({ ...regs, rax: -4n });
  const expected = goesOn ? { rax: ERESTARTNOHAND } : {};
  expect(changes(cut, withoutSpuriousEintr(cut))).toEqual(expected);
});

test.each(ROWS)("a restored call is left to the kernel: $what", ({ regs, kind, repeated }) => {
  const before = registers(regs);
  const error = restartError(before);
  const saved = repeatedRegisters(before);
  const back = undecidedRegisters(saved, error);
  if (kind === "none" || regs.rax === ERESTARTNOINTR) {
    expect(changes(saved, back)).toEqual(regs.orig_rax === -1n ? {} : { orig_rax: -1n });
    return;
  }
  // A restored task has no restart block. Of the arguments the rest of a sleep is new.
  expect(back.get("rip")).toBe(RIP);
  expect(back.get("orig_rax")).toBe(regs.orig_rax);
  const rax = regs.rax === ERESTARTSYS ? ERESTARTSYS : ERESTARTNOHAND;
  expect(BigInt.asIntN(64, back.get("rax"))).toBe(rax);
  for (const name of ["rdi", "rsi", "rdx"] as const)
    expect(back.get(name)).toBe(repeated[name] ?? before.get(name));
});

test("registers keep all 64 bits, and results their sign", () => {
  const regs = registers({});
  expect(regs.set("r15", -1).get("r15")).toBe(0xffff_ffff_ffff_ffffn);
  expect(regs.getNumber("r15")).toBe(-1);
  expect(regs.set("gs", 0x7fff_ffff_f000).getNumber("gs")).toBe(0x7fff_ffff_f000);
  expect(regs.set("rsp", 0x8000_0000_0000_0001n).get("rsp")).toBe(0x8000_0000_0000_0001n);
});

test("copy() is apart from the first", () => {
  const regs = registers({});
  regs.copy().set("rax", 1);
  expect(regs.get("rax")).not.toBe(1n);
});
