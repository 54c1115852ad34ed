import { describe, expect, it } from "vitest";
import { UNLIMITED } from "../../proc/limits.ts";
import { withSeed } from "../../../test/live/probe.ts";
import { collectLimits, restoreLimits } from "./limits.ts";

const RLIMIT_CORE = 4;
const RLIMIT_NOFILE = 7;

describe("resource limits", () => {
  it("are 16, as the kernel numbers them", () => {
    const limits = collectLimits(process.pid);
    expect(limits).toHaveLength(16);
  });

  it("come back, soft and hard", () => {
    withSeed((seed) => {
      const wanted = collectLimits(seed.pid).map(({ max }, index) => {
        const hard = max === UNLIMITED ? 2n ** 40n + BigInt(index) : max;
        return { cur: hard / 2n, max: hard };
      });
      expect(seed.run((program) => restoreLimits(program, wanted))).toEqual([]);
      expect(collectLimits(seed.pid)).toEqual(wanted);
    });
  });

  it("cost no call when nothing differs", () => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreLimits(program, collectLimits(seed.pid));
        expect(program.calls).toBe(0);
        return () => undefined;
      });
    });
  });

  it("that may not be raised are set as far as it goes, and told", () => {
    withSeed((seed) => {
      seed.run((program) => {
        const lowered = collectLimits(seed.pid).map((limit, index) =>
          index === RLIMIT_NOFILE ? { cur: 50n, max: 100n } : limit,
        );
        // Nobody may raise a limit of open files above fs.nr_open, nor without CAP_SYS_RESOURCE at all.
        return restoreLimits(program, lowered);
      });
      const current = collectLimits(seed.pid);
      const wanted = current.map((limit, index) => {
        if (index === RLIMIT_NOFILE) return { cur: 2n ** 40n, max: 2n ** 40n };
        return index === RLIMIT_CORE ? { cur: 0n, max: limit.max } : limit;
      });
      const problems = seed.run((program) => restoreLimits(program, wanted, { current }));
      expect(problems).toEqual([
        "cannot set RLIMIT_NOFILE 1099511627776:1099511627776, at most 100: prlimit64: EPERM",
      ]);
      const set = collectLimits(seed.pid);
      expect(set[RLIMIT_NOFILE]).toEqual({ cur: 100n, max: 100n });
      expect(set[RLIMIT_CORE]?.cur).toBe(0n);
    });
  });
});
