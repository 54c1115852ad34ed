// The work area: memory of our own inside a process that is being dumped, made and removed without leaving a trace and
// without a moment at which the engine's death would harm the process.
//
// 1. A stub is put into the spare end of the vdso's last page (no page of the program's own is changed), and the leader
//    pointed at it: one mmap, caught at its exit. If the engine dies here, the stub itself puts mask and registers right.
// 2. The interpreter and a signal frame for every thread go into the area; the leader is pointed at the interpreter's
//    signal-return, and the spare bytes are cleaned. If the engine dies from here on, the frames put the threads right.
// 3. At the end the threads get their registers back, and the leader unmaps the area through the stub again.

import { RepriseError } from "../errors.ts";
import { errnoName } from "../sys/errno.ts";
import {
  MAP_ANONYMOUS,
  MAP_FIXED_NOREPLACE,
  MAP_NORESERVE,
  MAP_PRIVATE,
  PAGE_SIZE,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
} from "../sys/abi/mman.ts";
import { SIGSET_FULL } from "../sys/abi/signal.ts";
import { pokeMemory, readMemory, writeMemory } from "../sys/memory.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { assemble, stub, STUB_SIZE } from "./arch/x86_64/code.ts";
import { repeatedRegisters, resumedRegisters, type Registers } from "./arch/x86_64/registers.ts";
import { signalFrame, signalFrameSize } from "./arch/x86_64/sigframe.ts";
import { finishCaughtCall, interpreter, label, startCaughtCall } from "./run.ts";
import type { Tracee } from "./tracee.ts";

/** A stopped thread and what it had when it was stopped. */
export interface StoppedThread {
  readonly tracee: Tracee;
  readonly regs: Registers;
  readonly xstate: Buffer;
  readonly mask: bigint;
}

/** A process to inject into. */
export interface InjectionTarget {
  /** The leader first. */
  readonly threads: readonly StoppedThread[];
  /** Address of at least STUB_SIZE zero bytes at the end of an executable mapping: see `findSpareBytes`. */
  readonly spare: number;
  /** Unused addresses for the area, and how many bytes the programs need. */
  readonly hole: number;
  readonly programSize: number;
}

/** A live work area. */
export interface Injection {
  readonly target: InjectionTarget;
  readonly address: number;
  readonly size: number;
  /** Address of the interpreter, of each thread's frame, and of the room for programs. */
  readonly code: number;
  readonly frames: readonly number[];
  readonly programs: number;
}

/** Makes the work areas of all targets, working on all at the same time. */
export function inject(targets: readonly InjectionTarget[]): Injection[] {
  const injections = targets.map(layOut);
  injections.forEach(startMapping);
  injections.forEach(finishMapping);
  return injections;
}

/**
 * Gives all threads their own state back and removes the work areas. Afterwards the threads stand in their stops, to be
 * detached.
 */
export function cure(injections: readonly Injection[]): void {
  injections.forEach(startUnmapping);
  injections.forEach(finishUnmapping);
}

/** Size of the room that a work area needs. */
export function workAreaSize(threads: readonly StoppedThread[], programSize: number): number {
  const frames = threads.reduce((sum, thread) => sum + signalFrameSize(thread.xstate.length), 0);
  return Math.ceil((INTERPRETER_ROOM + frames + programSize) / PAGE_SIZE) * PAGE_SIZE;
}

/**
 * Looks for zero bytes at the end of an executable mapping, where the stub fits: the vdso has them on every kernel, since
 * its code does not end at a page's end.
 *
 * @returns the address, or undefined.
 */
export function findSpareBytes(
  pid: number,
  executable: readonly { start: number; end: number }[],
): number | undefined {
  for (const { end } of executable) {
    const tail = Buffer.alloc(STUB_ROOM);
    try {
      readMemory(pid, [{ address: end - STUB_ROOM, length: STUB_ROOM }], tail);
    } catch {
      continue; // unreadable code: try the next mapping
    }
    if (tail.every((byte) => byte === 0)) return end - STUB_ROOM;
  }
  return undefined;
}

const INTERPRETER_ROOM = 512;
const STUB_ROOM = Math.ceil(STUB_SIZE / 16) * 16;

function layOut(target: InjectionTarget): Injection {
  let next = target.hole + INTERPRETER_ROOM;
  const frames = target.threads.map((thread) => {
    const at = next;
    next += signalFrameSize(thread.xstate.length);
    return at;
  });
  const size = workAreaSize(target.threads, target.programSize);
  return { target, address: target.hole, size, code: target.hole, frames, programs: next };
}

