import { availableParallelism } from "node:os";
import { readdirSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import type { ThreadCoreEntry } from "../../images/schema/messages.generated.ts";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { readTimerslack } from "../../proc/timerslack.ts";
import { withSeed } from "../../../test/live/probe.ts";
import { collectScheduling, restoreScheduling, type Scheduling } from "./scheduling.ts";

function collect(tid: number): Scheduling {
  return collectScheduling(tid, readTimerslack(tid) ?? 0n);
}

const RESET_ON_FORK = 0x4000_0000;

/** Restores into a new process and reads it again, with what the restore complained about. */
function roundTrip(
  core: Pick<ThreadCoreEntry, "sched_nice" | "sched_policy" | "sched_prio" | "reprise">,
): {
  read: Scheduling;
  problems: string[];
} {
  return withSeed((seed) => {
    const problems = seed.run((program) => restoreScheduling(program, core));
    return { read: collect(seed.pid), problems };
  });
}

describe("scheduling", () => {
  it.each([
    { sched_nice: 5, sched_policy: 0, reprise: { ioprio: 0x4002, timerslack_ns: 123_456n } },
    { sched_nice: -3, sched_policy: 3, reprise: { ioprio: 0x6000, timerslack_ns: 50_000n } },
    { sched_nice: 1, sched_policy: 5 | RESET_ON_FORK, reprise: { timerslack_ns: 1n } },
  ])("comes back: policy $sched_policy, nice $sched_nice", (core) => {
    expect(roundTrip(core)).toEqual({ read: core, problems: [] });
  });

  it("of real time comes back, or is told where it is not permitted", () => {
    const core = { sched_nice: 2, sched_policy: 2, sched_prio: 7, reprise: {} };
    const { read, problems } = roundTrip(core);
    if (problems.length === 0) expect(read).toEqual(core);
    else
      expect(problems).toEqual(["cannot set the scheduling policy 2: sched_setscheduler: EPERM"]);
  });

  it.runIf(availableParallelism() > 1)(
    "on some processors comes back, without those that are not there",
    () => {
      const one = new Uint8Array(1024);
      one[0] = 1;
      const { read, problems } = roundTrip({ reprise: { cpu_affinity: one } });
      expect(problems).toEqual([]);
      expect(read.reprise.cpu_affinity?.[0]).toBe(1);
      one[1023] = 0x80;
      const again = roundTrip({ reprise: { cpu_affinity: one } });
      expect(again.problems).toEqual(["cannot use processors 8191: they are not online here"]);
      expect(again.read.reprise.cpu_affinity?.[0]).toBe(1);
    },
  );

  it("on all processors is not saved, and on none that is here is left as it is", () => {
    const none = new Uint8Array(1024);
    none[1023] = 0x80;
    const { read, problems } = roundTrip({ reprise: { cpu_affinity: none } });
    expect(problems).toHaveLength(1);
    expect(read.reprise.cpu_affinity).toEqual(collect(process.pid).reprise.cpu_affinity);
  });

  it("by deadline is saved beside the usual policy", (context) => {
    withSeed((seed) => {
      const attributes = Buffer.alloc(48);
      attributes.writeUInt32LE(48, 0);
      attributes.writeUInt32LE(6, 4); // SCHED_DEADLINE
      attributes.writeBigUInt64LE(1_000_000n, 24);
      attributes.writeBigUInt64LE(100_000_000n, 32);
      attributes.writeBigUInt64LE(100_000_000n, 40);
      const set = seed.run((program) => {
        const call = program.call("sched_setattr", [0, program.data(attributes), 0], {
          mayFail: true,
        });
        return (result) => result.value(call);
      });
      if (set < 0) context.skip("deadline scheduling is not permitted here");
      const deadline = { runtime: 1_000_000n, deadline: 100_000_000n, period: 100_000_000n };
      expect(collect(seed.pid)).toMatchObject({
        sched_policy: 0,
        reprise: { deadline: { ...deadline, flags: 0n } },
      });
    });
  });
});

describe("a running program", () => {
  const started: RunningProgram[] = [];
  afterEach(async () => {
    for (const program of started.splice(0)) {
      await killProgram(program);
      removeDir(program.dir);
    }
  });

  it("has its threads read each by itself", async () => {
    const program = await startProgram("sched", [], { dir: makeDir("sched") });
    started.push(program);
    await program.waitReady();
    const tids = readdirSync(`/proc/${program.pid}/task`).map(Number);
    const [, first, , batch, idle, resetting] = tids.map(collect);
    expect(first).toMatchObject({ sched_nice: 5, sched_policy: 0, reprise: { ioprio: 0x4002 } });
    expect(first?.sched_prio).toBeUndefined();
    expect(batch).toMatchObject({ sched_nice: 7, sched_policy: 3 });
    expect(idle?.sched_policy).toBe(5);
    expect(resetting?.sched_policy).toBe(RESET_ON_FORK);
  });
});
