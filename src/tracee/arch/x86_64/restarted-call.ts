// A sleep that was interrupted once and goes on (the process was stopped, paused or saved before) stands in restart_syscall(2), whose
// state no task can be given: for a restore it must be known which call that was. The kernel has kept its arguments, but not its number
// (kernel/signal.c, arch_do_signal_or_restart). It stands in the code before the call, nearly always; else the arguments tell.

import { ERESTART_RESTARTBLOCK } from "../../../sys/errno.ts";
import { SYSCALLS } from "../../../sys/syscalls.x86_64.ts";
import { CLOCK_NANOSLEEP, FUTEX, POLL, TIMED_CALLS, type Registers } from "./registers.ts";

/** Reads memory of the task; undefined where it has none. */
export type ReadTask = (address: number, length: number) => Buffer | undefined;

/** `syscall` */
const SYSCALL = [0x0f, 0x05] as const;
/** Bytes before the instruction pointer that are looked at: the longest way to say a number, and `syscall`. */
const LOOK_BACK = 9;
/** A timespec, and what addresses are not. */
const TIMESPEC_SIZE = 16;
const LOWEST_ADDRESS = 0x1_0000;
const HIGHEST_ADDRESS = 2 ** 47;
const NSEC_PER_SEC = 1_000_000_000n;

/** Whether a stopped thread is in restart_syscall. */
export function isRestarted(regs: Registers): boolean {
  return (
    regs.getNumber("orig_rax") === SYSCALLS.restart_syscall.nr &&
    regs.getNumber("rax") === -ERESTART_RESTARTBLOCK
  );
}

/** The number of the call that was restarted. */
export function restartedCall(regs: Registers, read: ReadTask): number {
  const code = read(regs.getNumber("rip") - LOOK_BACK, LOOK_BACK);
  return (code === undefined ? undefined : numberInCode(code)) ?? numberByArguments(regs, read);
}

/** The number that was loaded right before the call: mov to eax or rax, or push and pop. */
function numberInCode(code: Buffer): number | undefined {
  if (code[LOOK_BACK - 2] !== SYSCALL[0] || code[LOOK_BACK - 1] !== SYSCALL[1]) return undefined;
  const word = code.readUInt32LE(LOOK_BACK - 6);
  const ways: readonly (readonly [boolean, number])[] = [
    [code[LOOK_BACK - 7] === 0xb8, word],
    [code.subarray(0, 3).equals(Buffer.of(0x48, 0xc7, 0xc0)), word],
    [code[LOOK_BACK - 5] === 0x6a && code[LOOK_BACK - 3] === 0x58, code[LOOK_BACK - 4] ?? 0],
  ];
  return ways.find(([fits, number]) => fits && TIMED_CALLS.has(number))?.[1];
}

const FUTEX_WAITS: ReadonlySet<number> = new Set([0, 9]);
/** FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME. */
const FUTEX_FLAGS = 128 | 256;

/**
 * nanosleep(time, rest), clock_nanosleep(clock, flags, time, rest), poll(list, count, milliseconds), futex(word, operation, value, time).
 */
function numberByArguments(regs: Registers, read: ReadTask): number {
  const [first, second] = [regs.getNumber("rdi"), regs.getNumber("rsi")];
  const isTime = (name: "rdi" | "rdx" | "r10"): boolean => pointsToTime(regs.getNumber(name), read);
  if (!isAddress(first)) return isTime("rdx") ? CLOCK_NANOSLEEP : POLL;
  if (isAddress(second)) return SYSCALLS.nanosleep.nr;
  // FUTEX_WAIT is 0, too, and the word of a futex may look like a time.
  if (second === 0 && isTime("rdi") && !isTime("r10")) return SYSCALLS.nanosleep.nr;
  return FUTEX_WAITS.has(second & ~FUTEX_FLAGS) && isTime("r10") ? FUTEX : POLL;
}

function isAddress(value: number): boolean {
  return value >= LOWEST_ADDRESS && value < HIGHEST_ADDRESS;
}

function pointsToTime(address: number, read: ReadTask): boolean {
  const bytes = isAddress(address) ? read(address, TIMESPEC_SIZE) : undefined;
  if (bytes === undefined) return false;
  const nanoseconds = bytes.readBigInt64LE(8);
  return bytes.readBigInt64LE(0) >= 0n && nanoseconds >= 0n && nanoseconds < NSEC_PER_SEC;
}