function startMapping(injection: Injection): void {
  const leader = leaderOf(injection);
  pokeMemory(leader.tracee.leader, injection.target.spare, stubBytes(leader));
  callThroughStub(injection, SYSCALLS.mmap.nr, [
    injection.address,
    injection.size,
    PROT_READ | PROT_WRITE | PROT_EXEC,
    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
    -1,
    0,
  ]);
}

function finishMapping(injection: Injection): void {
  const { tracee } = leaderOf(injection);
  const result = finishCaughtCall(tracee);
  if (result !== injection.address) {
    restoreThread(leaderOf(injection));
    cleanSpareBytes(injection);
    throw new RepriseError(
      "REMOTE_CALL",
      `cannot make the work area in pid ${tracee.leader}: mmap: ${errnoName(-result)}`,
      {
        pid: tracee.leader,
        syscall: "mmap",
        errno: errnoName(-result),
        hint: "The process may be at its limit of address space (RLIMIT_AS) or of mappings (vm.max_map_count).",
      },
    );
  }
  writeFrames(injection);
  const regs = leaderOf(injection).regs.copy();
  regs
    .set("rip", injection.code + label("stopped"))
    .set("rbp", injection.frames[0] ?? 0)
    .set("orig_rax", -1n);
  tracee.setRegisters(regs);
  cleanSpareBytes(injection);
}

function writeFrames(injection: Injection): void {
  const { threads } = injection.target;
  const head = Buffer.alloc(INTERPRETER_ROOM);
  head.set(interpreter.bytes);
  const frames = threads.map((thread, index) =>
    signalFrame(injection.frames[index] ?? 0, afterDeath(thread), thread.xstate, thread.mask),
  );
  const bytes = Buffer.concat([head, ...frames]);
  writeMemory(
    leaderOf(injection).tracee.leader,
    [{ address: injection.address, length: bytes.length }],
    bytes,
  );
}

/** rt_sigreturn drops the kernel's restart block, so an interrupted sleep is made again. */
function afterDeath(thread: StoppedThread): Registers {
  return repeatedRegisters(thread.regs);
}

function startUnmapping(injection: Injection): void {
  const [leader, ...others] = injection.target.threads;
  for (const thread of others) restoreThread(thread);
  if (leader === undefined) return;
  pokeMemory(leader.tracee.leader, injection.target.spare, stubBytes(leader));
  callThroughStub(injection, SYSCALLS.munmap.nr, [injection.address, injection.size]);
}

function finishUnmapping(injection: Injection): void {
  finishCaughtCall(leaderOf(injection).tracee);
  restoreThread(leaderOf(injection));
  cleanSpareBytes(injection);
}

/** Mask first: until the registers are set, the stub or the frame would set both anyway. */
function restoreThread({ tracee, regs, mask }: StoppedThread): void {
  tracee.setSignalMask(mask);
  tracee.setRegisters(resumedRegisters(regs));
}

function callThroughStub(injection: Injection, nr: number, args: readonly number[]): void {
  const { tracee, regs } = leaderOf(injection);
  const call = regs.copy().set("rip", injection.target.spare).set("rax", nr).set("orig_rax", -1n);
  (["rdi", "rsi", "rdx", "r10", "r8", "r9"] as const).forEach((name, index) =>
    call.set(name, args[index] ?? 0),
  );
  tracee.setRegisters(call);
  tracee.setSignalMask(SIGSET_FULL);
  startCaughtCall(tracee);
}

function stubBytes({ regs, mask }: StoppedThread): Buffer {
  const back = resumedRegisters(regs);
  return assemble(
    stub({
      rax: back.get("rax"),
      rcx: back.get("rcx"),
      rdx: back.get("rdx"),
      rsi: back.get("rsi"),
      rdi: back.get("rdi"),
      r8: back.get("r8"),
      r9: back.get("r9"),
      r10: back.get("r10"),
      r11: back.get("r11"),
      rip: back.get("rip"),
      mask,
    }),
  ).bytes;
}

function cleanSpareBytes(injection: Injection): void {
  pokeMemory(leaderOf(injection).tracee.leader, injection.target.spare, Buffer.alloc(STUB_ROOM));
}

function leaderOf(injection: Injection): StoppedThread {
  return injection.target.threads[0] as StoppedThread;
}
