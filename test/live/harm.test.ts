// Nobody is harmed: the engine is killed right before every one of the calls by which it acts upon the program, and at random
// instants besides; the program goes on each time as if nothing had happened. REPRISE_HARM_KILLS sets how many instants
// at least, REPRISE_HARM_SEED which.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { readTasksIfAlive } from "../../src/proc/tasks.ts";
import { again } from "./cycle.ts";
import {
  randomOf,
  runEngine,
  useEngineBundle,
  type EngineEnd,
  type Moment,
} from "./engine-death.ts";
import type { RunningProgram } from "./programs.ts";
import { start } from "./suite.ts";

const KILLS = Number(process.env.REPRISE_HARM_KILLS ?? 330);
const SEED = Number(process.env.REPRISE_HARM_SEED ?? 1);
const SUBJECTS = [
  { name: "selfcheck", args: [], share: 0.4 },
  { name: "threads", args: [], share: 0.3 },
  { name: "many_tasks", args: ["4"], share: 0.3 },
  { name: "dispatched", args: [], share: 0.1 },
  { name: "dispatched", args: ["lone"], share: 0.1 },
] as const;

useEngineBundle();

test.each(SUBJECTS)(
  "$name goes on whenever the engine is killed during a dump",
  { timeout: 60_000 + KILLS * 1000 },
  async ({ name, args, share }) => {
    const program = await start(name, args);
    const random = randomOf(SEED);
    const whole = await quickDump(program);
    const mappings = countMappings(program.pid);
    const kills = Math.ceil(KILLS * share);
    let died = 0;
    for (let kill = 0; kill < kills; kill++) {
      const moment = momentOf(kill, { kills, whole, random });
      const end = await dumpUntil(program, moment);
      if (end.killed) died++;
      const where = `${name}, seed ${SEED}, kill ${kill} ${JSON.stringify(moment)}`;
      expect(await lives(program), where).toMatch(/^ok /);
      // Only the leader of a process with one thread can take the work area along when it goes on by itself.
      if (name === "selfcheck") expect(countMappings(program.pid), where).toBe(mappings);
    }
    // Of the random instants some lie behind the end of a dump that was quicker still.
    expect(died).toBeGreaterThan(kills * 0.6);
    // What the dead engines left is in nobody's way: the program can still be saved and brought back.
    const restored = await again(program);
    expect(await restored.ask()).toMatch(/^ok /);
    expect(await restored.finish()).toBe("pass");
  },
);

interface Plan {
  readonly kills: number;
  readonly whole: EngineEnd;
  readonly random: ReturnType<typeof randomOf>;
}

/** Every call once (or as many as there are kills for, spread evenly), the rest at any time. */
function momentOf(kill: number, { kills, whole, random }: Plan): Moment {
  const swept = Math.min(whole.calls, Math.floor(kills * 0.7));
  if (kill < swept) {
    const beforeCall = 1 + Math.floor((kill * whole.calls) / swept);
    return { beforeCall, waitMs: random.below(2) === 0 ? 0 : random.unit() * 2 };
  }
  return { afterMs: random.unit() * whole.ms };
}

/** A whole dump: of some, the one with the fewest calls, and the shortest time. */
async function quickDump(program: RunningProgram): Promise<EngineEnd> {
  const dumps: EngineEnd[] = [];
  for (let dump = 0; dump < 4; dump++) dumps.push(await dumpUntil(program));
  for (const { exitCode } of dumps) expect(exitCode).toBe(0);
  const [calls, ms] = [dumps.map((one) => one.calls), dumps.map((one) => one.ms)];
  return { exitCode: 0, killed: false, calls: Math.min(...calls), ms: Math.min(...ms) };
}

async function dumpUntil(program: RunningProgram, moment?: Moment): Promise<EngineEnd> {
  const imagesDir = mkdtempSync(join(program.dir, "images-"));
  try {
    const order = { action: "dump", pid: program.pid, imagesDir, leave: "running" } as const;
    return await runEngine(order, moment);
  } finally {
    rmSync(imagesDir, { recursive: true });
  }
}

/** Asks the program to check itself; whoever was merely stopped is told to go on, as a shell would. */
async function lives(program: RunningProgram): Promise<string> {
  const waker = setInterval(() => {
    for (const pid of treeOf(program.pid)) if (isStopped(pid)) process.kill(pid, "SIGCONT");
  }, 1);
  try {
    return await program.ask();
  } finally {
    clearInterval(waker);
  }
}

function isStopped(pid: number): boolean {
  return (readTasksIfAlive(pid) ?? []).some((tid) => readStatIfAlive(tid)?.state === "T");
}

function treeOf(root: number): number[] {
  const tasks = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const children = tasks.filter((name) => readStatIfAlive(Number(name))?.ppid === root).map(Number);
  return [root, ...children.flatMap(treeOf)];
}

function countMappings(pid: number): number {
  return readFileSync(`/proc/${pid}/maps`, "latin1").split("\n").length;
}
