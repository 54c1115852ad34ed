// struct user_regs_struct (arch/x86/include/asm/user_64.h): 27 words, as PTRACE_GETREGSET NT_PRSTATUS gives them, and
// the kernel's rule for system calls that a stop has interrupted.

import {
  EINTR,
  ERESTARTNOHAND,
  ERESTARTNOINTR,
  ERESTARTSYS,
  ERESTART_RESTARTBLOCK,
} from "../../../sys/errno.ts";
import { SYSCALLS } from "../../../sys/syscalls.x86_64.ts";

/** Register names in the kernel's order. */
export const REGISTERS = [
  "r15",
  "r14",
  "r13",
  "r12",
  "rbp",
  "rbx",
  "r11",
  "r10",
  "r9",
  "r8",
  "rax",
  "rcx",
  "rdx",
  "rsi",
  "rdi",
  "orig_rax",
  "rip",
  "cs",
  "eflags",
  "rsp",
  "ss",
  "fs_base",
  "gs_base",
  "ds",
  "es",
  "fs",
  "gs",
] as const;

export type RegisterName = (typeof REGISTERS)[number];

const OFFSET = Object.fromEntries(REGISTERS.map((name, index) => [name, index * 8])) as Record<
  RegisterName,
  number
>;

/** Size in bytes of the register set. */
export const REGISTERS_SIZE = REGISTERS.length * 8;

/** `cs` of a 64-bit task; 32-bit tasks have 0x23. */
export const USER_CS_64 = 0x33n;

/** The length of the `syscall` instruction, by which the kernel steps back to run a call again. */
const SYSCALL_LENGTH = 2n;

