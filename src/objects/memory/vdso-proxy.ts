// A task that comes from a kernel with another vdso keeps the old code in its place, because addresses of functions in it are
// in its registers and tables. The beginning of each function is overwritten with a jump into the running kernel's vdso, which
// is mapped elsewhere; the old data pages are zero, so that a thread that was inside an old function falls back to the system
// call (clock mode 0 is "none").
//
// The running kernel's vdso then carries a mark in its first bytes that says where the old one is, so that the next dump saves
// the old one and leaves the other out. The mark is CRIU's (format.md), so either engine dumps what the other has restored.

import { RepriseError } from "../../errors.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import type { SmapsVma } from "../../proc/smaps.ts";
import * as mm from "../../sys/abi/mman.ts";
import { ARCH_MAP_VDSO_64 } from "../../sys/abi/sched.ts";
import { readMemory, readU64, writeU64, IOVEC_SIZE } from "../../sys/memory.ts";
import { SYSCALLS } from "../../sys/syscalls.x86_64.ts";
import { jumpTo, systemCall, TRAMPOLINE_SIZE } from "../../tracee/arch/x86_64/trampoline.ts";
import type { Program } from "../../tracee/program.ts";
import type { VdsoLayout } from "./vdso.ts";
import { readVdsoSymbols } from "./vdso-symbols.ts";

/** How a task gets an old vdso with a way into the running kernel's. */
export interface VdsoProxy {
  readonly saved: VdsoLayout;
  /** The old code with the jumps in it. */
  readonly code: Buffer;
  /** Where the running kernel's vdso goes. */
  readonly runtime: VdsoLayout;
}

/** A proxied vdso that a dump has found: start addresses. */
export interface MarkedVdso {
  readonly oldVdso: number;
  readonly oldVvar: number;
  readonly runtimeVvar: number;
}

/** What each function does as a system call. */
const SYSTEM_CALLS: Readonly<Record<string, number>> = {
  __vdso_clock_gettime: SYSCALLS.clock_gettime.nr,
  __vdso_gettimeofday: SYSCALLS.gettimeofday.nr,
  __vdso_time: SYSCALLS.time.nr,
  __vdso_getcpu: SYSCALLS.getcpu.nr,
  __vdso_clock_getres: SYSCALLS.clock_getres.nr,
  __vdso_getrandom: SYSCALLS.getrandom.nr,
};

/**
 * The functions that get a jump. The others become system calls: CRIU knows only these, so that a jump from another one would
 * lead into nothing when CRIU has restored the task in its turn.
 */
const JUMPING: ReadonlySet<string> = new Set([
  "__vdso_clock_gettime",
  "__vdso_gettimeofday",
  "__vdso_time",
  "__vdso_getcpu",
]);

/**
 * Plans the jumps from a saved vdso into the running kernel's.
 *
 * @throws RepriseError BAD_IMAGE when the saved code cannot be understood.
 */
export function planProxy(
  pid: number,
  saved: { readonly layout: VdsoLayout; readonly code: Buffer; readonly vmas: readonly VmaEntry[] },
  kernel: { readonly layout: VdsoLayout; readonly code: Buffer },
): VdsoProxy {
  const from = readVdsoSymbols(saved.code);
  if (from === undefined) {
    throw new RepriseError("BAD_IMAGE", `cannot restore pid ${pid}: its vdso has no functions`, {
      pid,
      hint: "It was saved on another kernel, and the code of that kernel's vdso is not in the images.",
    });
  }
  const to = readVdsoSymbols(kernel.code) ?? new Map<string, number>();
  const size = kernel.layout.vvarSize + kernel.layout.vdsoSize;
  const runtime = { ...kernel.layout, address: highestHole(saved.vmas, size) };
  const code = Buffer.from(saved.code);
  for (const [name, offset] of from) {
    const target = JUMPING.has(name) ? to.get(name) : undefined;
    const fallback = SYSTEM_CALLS[name];
    if (offset + TRAMPOLINE_SIZE > code.length) continue;
    if (target !== undefined) code.set(jumpTo(runtime.address + runtime.vvarSize + target), offset);
    else if (fallback !== undefined) code.set(systemCall(fallback), offset);
  }
  return { saved: saved.layout, code, runtime };
}

