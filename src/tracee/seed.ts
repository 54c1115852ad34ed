// The seed: a process that is nothing but the interpreter. Restored tasks are its descendants. Its program file is a
// one-page ELF that is written here, into a memfd, mapped where no task of the tree has memory, so that the work area is in
// the same hole in all of them.

import { RepriseError } from "../errors.ts";
import { MFD_CLOEXEC, PAGE_SIZE } from "../sys/abi/mman.ts";
import { PTRACE_O_EXITKILL, PTRACE_O_TRACESYSGOOD } from "../sys/abi/ptrace.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { spawnProgram, syscall, trySyscall } from "../sys/ffi.ts";
import { writeU64 } from "../sys/memory.ts";
import { waitFor } from "../sys/process.ts";
import { assemble, seedEntry } from "./arch/x86_64/code.ts";
import { interpreter } from "./run.ts";
import { Tracee, taskDied, type TraceCounters } from "./tracee.ts";

/** Where the interpreter stands in the seed's page, and where the room for programs begins. */
const INTERPRETER_AT = 256;
const ENTRY_AT = 1024;

/** Options of every task that is being restored: it dies with the engine until it is released. */
export const RESTORE_OPTIONS: number = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;

/** The common work area of a tree that is being restored. */
export interface WorkArea {
  readonly address: number;
  readonly size: number;
  /** Address of the interpreter. */
  readonly code: number;
  /** First address for programs. */
  readonly programs: number;
}

/** Describes the work area at an address. */
export function workAreaAt(address: number, size: number): WorkArea {
  return { address, size, code: address + INTERPRETER_AT, programs: address + PAGE_SIZE };
}

/**
 * Starts the seed and stops it. It dies with the engine.
 *
 * @throws RepriseError SYSCALL, TASK_DIED
 */
export function startSeed(area: WorkArea, counters: TraceCounters): Tracee {
  const name = Buffer.from("reprise-seed\0");
  const fd = syscall("memfd_create", name, MFD_CLOEXEC);
  try {
    const elf = seedProgram(area);
    syscall("write", fd, elf, elf.length);
    const pid = spawnProgram(`/proc/self/fd/${fd}`, ["reprise-seed"]);
    const seed = new Tracee(pid, pid, counters);
    if (!seed.seize(RESTORE_OPTIONS)) throw taskDied(seed, "is gone");
    seed.interrupt();
    if (seed.waitInterrupted() === undefined) {
      throw new RepriseError("TASK_DIED", "cannot start the seed process: it ended at once", {
        pid,
        hint: "A security module or a limit of the cgroup may forbid new programs from memory (memfd).",
      });
    }
    return seed;
  } finally {
    trySyscall("close", fd);
  }
}

/** Ends a process of ours and reaps it. */
export function endProcess(pid: number): void {
  trySyscall("kill", pid, SIGKILL);
  waitFor(pid);
}

function seedProgram(area: WorkArea): Buffer {
  const elf = Buffer.alloc(PAGE_SIZE);
  elf.write("\x7fELF", 0, "latin1");
  elf.set([2, 1, 1], 4); // 64-bit, little-endian, version 1
  elf.writeUInt16LE(2, 16); // ET_EXEC
  elf.writeUInt16LE(62, 18); // EM_X86_64
  elf.writeUInt32LE(1, 20);
  writeU64(elf, 24, area.address + ENTRY_AT);
  writeU64(elf, 32, 64); // program headers follow
  elf.writeUInt16LE(64, 52);
  elf.writeUInt16LE(56, 54);
  elf.writeUInt16LE(1, 56);
  elf.writeUInt32LE(1, 64); // PT_LOAD
  elf.writeUInt32LE(7, 68); // readable, writable, executable
  writeU64(elf, 80, area.address);
  writeU64(elf, 88, area.address);
  writeU64(elf, 96, PAGE_SIZE);
  writeU64(elf, 104, area.size);
  writeU64(elf, 112, PAGE_SIZE);
  elf.set(interpreter.bytes, INTERPRETER_AT);
  elf.set(assemble(seedEntry(process.pid)).bytes, ENTRY_AT);
  return elf;
}