/** A copy of a register set, read and changed by name. */
export class Registers {
  readonly bytes: Buffer;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes);
    this.#view = new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.length);
  }

  /** A register as an unsigned 64-bit value. */
  get(name: RegisterName): bigint {
    return this.#view.getBigUint64(OFFSET[name], true);
  }

  /** A register as a signed number; exact for results and for addresses of user space. */
  getNumber(name: RegisterName): number {
    const at = OFFSET[name];
    return this.#view.getInt32(at + 4, true) * 0x1_0000_0000 + this.#view.getUint32(at, true);
  }

  /** Puts a register as it is into other memory. */
  copyWord(name: RegisterName, into: DataView, at: number): void {
    const from = OFFSET[name];
    into.setUint32(at, this.#view.getUint32(from, true), true);
    into.setUint32(at + 4, this.#view.getUint32(from + 4, true), true);
  }

  set(name: RegisterName, value: bigint | number): this {
    const at = OFFSET[name];
    if (typeof value === "bigint") {
      this.#view.setBigUint64(at, BigInt.asUintN(64, value), true);
    } else {
      this.#view.setUint32(at, value, true);
      this.#view.setInt32(at + 4, Math.floor(value / 0x1_0000_0000), true);
    }
    return this;
  }

  copy(): Registers {
    return new Registers(this.bytes);
  }
}

/** How a system call was interrupted by the stop, if it was. */
export type Interruption = "none" | "restart" | "restart-block";

/** Tells whether the task stood in a system call that has to go on, and how (kernel/signal: arch_do_signal_or_restart). */
export function interruption(regs: Registers): Interruption {
  if (regs.getNumber("orig_rax") < 0) return "none";
  switch (-regs.getNumber("rax")) {
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
      return "restart";
    case ERESTART_RESTARTBLOCK:
      return "restart-block";
    default:
      return "none";
  }
}

/**
 * Some calls never restart by themselves: they end with EINTR even when nothing but a stop has disturbed them (signal(7)). No handler of
 * the task's can have ended them, since sigreturn(2) leaves no call's number behind. Those that wait without a limit go on
 * instead, unless there is a handler to run: such registers say so to the kernel.
 */
export function withoutSpuriousEintr(regs: Registers): Registers {
  return isCutShort(regs) ? regs.copy().set("rax", -ERESTARTNOHAND) : regs;
}

function isCutShort(regs: Registers): boolean {
  if (regs.getNumber("rax") !== -EINTR) return false;
  const limit = UNLIMITED_WAITS.get(regs.getNumber("orig_rax"));
  return (
    limit !== undefined &&
    (limit === "none" || BigInt.asIntN(32, regs.get(limit.in)) === limit.unlimited)
  );
}

/** The number with which the kernel notes that a call is to be made again, for the restored task: it has no restart block. */
export function restartError(regs: Registers): number | undefined {
  const kind = interruption(regs);
  if (kind === "none") return undefined;
  const error = -regs.getNumber("rax");
  return kind === "restart-block" ? ERESTARTNOHAND : error;
}

/**
 * Turns registers of an image, which stand before the call, into those of a task that the kernel has still to decide about: a
 * handler that runs first may end the call. It does so when the task is let go (ptrace_detach marks it as having signals).
 */
export function undecidedRegisters(regs: Registers, error: number | undefined): Registers {
  const isKnown =
    error === ERESTARTSYS || error === ERESTARTNOHAND || error === ERESTART_RESTARTBLOCK;
  if (!isKnown || regs.get("rax") !== regs.get("orig_rax")) return regs.copy().set("orig_rax", -1n);
  return regs
    .copy()
    .set("rax", -error)
    .set("rip", regs.get("rip") + SYSCALL_LENGTH);
}

/**
 * The registers with which the *same* task goes on: what the kernel itself would do on the way back to user space. A call
 * with a restart block (a sleep, say) goes on through restart_syscall, which knows the time that is left.
 */
export function resumedRegisters(regs: Registers): Registers {
  const resumed = regs.copy();
  const kind = interruption(regs);
  if (kind !== "none") {
    resumed.set("rax", kind === "restart" ? regs.get("orig_rax") : SYSCALLS.restart_syscall.nr);
    resumed.set("rip", regs.get("rip") - SYSCALL_LENGTH);
  }
  return resumed.set("orig_rax", -1n);
}

/**
 * The registers with which a *restored* task goes on: it has no restart block, so the call is made again from its start.
 * (CRIU gives such calls EINTR instead: see `withoutEintr`.)
 */
export function repeatedRegisters(regs: Registers): Registers {
  const kind = interruption(regs);
  if (kind === "none") return regs.copy();
  return kind === "restart" ? repeat(regs) : repeatTimed(regs);
}

/**
 * The registers of a thread of an image, where CRIU may have let a call with a restart block end with EINTR. Programs know that
 * as the work of a signal handler of theirs, and some have none (script(1) stops passing on what is typed), so the call is made
 * again. No handler can have ended it: sigreturn(2) leaves no call's number behind.
 */
export function withoutEintr(regs: Registers): Registers {
  const isEnded = regs.getNumber("rax") === -EINTR && TIMED_CALLS.has(regs.getNumber("orig_rax"));
  return isEnded || isCutShort(regs) ? repeatTimed(regs) : regs;
}

/** The kernel wrote the time that is left of a relative sleep through the last argument when it interrupted it. */
function repeatTimed(regs: Registers): Registers {
  const repeated = repeat(regs);
  const nr = regs.getNumber("orig_rax");
  if (nr === SYSCALLS.nanosleep.nr && regs.get("rsi") !== 0n) repeated.set("rdi", regs.get("rsi"));
  if (nr === CLOCK_NANOSLEEP && regs.get("r10") !== 0n) repeated.set("rdx", regs.get("r10"));
  return repeated;
}

function repeat(regs: Registers): Registers {
  return regs
    .copy()
    .set("rax", regs.get("orig_rax"))
    .set("rip", regs.get("rip") - SYSCALL_LENGTH);
}

export const POLL = 7;
export const FUTEX = 202;
export const CLOCK_NANOSLEEP = 230;

const SEMTIMEDOP = 220;
const EPOLL_WAIT = 232;
const EPOLL_PWAIT = 281;
const EPOLL_PWAIT2 = 441;

/** The register that holds the limit of a wait, and what it holds when there is none. */
type Limit = "none" | { readonly in: "rdx" | "r8" | "r10"; readonly unlimited: bigint };

const UNLIMITED_WAITS: ReadonlyMap<number, Limit> = new Map<number, Limit>([
  [SYSCALLS.semop.nr, "none"],
  [SEMTIMEDOP, { in: "r10", unlimited: 0n }],
  [SYSCALLS.rt_sigtimedwait.nr, { in: "rdx", unlimited: 0n }],
  [SYSCALLS.io_getevents.nr, { in: "r8", unlimited: 0n }],
  [EPOLL_WAIT, { in: "r10", unlimited: -1n }],
  [EPOLL_PWAIT, { in: "r10", unlimited: -1n }],
  [EPOLL_PWAIT2, { in: "r10", unlimited: 0n }],
  // It waits only when it has nothing to submit, and has a limit only with another flag than IORING_ENTER_GETEVENTS.
  [SYSCALLS.io_uring_enter.nr, { in: "r10", unlimited: 1n }],
]);

/** Calls that have a restart block. */
export const TIMED_CALLS: ReadonlySet<number> = new Set([
  SYSCALLS.nanosleep.nr,
  POLL,
  FUTEX,
  CLOCK_NANOSLEEP,
]);