/** Adds the calls that put the old code in its place and the running kernel's where the jumps lead to. */
export function restoreProxy(program: Program, { saved, code, runtime }: VdsoProxy): void {
  const label = "map the vdso of the saved kernel";
  const flags = mm.MAP_PRIVATE | mm.MAP_ANONYMOUS | mm.MAP_FIXED_NOREPLACE;
  const start = saved.address + saved.vvarSize;
  if (saved.vvarSize > 0)
    program.call("mmap", [saved.address, saved.vvarSize, mm.PROT_READ, flags, -1, 0], { label });
  const writable = mm.PROT_READ | mm.PROT_WRITE;
  const executable = mm.PROT_READ | mm.PROT_EXEC;
  program.call("mmap", [start, saved.vdsoSize, writable, flags, -1, 0], { label });
  write(program, start, code);
  program.call("mprotect", [start, saved.vdsoSize, executable], { label });

  program.call("arch_prctl", [ARCH_MAP_VDSO_64, runtime.address], {
    label: "map the vdso",
    hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE for ARCH_MAP_VDSO_64.",
  });
  const vdso = runtime.address + runtime.vvarSize;
  program.call("mprotect", [vdso, runtime.vdsoSize, writable], { label: "mark the vdso" });
  const mark = { oldVdso: start, oldVvar: saved.address, runtimeVvar: runtime.address };
  write(program, vdso, encodeMark(saved.vvarSize > 0 ? mark : { ...mark, oldVvar: NO_ADDRESS }));
  program.call("mprotect", [vdso, runtime.vdsoSize, executable], { label: "mark the vdso" });
}

/** Looks for the mark of a proxied vdso in a task. */
export function findMark(pid: number, areas: readonly SmapsVma[]): MarkedVdso | undefined {
  const vdso = areas.find(({ path }) => path === "[vdso]");
  if (vdso === undefined) return undefined;
  const bytes = Buffer.alloc(MARK_SIZE);
  readMemory(pid, [{ address: vdso.start, length: MARK_SIZE }], bytes);
  if (bytes.toString("latin1", 0, SIGNATURE.length) !== SIGNATURE) return undefined;
  return {
    oldVdso: readU64(bytes, MARK_OLD_VDSO),
    oldVvar: readU64(bytes, MARK_OLD_VVAR),
    runtimeVvar: readU64(bytes, MARK_RUNTIME_VVAR),
  };
}

/** Memory that is shared with nobody, so that it may be written to from inside. */
function write(program: Program, address: number, bytes: Buffer): void {
  const own = Buffer.alloc(IOVEC_SIZE);
  writeU64(own, 8, bytes.length);
  const target = Buffer.alloc(IOVEC_SIZE);
  writeU64(target, 0, address);
  writeU64(target, 8, bytes.length);
  const self = program.call("getpid", []);
  const from = program.structure(own, { 0: program.data(bytes) });
  program.call("process_vm_writev", [self, from, 1, program.data(target), 1, 0], {
    label: "write the code of the vdso",
    expect: bytes.length,
  });
}

/** The mark: signature, old vdso, version, old vvar, running kernel's vvar. */
const SIGNATURE = "CRIUvDSO";
const VERSION = 3;
const MARK_SIZE = 40;
const MARK_OLD_VDSO = 8;
const MARK_VERSION = 16;
const MARK_OLD_VVAR = 24;
const MARK_RUNTIME_VVAR = 32;
/** What the mark holds where there is no old vvar: all bits set. */
const NO_ADDRESS = -1;

function encodeMark({ oldVdso, oldVvar, runtimeVvar }: MarkedVdso): Buffer {
  const bytes = Buffer.alloc(MARK_SIZE);
  bytes.write(SIGNATURE, "latin1");
  writeU64(bytes, MARK_OLD_VDSO, oldVdso);
  writeU64(bytes, MARK_VERSION, VERSION);
  bytes.writeBigInt64LE(BigInt(oldVvar), MARK_OLD_VVAR);
  writeU64(bytes, MARK_RUNTIME_VVAR, runtimeVvar);
  return bytes;
}

/** Distance to other areas, so that no stack grows into the vdso. */
const MARGIN = 64 * mm.PAGE_SIZE;

/** The highest range that is free in a saved task: far from the low one that a restore works in. */
function highestHole(vmas: readonly VmaEntry[], size: number): number {
  const used = vmas.filter(({ end }) => end <= mm.TASK_SIZE).sort((a, b) => b.start - a.start);
  let to = mm.TASK_SIZE;
  for (const { start, end } of used) {
    if (to - end >= size + 2 * MARGIN) break;
    to = Math.min(to, start);
  }
  return to - MARGIN - size;
}
