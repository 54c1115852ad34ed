// The work area: memory of our own inside a process that is being dumped, made and removed without leaving a trace and
// without a moment at which the engine's death would harm the process.
//
// 1. A stub is put into the spare end of the vdso's last page (no page of the program's own is changed), and the leader
//    pointed at it: one mmap, caught at its exit. If the engine dies here, the stub itself removes the area again and puts
//    mask and registers right.
// 2. The interpreter and a signal frame for every thread go into the area; the leader is pointed at the interpreter's
//    signal-return. If the engine dies from here on, the frames put the threads right: the frame of a lone thread leads into
//    the stub, which removes the area, too. With several threads nobody knows when the last one has left it: it stays.
// 3. At the end the threads get their registers back, and the leader unmaps the area through the stub.
//
// A thread under Syscall User Dispatch has a byte that says whether its calls are let through. Where they are not, our code changes it before
// its first call and puts it right after its last one: plain stores, no calls, so whoever dies when, they are done. A leader's are in its
// stub, those of others in relays beside the interpreter.
//
// A stub that a dead engine left in the spare bytes runs no more; the next one is written over it.

import { RepriseError } from "../errors.ts";
import { EACCES, errnoName } from "../sys/errno.ts";
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
import { MemoryPoker, readMemory } from "../sys/memory.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { SYSCALL_DISPATCH_FILTER_BLOCK } from "../sys/abi/sched.ts";
import {
  allowingRelay,
  assemble,
  blockingRelay,
  DISPATCHED_STUB_SIZE,
  isStub,
  NO_RETURN,
  stub,
  STUB_SIZE,
  STUB_UNDO,
  type StubOptions,
} from "./arch/x86_64/code.ts";
import { repeatedRegisters, resumedRegisters, type Registers } from "./arch/x86_64/registers.ts";
import { putSignalFrame, signalFrameSize } from "./arch/x86_64/sigframe.ts";
import { finishCaughtCall, interpreter, label, startCaughtCall } from "./run.ts";
import type { DispatchConfiguration, Tracee } from "./tracee.ts";

/** A stopped thread and what it had when it was stopped. */
export interface StoppedThread {
  readonly tracee: Tracee;
  readonly regs: Registers;
  readonly xstate: Buffer;
  readonly mask: bigint;
  /** Syscall User Dispatch, where it is on. */
  readonly dispatch?: DispatchConfiguration;
  /** Address of the byte by which that sends our calls to the program; undefined where it lets them through. */
  readonly selector?: number;
}

/** A process to inject into. */
export interface InjectionTarget {
  /** The leader first. */
  readonly threads: readonly StoppedThread[];
  /** Address of unused bytes for the stub at the end of an executable mapping: see `findSpareBytes`. */
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
  /** Of each thread whose calls are not let through: where it enters the interpreter, and where it goes back. */
  readonly relays: readonly (Relay | undefined)[];
  readonly programs: number;
  /** The process's memory, for the stub. */
  readonly memory: MemoryPoker;
}

interface Relay {
  readonly enter: number;
  readonly leave: number;
}

/** Makes the work areas of all targets, working on all at the same time. */
export function inject(targets: readonly InjectionTarget[]): Injection[] {
  const injections = targets.map(layOut);
  try {
    injections.forEach(startMapping);
    injections.forEach(finishMapping);
    return injections;
  } catch (error) {
    closeMemories(injections);
    throw error;
  }
}

/**
 * Gives all threads their own state back and removes the work areas. Afterwards the threads stand in their stops, to be
 * detached.
 */
export function cure(injections: readonly Injection[]): void {
  try {
    injections.forEach(startUnmapping);
    injections.forEach(finishUnmapping);
  } finally {
    closeMemories(injections);
  }
}

function closeMemories(injections: readonly Injection[]): void {
  for (const { memory } of injections) memory.close();
}

/** Size of the room that a work area needs. */
export function workAreaSize(threads: readonly StoppedThread[], programSize: number): number {
  const frames = threads.reduce(
    (sum, { xstate, selector }) =>
      sum + signalFrameSize(xstate.length) + (selector === undefined ? 0 : RELAY_ROOM),
    0,
  );
  return pagesOf(INTERPRETER_ROOM + frames) + pagesOf(programSize);
}

