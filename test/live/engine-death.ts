// Kills the engine in the middle of its work: after a time, or right before the n-th of those system calls by which it acts
// upon other processes (then the engine itself is traced). See engine-child.ts.

import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { build } from "esbuild";
import { afterAll, beforeAll } from "vitest";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { PTRACE_O_EXITKILL, PTRACE_O_TRACESYSGOOD } from "../../src/sys/abi/ptrace.ts";
import { SIGCONT, SIGKILL } from "../../src/sys/abi/signal.ts";
import { spawnProgram } from "../../src/sys/ffi.ts";
import { sendSignal, waitFor } from "../../src/sys/process.ts";
import { SYSCALLS } from "../../src/sys/syscalls.x86_64.ts";
import { Tracee } from "../../src/tracee/tracee.ts";
import { waitStatus, type WaitStatus } from "../../src/tracee/wait-status.ts";
import type { EngineOrder } from "./engine-child.ts";

const ROOT = join(import.meta.dirname, "../..");
/** The engine as `useEngineBundle` makes it. */
export const BUNDLE: string = join(ROOT, `build/engine-child-${process.pid}.cjs`);

/** When the engine dies: after some time of work, or before a call (counted from 1). */
export type Moment =
  | { readonly afterMs: number }
  | { readonly beforeCall: number; readonly waitMs: number };

/** How the engine ended: killed, or by itself before its moment came. */
export interface EngineEnd {
  readonly killed: boolean;
  readonly exitCode: number | undefined;
  /** From the beginning of the work to the end. */
  readonly ms: number;
  /** Calls that acted upon other processes, when they were counted. */
  readonly calls: number;
}

/** Bundles the engine for the tests of a file, so that it starts quickly. */
export function useEngineBundle(): void {
  beforeAll(bundleEngine);
  afterAll(() => rmSync(BUNDLE, { force: true }));
}

async function bundleEngine(): Promise<void> {
  mkdirSync(join(ROOT, "build"), { recursive: true });
  await build({
    entryPoints: [join(import.meta.dirname, "engine-child.ts")],
    bundle: true,
    platform: "node",
    target: "node20",
    format: "cjs",
    external: ["koffi"],
    define: { "import.meta.url": "moduleUrl" },
    banner: { js: 'const moduleUrl = "file://" + __filename;' },
    logLevel: "warning",
    outfile: BUNDLE,
  });
}

/** Runs the engine until its moment. Without one it runs to its end, and its calls are counted. */
export async function runEngine(order: EngineOrder, moment?: Moment): Promise<EngineEnd> {
  const pid = spawnProgram(process.execPath, ["node", BUNDLE, JSON.stringify(order)]);
  for (let ms = 0; readStatIfAlive(pid)?.state !== "T"; ms++) {
    if (ms > 20_000 || readStatIfAlive(pid)?.state === "Z")
      throw new Error("the engine does not start");
    await sleep(1);
  }
  return moment !== undefined && "afterMs" in moment
    ? killAfter(pid, moment.afterMs)
    : killBefore(pid, moment ?? { beforeCall: Infinity, waitMs: 0 });
}

function killAfter(pid: number, afterMs: number): EngineEnd {
  const begun = performance.now();
  sendSignal(pid, SIGCONT);
  spin(begun + afterMs);
  sendSignal(pid, SIGKILL);
  return endOf(waitUntilEnded(pid), { begun, calls: 0 });
}

function killBefore(pid: number, moment: { beforeCall: number; waitMs: number }): EngineEnd {
  const tracee = new Tracee(pid, pid, { stops: 0, remoteCalls: 0 });
  tracee.seize(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  tracee.interrupt();
  const begun = performance.now();
  sendSignal(pid, SIGCONT);
  let calls = 0;
  for (let entering = true; ;) {
    const status = tracee.wait();
    if (status.kind === "exited" || status.kind === "killed")
      return endOf(status, { begun, calls });
    if (status.kind === "syscall") {
      if (entering && ACTING.has(tracee.registers().getNumber("orig_rax"))) calls++;
      if (entering && calls >= moment.beforeCall) break;
      entering = !entering;
    }
    tracee.resume({ toSyscall: true, signal: status.kind === "signal" ? status.signal : 0 });
  }
  spin(performance.now() + moment.waitMs);
  sendSignal(pid, SIGKILL);
  return endOf(waitUntilEnded(pid), { begun, calls });
}

/** The calls by which the engine acts upon others, or lets them act. */
const ACTING: ReadonlySet<number> = new Set([
  SYSCALLS.ptrace.nr,
  SYSCALLS.wait4.nr,
  SYSCALLS.process_vm_writev.nr,
  SYSCALLS.pwrite64.nr,
  SYSCALLS.kill.nr,
  SYSCALLS.tgkill.nr,
]);

function spin(until: number): void {
  while (performance.now() < until);
}

function waitUntilEnded(pid: number): WaitStatus {
  for (;;) {
    const result = waitFor(pid);
    if (result === undefined) throw new Error(`engine ${pid} is not our child`);
    const status = waitStatus(result.status);
    if (status.kind === "exited" || status.kind === "killed") return status;
  }
}

function endOf(status: WaitStatus, { begun, calls }: { begun: number; calls: number }): EngineEnd {
  return {
    killed: status.kind === "killed",
    exitCode: status.kind === "exited" ? status.code : undefined,
    ms: performance.now() - begun,
    calls,
  };
}

/** Numbers below a limit, or from 0 up to 1: the same ones for the same seed (Mulberry32). */
export function randomOf(seed: number): { below: (limit: number) => number; unit: () => number } {
  let state = seed * 0x9e3779b9;
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  return { below: (limit) => next() % limit, unit: () => next() / 2 ** 32 };
}
