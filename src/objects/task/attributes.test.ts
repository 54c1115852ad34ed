import { readFileSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import type { CredsEntry, TaskCoreEntry } from "../../images/schema/messages.generated.ts";
import { readLoginuid } from "../../proc/loginuid.ts";
import { readStatus } from "../../proc/status.ts";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { probeProcess, withSeed } from "../../../test/live/probe.ts";
import { readThreadStatus } from "../../proc/status.ts";
import {
  collectProcessAttributes,
  probeProcessAttributes,
  probeThreadAttributes,
  restoreComm,
  restoreDumpable,
  restoreLoginuid,
  restoreMdwe,
  restoreOomScoreAdj,
  restoreParentDeathSignal,
  restoreProcessAttributes,
  restoreThreadAttributes,
  restoreThpDisable,
  restoreUmask,
} from "./attributes.ts";
import { probeClearTidAddress } from "./thread-registrations.ts";

const ADDR_NO_RANDOMIZE = 0x4_0000;
const SIGWINCH = 28;
const own = collectProcessAttributes(process.pid);

const CORE: TaskCoreEntry = {
  task_state: 1,
  exit_code: 0,
  personality: ADDR_NO_RANDOMIZE,
  flags: 0,
  blk_sigset: 0n,
  comm: "x",
  sigactions: [],
  child_subreaper: true,
  membarrier_registration_mask: (1 << 4) | (1 << 8),
  oom_score_adj: Math.min((own.oom_score_adj ?? 0) + 100, 1000),
  reprise: { personality_set: true, coredump_filter: 0x7 },
};

describe("attributes of a process", () => {
  it("come back", () => {
    withSeed((seed) => {
      const problems = seed.run((program) => {
        const told = restoreProcessAttributes(program, CORE);
        restoreThpDisable(program, { isDisabled: true });
        restoreUmask(program, 0o137);
        return told;
      });
      expect(problems).toEqual([]);
      expect(collectProcessAttributes(seed.pid)).toMatchObject({
        personality: ADDR_NO_RANDOMIZE,
        oom_score_adj: CORE.oom_score_adj,
        reprise: { coredump_filter: 0x7, personality_set: true },
      });
      expect(seed.run(probeProcessAttributes)).toMatchObject({
        thpDisabled: true,
        childSubreaper: true,
        membarriers: CORE.membarrier_registration_mask,
        mdwe: 0,
      });
      expect(readStatus(seed.pid).umask).toBe(0o137);
    });
  });

  it("that are as they should be, or not in the image, are left alone", () => {
    withSeed((seed) => {
      seed.run((program) => {
        const told = restoreProcessAttributes(program, {
          ...CORE,
          ...own,
          membarrier_registration_mask: 0,
        });
        // personality and subreaper alone
        expect(program.calls).toBe(2);
        return told;
      });
      const before = collectProcessAttributes(seed.pid);
      seed.run((program) =>
        restoreProcessAttributes(program, {
          ...CORE,
          oom_score_adj: undefined,
          reprise: undefined,
        }),
      );
      expect(collectProcessAttributes(seed.pid)).toEqual(before);
    });
  });

  it("that the kernel refuses are told", () => {
    withSeed((seed) => {
      expect(seed.run((program) => restoreOomScoreAdj(program, 5000))).toEqual([
        "cannot set oom_score_adj to 5000: write: EINVAL",
      ]);
      const login = own.loginuid === 7 ? 8 : 7;
      const problems = seed.run((program) => restoreLoginuid(program, login));
      if (readLoginuid(seed.pid) === undefined) expect(problems).toEqual([]);
      else expect(problems.length === 0).toBe(readLoginuid(seed.pid) === login);
    });
  });

  it("MDWE holds from then on", () => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreMdwe(program, 1);
        return () => undefined;
      });
      expect(seed.run(probeProcessAttributes).mdwe).toBe(1);
    });
  });
});

describe("the dumpable flag", () => {
  it.each([0, 1])("comes back: %d", (dumpable) => {
    withSeed((seed) => {
      expect(seed.run((program) => restoreDumpable(program, dumpable, undefined))).toEqual([]);
      expect(seed.run(probeProcessAttributes).dumpable).toBe(dumpable);
    });
  });

  it("of 2 comes by a change of ids where the system gives it, and else is 0 and told", () => {
    const given = readFileSync("/proc/sys/fs/suid_dumpable", "latin1").trim() === "2";
    withSeed((seed) => {
      const problems = seed.run((program) => {
        program.call("setresuid", [7, 7, 7]);
        return restoreDumpable(program, 2, { euid: 7, egid: 0, fsuid: 7, fsgid: 0 } as CredsEntry);
      });
      expect(problems).toHaveLength(given ? 0 : 1);
      expect(seed.run(probeProcessAttributes).dumpable).toBe(given ? 2 : 0);
    });
    withSeed((seed) => {
      expect(seed.run((program) => restoreDumpable(program, 2, undefined))).toHaveLength(1);
      expect(seed.run(probeProcessAttributes).dumpable).toBe(0);
    });
  });
});

describe("attributes of a thread", () => {
  it.each(["short", "a name (x) \n y", "fifteen bytes !", ""])("come back: %j", (comm) => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreThreadAttributes(program, { comm, pdeath_sig: SIGWINCH });
        return () => undefined;
      });
      expect(readThreadStatus(seed.pid, seed.pid).name).toBe(comm);
      expect(seed.run(probeThreadAttributes).parentDeathSignal).toBe(SIGWINCH);
    });
  });

  it("can be none: the seed's own death signal goes, a long name is cut", () => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreComm(program, "a name that is too long");
        restoreParentDeathSignal(program, 0);
        return () => undefined;
      });
      expect(readThreadStatus(seed.pid, seed.pid).name).toBe("a name that is ");
      expect(seed.run(probeThreadAttributes).parentDeathSignal).toBe(0);
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

  it("does not notice that its attributes were read", async () => {
    const program = await startProgram("prctls", [], { dir: makeDir("prctls") });
    started.push(program);
    await program.waitReady();
    const { attributes, thread, clearTidAddress } = probeProcess(program.pid, (probed) => ({
      attributes: probed.run(probeProcessAttributes),
      thread: probed.run(probeThreadAttributes),
      clearTidAddress: probed.run(probeClearTidAddress),
    }));
    expect(attributes).toMatchObject({
      dumpable: 1,
      thpDisabled: true,
      childSubreaper: true,
      membarriers: 0,
    });
    expect(attributes.brk).toBeGreaterThan(0);
    expect(thread.parentDeathSignal).toBe(0);
    expect(clearTidAddress).toBeGreaterThan(0n);
    expect(readThreadStatus(program.pid, program.pid).name).toBe("a name (x) \n y");
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});