function pagesOf(bytes: number): number {
  return Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE;
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
  leader: Pick<StoppedThread, "selector"> = {},
): number | undefined {
  const room = stubRoom(leader);
  for (const { end } of executable) {
    const tail = bytesAt(pid, end - room, room);
    if (tail === undefined) continue;
    if (tail.every((byte) => byte === 0) || isStub(tail)) return end - room;
  }
  return undefined;
}

/**
 * Code of ours in a process that an engine left when it died. Who stands in it is on the way back into its own code, or stopped on that
 * way until somebody continues it. The process stands still: most of its threads stand in the same few pages.
 */
export class LeftCode {
  readonly #pid: number;
  /** Of pages: what of ours is in them, by where it begins. */
  readonly #pages = new Map<number, readonly number[]>();

  constructor(pid: number) {
    this.#pid = pid;
  }

  /** Whether an instruction is part of it. */
  holds(rip: number): boolean {
    const page = Math.floor(rip / PAGE_SIZE) * PAGE_SIZE;
    const begins = this.#pages.get(page) ?? this.#look(page);
    this.#pages.set(page, begins);
    return begins.some((begin) => rip >= begin);
  }

  #look(page: number): number[] {
    const head = bytesAt(this.#pid, page, interpreter.bytes.length);
    if (head?.equals(interpreter.bytes) === true) return [page];
    return [STUB_ROOM, DISPATCHED_STUB_ROOM]
      .map((room) => ({ at: page + PAGE_SIZE - room, room }))
      .filter(({ at, room }) => isStub(bytesAt(this.#pid, at, room) ?? Buffer.alloc(room)))
      .map(({ at }) => at);
  }
}

function bytesAt(pid: number, address: number, length: number): Buffer | undefined {
  const bytes = Buffer.alloc(length);
  try {
    readMemory(pid, [{ address, length }], bytes);
    return bytes;
  } catch {
    return undefined; // code that cannot be read is not ours
  }
}

const INTERPRETER_ROOM = 512;
const STUB_ROOM = Math.ceil(STUB_SIZE / 16) * 16;
const DISPATCHED_STUB_ROOM = Math.ceil(DISPATCHED_STUB_SIZE / 16) * 16;
/** Both ways of a thread's relay. */
const RELAY_ROOM = 128;
const RELAY_BACK = 64;

function stubRoom({ selector }: Pick<StoppedThread, "selector">): number {
  return selector === undefined ? STUB_ROOM : DISPATCHED_STUB_ROOM;
}

function layOut(target: InjectionTarget): Injection {
  let next = target.hole + INTERPRETER_ROOM;
  const frames = target.threads.map((thread) => {
    const at = next;
    next += signalFrameSize(thread.xstate.length);
    return at;
  });
  const relays = target.threads.map(({ selector }) => {
    if (selector === undefined) return undefined;
    const enter = next;
    next += RELAY_ROOM;
    return { enter, leave: enter + RELAY_BACK };
  });
  const programs = Math.ceil(next / PAGE_SIZE) * PAGE_SIZE;
  const size = workAreaSize(target.threads, target.programSize);
  const memory = new MemoryPoker((target.threads[0] as StoppedThread).tracee.leader);
  return {
    target,
    address: target.hole,
    size,
    code: target.hole,
    frames,
    relays,
    programs,
    memory,
  };
}

function startMapping(injection: Injection): void {
  pokeStub(injection, resumedRegisters);
  pointAtStub(
    injection,
    { rip: injection.target.spare, nr: SYSCALLS.mmap.nr },
    mapArguments(injection, PROT_READ | PROT_WRITE | PROT_EXEC),
  );
  startCaughtCall(leaderOf(injection).tracee);
}

function mapArguments({ address, size }: Injection, protection: number): readonly number[] {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  return [address, size, protection, flags, -1, 0];
}

/**
 * For a process that has forbidden itself memory which is writable and executable (PR_SET_MDWE): the area becomes executable, and
 * but for the code in it, which a tracer may write nevertheless, writable instead.
 *
 * @returns the area's address, or an error.
 */
function mapInTwoSteps(injection: Injection): number {
  const { tracee } = leaderOf(injection);
  const { address, size, programs, target } = injection;
  pointAtStub(
    injection,
    { rip: target.spare, nr: SYSCALLS.mmap.nr },
    mapArguments(injection, PROT_READ | PROT_EXEC),
  );
  startCaughtCall(tracee);
  const mapped = finishCaughtCall(tracee);
  if (mapped !== address) return mapped;
  pokeStub(injection, resumedRegisters, { call: "other" });
  pointAtStub(injection, { rip: target.spare, nr: SYSCALLS.mprotect.nr }, [
    programs,
    address + size - programs,
    PROT_READ | PROT_WRITE,
  ]);
  startCaughtCall(tracee);
  const protectedNow = finishCaughtCall(tracee);
  if (protectedNow === 0) return address;
  pointAtStub(injection, { rip: target.spare + stubLabel(injection, "undo"), nr: 0 }, []);
  startCaughtCall(tracee);
  finishCaughtCall(tracee);
  return protectedNow;
}

function finishMapping(injection: Injection): void {
  const { tracee } = leaderOf(injection);
  let result = finishCaughtCall(tracee);
  if (result === -EACCES) result = mapInTwoSteps(injection);
  if (result !== injection.address) {
    restoreThread(injection, 0);
    cleanSpareBytes(injection);
    throw new RepriseError(
      "REMOTE_CALL",
      `cannot make the work area in pid ${tracee.leader}: mmap: ${errnoName(-result)}`,
      {
        pid: tracee.leader,
        syscall: "mmap",
        errno: errnoName(-result),
        hint: "The process may be at its limit of address space or data (RLIMIT_AS, RLIMIT_DATA; prlimit --pid shows and raises them) or of mappings (vm.max_map_count).",
      },
    );
  }
  writeFrames(injection);
  if (leavesThroughStub(injection)) pokeStub(injection, afterSignalReturn);
  const regs = leaderOf(injection).regs.copy();
  regs
    .set("rip", injection.code + label("stopped"))
    .set("rbp", injection.frames[0] ?? 0)
    .set("orig_rax", -1n);
  tracee.setRegisters(regs);
}

function writeFrames(injection: Injection): void {
  const { threads, hole, spare } = injection.target;
  const sizes = threads.map(({ xstate }) => signalFrameSize(xstate.length));
  const last = injection.relays.findLast((relay) => relay !== undefined);
  const framesSize = sizes.reduce((sum, size) => sum + size, INTERPRETER_ROOM);
  const all = Buffer.alloc(last === undefined ? framesSize : last.enter + RELAY_ROOM - hole);
  all.set(interpreter.bytes);
  const isLone = leavesThroughStub(injection);
  threads.forEach(({ regs: own, xstate, mask, selector }, index) => {
    const address = injection.frames[index] ?? 0;
    const from = address - hole;
    const regs = afterSignalReturn(own);
    // The stub sets the mask, and what the frame has in the registers that the stub changes.
    const relay = injection.relays[index];
    if (isLone) regs.set("rip", spare + stubLabel(injection, "undo"));
    else if (relay !== undefined) regs.set("rip", relay.leave);
    putSignalFrame(all.subarray(from, from + (sizes[index] ?? 0)), {
      address,
      regs,
      xstate,
      mask: isLone ? SIGSET_FULL : mask,
    });
    if (relay === undefined || selector === undefined) return;
    all.set(assemble(allowingRelay(selector, injection.code)).bytes, relay.enter - hole);
    all.set(assemble(wayBack(own, selector)).bytes, relay.leave - hole);
  });
  injection.memory.poke(injection.address, all);
}

/** Where a thread under Syscall User Dispatch goes after its signal-return, which has given it all other registers. */
function wayBack(own: Registers, selector: number): ReturnType<typeof blockingRelay> {
  const regs = afterSignalReturn(own);
  return blockingRelay(selector, { rax: regs.get("rax"), rip: regs.get("rip") });
}

/** rt_sigreturn drops the kernel's restart block, so an interrupted sleep is made again. */
const afterSignalReturn: StubEnd = repeatedRegisters;

/** A lone thread takes the area away after the engine's death; with others in it that cannot be. */
function leavesThroughStub({ target }: Injection): boolean {
  return target.threads.length === 1;
}

function startUnmapping(injection: Injection): void {
  const [leader, ...others] = injection.target.threads;
  others.forEach((_thread, index) => restoreThread(injection, index + 1));
  if (leader === undefined) return;
  // The stub loads the arguments itself. The order matters: only now it is not reached by signal-return any more.
  pointAtStub(injection, { rip: injection.target.spare + stubLabel(injection, "undo"), nr: 0 }, []);
  pokeStub(injection, resumedRegisters);
  startCaughtCall(leader.tracee);
}

function finishUnmapping(injection: Injection): void {
  finishCaughtCall(leaderOf(injection).tracee);
  restoreThread(injection, 0);
  cleanSpareBytes(injection);
}

/**
 * Mask first: until the registers are set, the stub or the frame would set both anyway. A call that the stop has interrupted is left to
 * the kernel, which decides when the thread is let go: a signal that has come meanwhile may end it.
 */
function restoreThread(injection: Injection, index: number): void {
  const { tracee, regs, mask, selector } = injection.target.threads[index] as StoppedThread;
  tracee.setSignalMask(mask);
  if (selector !== undefined) blockCalls(injection, index, selector);
  tracee.setRegisters(regs);
}

/**
 * Has calls of a thread sent to its program again. First it is put to where it would block them itself and then make none: should the
 * engine die here, it does.
 */
function blockCalls(injection: Injection, index: number, selector: number): void {
  const { tracee, regs } = injection.target.threads[index] as StoppedThread;
  const leave = injection.relays[index]?.leave ?? 0;
  const place =
    index === 0
      ? ({ rip: injection.target.spare + stubLabel(injection, "block"), by: "rcx" } as const)
      : ({ rip: leave + relayLabel("block"), by: "rax" } as const);
  const there = regs.copy().set("rip", place.rip).set(place.by, selector).set("orig_rax", -1n);
  tracee.setRegisters(there);
  injection.memory.poke(selector, Buffer.of(SYSCALL_DISPATCH_FILTER_BLOCK));
}

function relayLabel(name: "block"): number {
  return assemble(blockingRelay(0, { rax: 0n, rip: 0n })).labels[name] ?? 0;
}

/** Offset of a label in the stub of a leader. */
function stubLabel(injection: Injection, name: "undo" | "block"): number {
  const { selector } = leaderOf(injection);
  return selector === undefined && name === "undo"
    ? STUB_UNDO
    : (assemble(stub(NO_RETURN, { selector })).labels[name] ?? 0);
}

function pointAtStub(
  injection: Injection,
  { rip, nr }: { readonly rip: number; readonly nr: number },
  args: readonly number[],
): void {
  const { tracee, regs } = leaderOf(injection);
  const call = regs.copy().set("rip", rip).set("rax", nr).set("orig_rax", -1n);
  (["rdi", "rsi", "rdx", "r10", "r8", "r9"] as const).forEach((name, index) =>
    call.set(name, args[index] ?? 0),
  );
  tracee.setRegisters(call);
  tracee.setSignalMask(SIGSET_FULL);
}

/** With which registers the stub sends the leader back: those of a task that kept its restart block, or lost it. */
type StubEnd = typeof resumedRegisters | typeof repeatedRegisters;

function pokeStub(
  injection: Injection,
  end: StubEnd,
  options: Pick<StubOptions, "call"> = {},
): void {
  const { regs, mask } = leaderOf(injection);
  const back = end(regs);
  const { bytes } = assemble(
    stub(
      {
        area: injection,
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
      },
      { ...options, selector: leaderOf(injection).selector },
    ),
  );
  injection.memory.poke(injection.target.spare, bytes);
}

function cleanSpareBytes(injection: Injection): void {
  injection.memory.poke(injection.target.spare, Buffer.alloc(stubRoom(leaderOf(injection))));
}

function leaderOf(injection: Injection): StoppedThread {
  return injection.target.threads[0] as StoppedThread;
}
