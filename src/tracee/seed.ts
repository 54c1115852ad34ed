// The seed: a process that is nothing but the interpreter. Restored tasks are its descendants. Its program file is a
// one-page ELF that is written here, into a memfd, mapped where no task of the tree has memory, so that the work area is in
// the same hole in all of them.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { MFD_CLOEXEC, PAGE_SIZE } from "../sys/abi/mman.ts";
import { PTRACE_O_EXITKILL, PTRACE_O_TRACESYSGOOD } from "../sys/abi/ptrace.ts";
import { F_SETFD } from "../sys/abi/fcntl.ts";
import { CLONE_NEWPID, CLONE_PARENT } from "../sys/abi/sched.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { spawnProgram, syscall, trySyscall } from "../sys/ffi.ts";
import { writeMemory, writeU64 } from "../sys/memory.ts";
import { frontPid, isStandIn } from "../sys/front.ts";
import { waitFor } from "../sys/process.ts";
import { assemble, seedEntry, siblingEntry, type Instruction } from "./arch/x86_64/code.ts";
import { interpreter } from "./run.ts";
import { spawnElsewhere } from "./spawn-elsewhere.ts";
import { spawnWithPid } from "./spawn.ts";
import { Tracee, taskDied, type TraceCounters } from "./tracee.ts";

/** Where the seed's own instructions stand in its page of the file. */
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
  return { address, size, code: address, programs: address + PAGE_SIZE };
}

/** A seed that is to become a task itself, as a child of our own parent; or, made in our place, any. */
export interface SeedAs {
  /** @default the kernel's choice */
  readonly pid?: number;
  /** CLONE_NEW… */
  readonly flags: number;
  /** Runs when it is there, for a new user namespace: see SpawnOptions. */
  readonly beforeProgram?: (pid: number) => void;
}

/**
 * Starts the seed and stops it. It dies with the engine.
 *
 * @throws RepriseError SYSCALL, TASK_DIED
 */
export function startSeed(area: WorkArea, counters: TraceCounters, as?: SeedAs): Tracee {
  return start(area, counters, { as, parent: process.pid });
}

/** Starts a seed in another pid namespace, of which `namespace` is open; the user namespace stays. @throws RepriseError */
export function startSeedInPids(
  area: WorkArea,
  counters: TraceCounters,
  namespace: number,
): Tracee {
  const own = openSync("/proc/thread-self/ns/pid", "r");
  try {
    syscall("setns", namespace, CLONE_NEWPID);
    try {
      // Who comes from outside has no number there.
      return start(area, counters, { as: undefined, parent: 0 });
    } finally {
      syscall("setns", own, CLONE_NEWPID);
    }
  } finally {
    closeSync(own);
  }
}

function start(
  area: WorkArea,
  counters: TraceCounters,
  { as, parent }: { readonly as: SeedAs | undefined; readonly parent: number },
): Tracee {
  const name = Buffer.from("reprise-seed\0");
  const fd = syscall("memfd_create", name, MFD_CLOEXEC);
  try {
    const pidfd = as === undefined ? -1 : inheritedPidfd();
    const elf = seedProgram(area, as === undefined ? seedEntry(parent) : siblingEntry(pidfd));
    syscall("write", fd, elf, elf.length);
    const path = `/proc/self/fd/${fd}`;
    const options = { ...as, path, argv: ["reprise-seed"] };
    let seed: Tracee;
    try {
      seed =
        isStandIn() && as !== undefined
          ? elsewhere({ ...options, programFd: fd }, counters)
          : here(options, counters);
    } finally {
      if (pidfd >= 0) trySyscall("close", pidfd);
    }
    try {
      writeInterpreter(seed, area);
      return seed;
    } catch (error) {
      endProcess(seed.tid);
      throw error;
    }
  } finally {
    trySyscall("close", fd);
  }
}

/** Of this process, for a child that executes. */
function inheritedPidfd(): number {
  const pidfd = syscall("pidfd_open", process.pid, 0);
  syscall("fcntl", pidfd, F_SETFD, 0);
  return pidfd;
}

