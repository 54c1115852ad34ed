// Runs remote programs for tests: in a running process, which is stopped, injected into, and let go as it was; or in a
// fresh seed process, where calls that rebuild a task can be tried without harm.

import { readdirSync } from "node:fs";
import { readSmaps } from "../../src/proc/smaps.ts";
import { PTRACE_O_TRACESYSGOOD } from "../../src/sys/abi/ptrace.ts";
import { cure, findSpareBytes, inject } from "../../src/tracee/injection.ts";
import { Program, type ProgramResult } from "../../src/tracee/program.ts";
import { runPrograms } from "../../src/tracee/run.ts";
import { endProcess, startSeed, workAreaAt } from "../../src/tracee/seed.ts";
import { Tracee } from "../../src/tracee/tracee.ts";

/** Where no test program has memory. */
const HOLE = 0x1000_0000;
const PROGRAM_SIZE = 1 << 20;

/** A stopped process in which programs can be run. */
export interface ProbedProcess {
  readonly pid: number;
  /** The leader first; all are stopped. */
  readonly threads: readonly Tracee[];
  /**
   * Builds a program, runs it in a thread (the leader unless told), and returns what the read function makes of it.
   */
  run<T>(build: (program: Program) => (result: ProgramResult) => T, thread?: Tracee): T;
}

/** Stops all threads of a process, makes a work area in it, and lets it go on unchanged when `look` is through. */
export function probeProcess<T>(pid: number, look: (probed: ProbedProcess) => T): T {
  const threads = stopThreads(pid);
  try {
    const [leader] = threads;
    if (leader === undefined) throw new Error(`pid ${pid} has no threads`);
    const stopped = threads.map((tracee) => ({
      tracee,
      regs: tracee.registers(),
      xstate: tracee.extendedState(),
      mask: tracee.signalMask(),
    }));
    const vdso = readSmaps(pid).filter(({ path }) => path === "[vdso]");
    const spare = findSpareBytes(pid, vdso);
    if (spare === undefined) throw new Error("the vdso has no spare bytes");
    const injections = inject([{ threads: stopped, spare, hole: HOLE, programSize: PROGRAM_SIZE }]);
    try {
      const [injection] = injections;
      return look({
        pid,
        threads,
        run: (build, thread = leader) => {
          const frame = injection?.frames[threads.indexOf(thread)] ?? 0;
          const program = new Program();
          const read = build(program);
          const code = injection?.code ?? 0;
          const base = injection?.programs ?? 0;
          return read(runOne({ tracee: thread, program, code, base, frame }));
        },
      });
    } finally {
      cure(injections);
    }
  } finally {
    for (const tracee of threads) tracee.detach();
  }
}

/** Starts a seed process, and ends it when `use` is through (waits for what it returns). */
export function withSeed<T>(use: (seed: ProbedProcess) => T): T {
  const area = workAreaAt(HOLE, PROGRAM_SIZE);
  const seed = startSeed(area, { stops: 0, remoteCalls: 0 });
  const end = (): void => endProcess(seed.leader);
  let result: T;
  try {
    result = use({
      pid: seed.leader,
      threads: [seed],
      run: (build) => {
        const program = new Program();
        const read = build(program);
        return read(
          runOne({ tracee: seed, program, code: area.code, base: area.programs, frame: 0 }),
        );
      },
    });
  } catch (error) {
    end();
    throw error;
  }
  if (result instanceof Promise) return result.finally(end) as T;
  end();
  return result;
}

function stopThreads(pid: number): Tracee[] {
  const counters = { stops: 0, remoteCalls: 0 };
  const tids = readdirSync(`/proc/${pid}/task`).map(Number);
  const threads = tids
    .sort((a, b) => Number(b === pid) - Number(a === pid))
    .map((tid) => new Tracee(tid, pid, counters));
  for (const tracee of threads) {
    tracee.seize(PTRACE_O_TRACESYSGOOD);
    tracee.interrupt();
    tracee.waitInterrupted();
  }
  return threads;
}

function runOne(job: Parameters<typeof runPrograms>[0][number]): ProgramResult {
  const [result] = runPrograms([job]);
  return result as ProgramResult;
}
