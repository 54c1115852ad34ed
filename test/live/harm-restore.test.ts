// Nothing half-made remains: the engine is killed in the middle of a restore, before the calls by which it acts upon others and
// at random instants. Either nothing of the tree is there, and it can be restored, or the whole of it, and it goes on.
// REPRISE_HARM_RESTORES sets how many times, REPRISE_HARM_SEED when.

import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeAll, expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { MS_PRIVATE, MS_REC } from "../../src/sys/abi/mount.ts";
import { CLONE_NEWNS } from "../../src/sys/abi/sched.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { randomOf, runEngine, useEngineBundle, type Moment } from "./engine-death.ts";
import { attachProgram, killProgram, type RunningProgram } from "./programs.ts";
import { start } from "./suite.ts";

const KILLS = Number(process.env.REPRISE_HARM_RESTORES ?? 60);
const SEED = Number(process.env.REPRISE_HARM_SEED ?? 1);
interface Subject {
  readonly name: string;
  readonly args?: readonly string[];
  readonly share: number;
  readonly newPidNamespace: boolean;
  /** From which part of the calls on. @default 0 */
  readonly from?: number;
  /** Names that may be left. */
  readonly mayLeave?: RegExp;
}
const SUBJECTS: readonly Subject[] = [
  { name: "threads", share: 0.2, newPidNamespace: false },
  // A directory that is gone is made under its name, which goes when all files are open.
  { name: "deleted_files", share: 0.4, newPidNamespace: true, mayLeave: /^directory$/ },
  // The tasks may run, and answer, until the end of their init has come to them.
  { name: "many_tasks", args: ["4"], share: 0.4, newPidNamespace: true, mayLeave: /^verdict\./ },
  // Without an init several tasks are let go one after the other, at the end.
  { name: "many_tasks", args: ["4"], share: 0.2, newPidNamespace: false, from: 0.85 },
];
const PATIENCE_MS = 5000;

useEngineBundle();
beforeAll(() => {
  // In a mount namespace of our own, where nobody else mounts anything meanwhile.
  syscall("unshare", CLONE_NEWNS);
  const [none, root] = [Buffer.from("none\0"), Buffer.from("/\0")];
  syscall("mount", none, root, 0, MS_REC | MS_PRIVATE, 0);
});

test.each(SUBJECTS)(
  "$name: all or nothing is there when the engine is killed during a restore",
  { timeout: 60_000 + KILLS * 1000 },
  async ({ name, args, share, newPidNamespace, mayLeave, from = 0 }) => {
    const program = await start(name, args ?? []);
    const imagesDir = mkdtempSync(join(program.dir, "images-"));
    await checkpoint({ pid: program.pid, imagesDir });
    const order = { action: "restore", imagesDir, newPidNamespace } as const;
    const names = readdirSync(program.dir);
    const mounts = readFileSync("/proc/self/mountinfo", "utf8");

    const whole = await runEngine(order);
    expect(whole.exitCode).toBe(0);
    expect(await whatRemains(program)).toBe("all");
    const random = randomOf(SEED);
    const kills = Math.ceil(KILLS * share);
    let nothing = 0;
    for (let kill = 0; kill < kills; kill++) {
      const moment: Moment =
        kill % 3 === 2
          ? { afterMs: random.unit() * whole.ms }
          : {
              beforeCall: 1 + Math.floor((from + ((1 - from) * kill) / kills) * whole.calls),
              waitMs: random.below(2) === 0 ? 0 : random.unit() * 2,
            };
      const end = await runEngine(order, moment);
      const where = `${name}, seed ${SEED}, kill ${kill} ${JSON.stringify(moment)}`;
      if (!end.killed) expect(end.exitCode, where).toBe(0);
      const remains = await whatRemains(program);
      if (remains === "nothing") {
        nothing++;
        expect(end.killed, where).toBe(true);
        const left = readdirSync(program.dir).filter((file) => !names.includes(file));
        expect(
          left.filter((file) => mayLeave?.test(file) !== true),
          where,
        ).toEqual([]);
        for (const file of left) rmSync(join(program.dir, file), { recursive: true });
      }
      expect(readFileSync("/proc/self/mountinfo", "utf8"), where).toBe(mounts);
    }
    // On a busy machine the one run that is measured may take long, and the third that is killed by the clock ends before.
    expect(nothing).toBeGreaterThan(kills * 0.33);
    const { pid } = await restore({ imagesDir, newPidNamespace });
    expect(await attachProgram(name, pid, program.dir).ask()).toBe("ok 1");
  },
);

/** Whether nothing is left of the tree, or else the whole of it, which answers; that is ended. */
async function whatRemains(program: RunningProgram): Promise<"nothing" | "all"> {
  for (const end = Date.now() + PATIENCE_MS; membersOf(program).length > 0;) {
    if (Date.now() > end) throw new Error(`neither dead nor alive: ${membersOf(program).join()}`);
    const root = membersOf(program).find((pid) => readStatIfAlive(pid)?.comm === program.name);
    if (root !== undefined && isReleased(root)) {
      const restored = attachProgram(program.name, root, program.dir);
      // One that dies with the engine can look so for a moment: then it ends without a word.
      const answer = await restored.ask().catch(() => "");
      if (answer !== "") {
        expect(answer).toMatch(/^ok /);
        await killProgram(restored);
        return "all";
      }
    }
    await sleep(2);
  }
  return "nothing";
}

/** Living processes that work in the directory, the lowest number first, which is the root of the tree. */
function membersOf({ dir }: RunningProgram): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/cwd`) === dir && readStatIfAlive(pid)?.state !== "Z";
      } catch {
        return false;
      }
    })
    .sort((a, b) => a - b);
}

/** Its own program, with no tracer left. */
function isReleased(pid: number): boolean {
  try {
    return /^TracerPid:\t0$/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