type Start = Partial<SeedAs> & { readonly path: string; readonly argv: readonly string[] };

/** By the engine itself: its child, or as a task a child of its parent. */
function here({ flags, pid, ...options }: Start, counters: TraceCounters): Tracee {
  const { path, argv } = options;
  const made =
    flags === undefined || pid === undefined
      ? spawnProgram(path, argv)
      : spawnWithPid({ ...options, pid, flags: flags + CLONE_PARENT });
  try {
    return takeHold(new Tracee(made, made, counters));
  } catch (error) {
    endProcess(made);
    throw error;
  }
}

/** By the process in whose place the engine works. */
function elsewhere(
  { flags = 0, pid, ...options }: Start & { readonly programFd: number },
  counters: TraceCounters,
): Tracee {
  const maker = { pid: frontPid(), counters, traceOptions: RESTORE_OPTIONS };
  const parent = pid === undefined ? 0 : CLONE_PARENT;
  return spawnElsewhere(maker, { ...options, pid, flags: flags + parent });
}

function takeHold(seed: Tracee): Tracee {
  if (!seed.seize(RESTORE_OPTIONS)) throw taskDied(seed, "is gone");
  seed.interrupt();
  if (seed.waitInterrupted() === undefined) {
    throw new RepriseError("TASK_DIED", "cannot start the seed process: it ended at once", {
      pid: seed.tid,
      hint: "A security module or a limit of the cgroup may forbid new programs from memory (memfd).",
    });
  }
  return seed;
}

function writeInterpreter(seed: Tracee, area: WorkArea): void {
  const range = { address: area.code, length: interpreter.bytes.length };
  writeMemory(seed.tid, [range], interpreter.bytes);
}

/** Ends a process of ours and reaps it. */
export function endProcess(pid: number): void {
  trySyscall("kill", pid, SIGKILL);
  waitFor(pid);
}

/**
 * The program file: one page with the entry, right behind the work area, and the work area itself as memory without a file
 * (a task's executable can be changed only while no page of the old one is mapped).
 */
function seedProgram(area: WorkArea, entry: readonly Instruction[]): Buffer {
  const elf = Buffer.alloc(PAGE_SIZE);
  const text = area.address + area.size;
  elf.write("\x7fELF", 0, "latin1");
  elf.set([2, 1, 1], 4); // 64-bit, little-endian, version 1
  elf.writeUInt16LE(2, 16); // ET_EXEC
  elf.writeUInt16LE(62, 18); // EM_X86_64
  elf.writeUInt32LE(1, 20);
  writeU64(elf, 24, text + ENTRY_AT);
  writeU64(elf, 32, ELF_HEADER_SIZE); // program headers follow
  elf.writeUInt16LE(ELF_HEADER_SIZE, 52);
  elf.writeUInt16LE(PROGRAM_HEADER_SIZE, 54);
  elf.writeUInt16LE(2, 56);
  programHeader(elf, 0, { address: area.address, fileSize: 0, size: area.size });
  programHeader(elf, 1, { address: text, fileSize: PAGE_SIZE, size: PAGE_SIZE });
  elf.set(assemble(entry).bytes, ENTRY_AT);
  return elf;
}

const ELF_HEADER_SIZE = 64;
const PROGRAM_HEADER_SIZE = 56;
const PT_LOAD = 1;
const PF_RWX = 7;

function programHeader(
  elf: Buffer,
  index: number,
  segment: { address: number; fileSize: number; size: number },
): void {
  const at = ELF_HEADER_SIZE + index * PROGRAM_HEADER_SIZE;
  elf.writeUInt32LE(PT_LOAD, at);
  elf.writeUInt32LE(PF_RWX, at + 4);
  writeU64(elf, at + 16, segment.address);
  writeU64(elf, at + 24, segment.address);
  writeU64(elf, at + 32, segment.fileSize);
  writeU64(elf, at + 40, segment.size);
  writeU64(elf, at + 48, PAGE_SIZE);
}
