import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import type { TaskTimersEntry } from "../../images/schema/messages.generated.ts";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { probeProcess, withSeed, type ProbedProcess } from "../../../test/live/probe.ts";
import { collectPending } from "./signals.ts";
import { armTimers, createTimers, firedTimers, probeTimers, restoreTimers } from "./timers.ts";

const OFF = { isec: 0n, iusec: 0n, vsec: 0n, vusec: 0n };
const PROCESS_CPUTIME_CLOCK = 4_294_967_290;

const TIMERS: TaskTimersEntry = {
  real: { isec: 0n, iusec: 0n, vsec: 4000n, vusec: 5n },
  virt: { isec: 7n, iusec: 8n, vsec: 100n, vusec: 0n },
  prof: { isec: 0n, iusec: 0n, vsec: 50n, vusec: 0n },
  posix: [
    {
      it_id: 9,
      clock_id: 1,
      si_signo: 12,
      it_sigev_notify: 0,
      sival_ptr: 0xdead_beef_dead_beefn,
      overrun: 0,
      isec: 7n,
      insec: 5n,
      vsec: 9000n,
      vnsec: 0n,
    },
    {
      it_id: 2,
      clock_id: 0,
      si_signo: 0,
      it_sigev_notify: 1,
      sival_ptr: 1n,
      overrun: 0,
      isec: 0n,
      insec: 0n,
      vsec: 0n,
      vnsec: 0n,
    },
    {
      it_id: 4,
      clock_id: 7,
      si_signo: 40,
      it_sigev_notify: 4,
      sival_ptr: 2n,
      overrun: 0,
      isec: 0n,
      insec: 0n,
      vsec: 77n,
      vnsec: 1n,
      notify_thread_id: 0,
    },
    {
      it_id: 6,
      clock_id: PROCESS_CPUTIME_CLOCK,
      si_signo: 41,
      it_sigev_notify: 0,
      sival_ptr: 0n,
      overrun: 0,
      isec: 0n,
      insec: 0n,
      vsec: 1000n,
      vnsec: 0n,
    },
  ],
};

/** What is left in whole seconds: it goes down while the test runs, and processor times are in ticks. */
function rounded(timers: TaskTimersEntry): TaskTimersEntry {
  const itimer = (timer: TaskTimersEntry["real"]): TaskTimersEntry["real"] => ({
    ...timer,
    vsec: timer.vsec + (timer.vusec + 500_000n) / 1_000_000n,
    vusec: 0n,
  });
  return {
    real: itimer(timers.real),
    virt: itimer(timers.virt),
    prof: itimer(timers.prof),
    posix: timers.posix
      .map((timer) => ({
        ...timer,
        vsec: timer.vsec + (timer.vnsec + 500_000_000n) / 1_000_000_000n,
        vnsec: 0n,
      }))
      .sort((a, b) => a.it_id - b.it_id),
  };
}

function forThread(timers: TaskTimersEntry, tid: number): TaskTimersEntry {
  const posix = timers.posix.map((timer) =>
    timer.notify_thread_id === undefined ? timer : { ...timer, notify_thread_id: tid },
  );
  return { ...timers, posix };
}

function probe(seed: ProbedProcess): TaskTimersEntry {
  return seed.run((program) =>
    probeTimers(program, seed.pid, { innerTid: (tid) => tid, threads: 1 }),
  );
}

describe("timers", () => {
  it.each([{ exactIds: true }, { exactIds: false }])(
    "come back with their ids: $exactIds",
    (options) => {
      withSeed((seed) => {
        const timers = forThread(TIMERS, seed.pid);
        seed.run((program) => restoreTimers(program, timers, options));
        expect(rounded(probe(seed))).toEqual(rounded(timers));
      });
    },
  );

  it("of ids that are too high to search for are refused", () => {
    withSeed((seed) => {
      const posix = TIMERS.posix.slice(0, 1).map((timer) => ({ ...timer, it_id: 1_000_000 }));
      const create = () =>
        seed.run((program) => createTimers(program, { ...TIMERS, posix }, { exactIds: false }));
      expect(create).toThrow(/cannot create a timer with the id 1000000/);
    });
  });

  it("that got other ids than they should have are told", () => {
    withSeed((seed) => {
      const create = () =>
        seed.run((program) => {
          const event = program.output(64);
          program.call("timer_create", [0, 0, event]);
          return createTimers(program, forThread(TIMERS, seed.pid), { exactIds: false });
        });
      expect(create).toThrow(/cannot create a timer with the id 2/);
    });
  });

  it("whose signal was pending queue it themselves, and count what is missed", async () => {
    const posix = [
      {
        it_id: 3,
        clock_id: 1,
        si_signo: 40,
        it_sigev_notify: 0,
        sival_ptr: 0x55n,
        overrun: 0,
        isec: 0n,
        insec: 1_000_000n,
        vsec: 900n,
        vnsec: 0n,
      },
    ];
    const timers = { real: { ...OFF, iusec: 500n }, virt: OFF, prof: OFF, posix };
    const info = Buffer.alloc(128);
    info.writeInt32LE(40, 0);
    info.writeInt32LE(-2, 8); // SI_TIMER
    info.writeInt32LE(3, 16);
    const fired = firedTimers(timers, [{ signals: [{ siginfo: info }] }]);
    expect([...fired]).toEqual([3]);
    expect(firedTimers({ ...timers, posix: [] }, [{ signals: [{ siginfo: info }] }]).size).toBe(0);
    await withSeed(async (seed) => {
      seed.run((program) => {
        createTimers(program, timers);
        armTimers(program, timers, fired);
        return () => undefined;
      });
      await sleep(20);
      const [tracee] = seed.threads;
      if (tracee === undefined) throw new Error("no thread");
      const signals = collectPending(tracee, "process").signals.map(({ siginfo }) =>
        Buffer.from(siginfo),
      );
      expect(signals.map((raw) => raw.readInt32LE(0))).toEqual(expect.arrayContaining([14, 40]));
      const own = signals.find((raw) => raw.readInt32LE(0) === 40);
      expect(own?.readInt32LE(8)).toBe(-2);
      expect(own?.readInt32LE(16)).toBe(3);
      expect(own?.readBigUInt64LE(24)).toBe(0x55n);
      const overrun = seed.run((program) => {
        const taken = program.output(128);
        const mask = Buffer.alloc(8);
        mask.writeBigUInt64LE(1n << 39n);
        program.call("rt_sigtimedwait", [
          program.data(mask),
          taken,
          program.data(Buffer.alloc(16)),
          8,
        ]);
        return (result) => result.bytes(taken, 128).readInt32LE(20);
      });
      expect(overrun).toBeGreaterThan(5);
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

  it("does not notice that its timers were read", async () => {
    const program = await startProgram("posix_timers", [], { dir: makeDir("timers") });
    started.push(program);
    await program.waitReady();
    const timers = probeProcess(program.pid, probe);
    expect(timers.posix.map(({ it_id }) => it_id)).toEqual([0, 2, 4, 5, 6, 7, 8]);
    expect(timers.posix[2]).toMatchObject({
      it_sigev_notify: 4,
      notify_thread_id: program.pid,
      insec: 10_000_000n,
    });
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});
