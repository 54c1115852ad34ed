// Making a process from within another one, which has asked us to work in its place: its child, or with CLONE_PARENT its sibling, is
// born with its session, limits and cgroups. For a moment that process makes system calls for us, as a task does that is dumped.

import { RepriseError } from "../errors.ts";
import { readFdNumbers } from "../proc/fd.ts";
import { readMaps } from "../proc/maps.ts";
import { CLOSE_RANGE_MAX, F_DUPFD, F_GETFD, FD_CLOEXEC, O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { PAGE_SIZE, TASK_SIZE } from "../sys/abi/mman.ts";
import { RLIMIT_NOFILE } from "../sys/abi/sched.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { errnoName } from "../sys/errno.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { writeMemory, writeU64 } from "../sys/memory.ts";
import { waitFor } from "../sys/process.ts";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { addClone } from "./clone.ts";
import {
  cure,
  findSpareBytes,
  inject,
  workAreaSize,
  type Injection,
  type StoppedThread,
} from "./injection.ts";
import { Program } from "./program.ts";
import { label, runCaughtCall, runPrograms } from "./run.ts";
import type { SpawnOptions } from "./spawn.ts";
import { Tracee, taskDied, type TraceCounters } from "./tracee.ts";

/** The process that makes another one for us. */
export interface Maker {
  readonly pid: number;
  readonly counters: TraceCounters;
  /** PTRACE_O_…: of the maker for the moment, and of what it makes. */
  readonly traceOptions: number;
}

/** What is made: without a pid the kernel chooses one. */
export interface ElsewhereOptions extends Omit<SpawnOptions, "pid"> {
  readonly pid?: number | undefined;
  /** Descriptor of ours that `path` leads to, by /proc/self/fd. */
  readonly programFd: number;
}

/**
 * Has `maker` start a program with an empty environment; it inherits every descriptor of ours that is not
 * close-on-exec. The maker, which has one thread, goes on as if nothing had been.
 *
 * @returns the new process, stopped at its program's first instruction
 * @throws RepriseError SYSCALL, REMOTE_CALL, TASK_DIED
 */
export function spawnElsewhere(maker: Maker, options: ElsewhereOptions): Tracee {
  const passed = [...inheritable(), options.programFd];
  const tracee = new Tracee(maker.pid, maker.pid, maker.counters);
  if (!tracee.seize(maker.traceOptions)) throw taskDied(tracee, "is gone");
  try {
    tracee.interrupt();
    if (tracee.waitInterrupted() === undefined) throw taskDied(tracee, "ended");
    const [injection] = inject([target(tracee)]);
    if (injection === undefined) throw new RepriseError("INTERNAL", "internal error: no work area");
    try {
      const { pid, handed } = makeIn(injection, options, passed);
      return become(adopt(pid, maker.counters), injection, { ...options, handed });
    } finally {
      cure([injection]);
    }
  } finally {
    tracee.detach();
  }
}

/** Our descriptors that a program of ours would inherit. */
function inheritable(): number[] {
  return readFdNumbers(process.pid).filter((fd) => {
    const flags = trySyscall("fcntl", fd, F_GETFD, 0);
    return flags >= 0 && (flags & FD_CLOEXEC) === 0;
  });
}

function target(tracee: Tracee): Parameters<typeof inject>[0][number] {
  const thread: StoppedThread = {
    tracee,
    regs: tracee.registers(),
    xstate: tracee.extendedState(),
    mask: tracee.signalMask(),
  };
  const areas = readMaps(tracee.leader).filter(({ end }) => end <= TASK_SIZE);
  const executable = areas
    .filter(({ exec, read }) => exec && read)
    .sort((a, b) => Number(b.path === "[vdso]") - Number(a.path === "[vdso]"));
  const spare = findSpareBytes(tracee.leader, executable);
  if (spare === undefined)
    throw new RepriseError("UNSUPPORTED", `cannot work in pid ${tracee.leader}: no spare room`);
  const size = workAreaSize([thread], PROGRAM_SIZE);
  let hole = LOWEST_HOLE;
  for (const { start, end } of areas) {
    if (start >= hole + size + MARGIN) break;
    hole = Math.max(hole, end + MARGIN);
  }
  return { threads: [thread], spare, hole, programSize: PROGRAM_SIZE };
}

const PROGRAM_SIZE = 16 * PAGE_SIZE;
const LOWEST_HOLE = 0x1000_0000;
/** Distance to other areas, so that nothing that grows comes into ours. */
const MARGIN = 64 * PAGE_SIZE;

/** A descriptor that is to have a number: where the new process has it at first. */
interface Handed {
  readonly at: number;
  readonly number: number;
}

/** The maker fetches our descriptors, makes the process, which gets them, and closes them again. */
function makeIn(
  { target: { threads }, code, programs, frames }: Injection,
  { flags, pid, path }: ElsewhereOptions,
  passed: readonly number[],
): { pid: number; handed: Handed[] } {
  const { tracee } = threads[0] as StoppedThread;
  const program = new Program();
  const engine = program.call("pidfd_open", [process.pid, 0], { label: "reach the engine" });
  const copies = passed.map((fd) =>
    program.call("pidfd_getfd", [engine, fd, 0], { label: `hand over fd ${fd}` }),
  );
  const made = addClone(program, {
    ...(pid === undefined ? {} : { pid }),
    flags,
    what: `a process for ${path}`,
    mayFail: true,
  });
  for (const fd of [engine, ...copies]) program.call("close", [fd]);
  const [result] = runPrograms([{ tracee, program, code, base: programs, frame: frames[0] ?? 0 }]);
  if (result === undefined) throw new RepriseError("INTERNAL", "internal error: no result");
  const child = result.value(made);
  if (child < 0) {
    throw new RepriseError(
      "SYSCALL",
      `cannot make process ${pid ?? ""} in pid ${tracee.leader}: clone3: ${errnoName(-child)}`,
      { pid: tracee.leader, syscall: "clone3", errno: errnoName(-child) },
    );
  }
  const handed = passed.map((number, index) => ({
    number,
    at: result.value(copies[index] as (typeof copies)[number]),
  }));
  return { pid: child, handed };
}

/** Waits for the first stop of the new process. */
function adopt(pid: number, counters: TraceCounters): Tracee {
  const child = new Tracee(pid, pid, counters);
  if (child.waitInterrupted() === undefined) throw taskDied(child, "ended as soon as it was made");
  return child;
}

/** The new process, which still is a copy of its maker, becomes the program. */
function become(
  child: Tracee,
  injection: Injection,
  options: ElsewhereOptions & { readonly handed: readonly Handed[] },
): Tracee {
  try {
    options.beforeProgram?.(child.tid);
    const program = new Program();
    if (options.beforeProgram !== undefined) {
      // In a new user namespace nobody is root before the maps of ids are written, and execve would take its capabilities.
      program.call("setresgid", [0, 0, 0], { label: "become root of the user namespace" });
      program.call("setresuid", [0, 0, 0], { label: "become root of the user namespace" });
    }
    addDescriptors(program, injection.target.threads[0]?.tracee.leader ?? 0, options);
    const { code, programs: base } = injection;
    runPrograms([{ tracee: child, program, code, base, frame: 0 }]);
    execute(child, injection, options);
    return child;
  } catch (error) {
    trySyscall("kill", child.tid, SIGKILL);
    waitFor(child.tid);
    throw error;
  }
}

/** What was handed over to its own numbers, nothing else, and as many more as may be. */
function addDescriptors(
  program: Program,
  maker: number,
  { handed, programFd }: { readonly handed: readonly Handed[]; readonly programFd: number },
): void {
  program.call("prlimit64", [0, RLIMIT_NOFILE, program.data(fileLimit(maker)), 0], {
    label: "raise the limit on open files",
  });
  const above = 1 + Math.max(...handed.flatMap(({ at, number }) => [at, number]));
  const kept = handed.map(({ at, number }) =>
    program.call("fcntl", [at, F_DUPFD, above], { label: `keep fd ${number}` }),
  );
  program.call("close_range", [0, above - 1, 0], { label: "close what the maker has" });
  handed.forEach(({ number }, index) => {
    const flags = number === programFd ? O_CLOEXEC : 0;
    program.call("dup3", [kept[index] as (typeof kept)[number], number, flags], {
      label: `place fd ${number}`,
    });
  });
  program.call("close_range", [above, CLOSE_RANGE_MAX, 0], { label: "close the copies" });
}

/** struct rlimit of a process's open files with the hard limit in both words. */
export function fileLimit(pid: number): Buffer {
  const limit = Buffer.alloc(16);
  syscall("prlimit64", pid, RLIMIT_NOFILE, 0, limit);
  limit.copy(limit, 0, 8);
  return limit;
}

function execute(child: Tracee, { programs, code }: Injection, options: ElsewhereOptions): void {
  const texts = [options.path, ...options.argv].map((text) => Buffer.from(`${text}\0`));
  const pointers = Buffer.alloc((options.argv.length + 2) * 8);
  let at = programs + pointers.length;
  const places = texts.map((text) => (at += text.length) - text.length);
  places.slice(1).forEach((place, index) => writeU64(pointers, index * 8, place));
  const bytes = Buffer.concat([pointers, ...texts]);
  writeMemory(child.leader, [{ address: programs, length: bytes.length }], bytes);
  const environment = programs + pointers.length - 8;
  const result = runCaughtCall(child, code + label("sigreturn"), {
    nr: SYSCALLS.execve.nr,
    args: [places[0] ?? 0, programs, environment],
  });
  if (result === 0) return;
  throw new RepriseError("SYSCALL", `cannot start ${options.path}: execve: ${errnoName(-result)}`, {
    pid: child.tid,
    syscall: "execve",
    errno: errnoName(-result),
  });
}
