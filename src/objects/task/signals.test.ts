import { afterEach, describe, expect, it } from "vitest";
import type { SaEntry } from "../../images/schema/messages.generated.ts";
import { SIGCHLD, SIGSET_SIZE } from "../../sys/abi/signal.ts";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { probeProcess, withSeed } from "../../../test/live/probe.ts";
import {
  collectPending,
  drainChildSignals,
  probeAlternateStack,
  probeSignalActions,
  restoreAlternateStack,
  restorePending,
  restoreSignalActions,
} from "./signals.ts";

const SIG_IGN = 1n;
const SA_RESTORER = 0x0400_0000n;

function actions(): SaEntry[] {
  return Array.from({ length: 62 }, (_, index) => ({
    sigaction: index % 3 === 0 ? 0n : index % 3 === 1 ? SIG_IGN : 0x1000n + BigInt(index),
    flags: index % 3 === 2 ? SA_RESTORER | 0x1000_0004n : 0n,
    restorer: index % 3 === 2 ? 0x7f00_dead_0000n : 0n,
    mask: index % 3 === 2 ? 0x8000_0000_0000_0001n : 0n,
    compat_sigaction: false,
  }));
}

/** A siginfo as sigqueue(3) makes it. */
function queued(signal: number, value: number): Uint8Array {
  const info = Buffer.alloc(128);
  info.writeInt32LE(signal, 0);
  info.writeInt32LE(-1, 8); // SI_QUEUE
  info.writeInt32LE(4242, 16);
  info.writeInt32LE(7, 20);
  info.writeInt32LE(value, 24);
  return info;
}

/** A siginfo as kill(2) of another process makes it: only the receiver itself may queue such a one. */
function killed(signal: number): Uint8Array {
  const info = Buffer.alloc(128);
  info.writeInt32LE(signal, 0);
  info.writeInt32LE(4242, 16);
  return info;
}

describe("signal actions", () => {
  it("come back as they were set, signal by signal", () => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreSignalActions(program, actions());
        return () => undefined;
      });
      expect(seed.run(probeSignalActions)).toEqual(actions());
    });
  });

  it("of another number than 62 are refused", () => {
    withSeed((seed) => {
      const restore = () =>
        seed.run((program) => {
          restoreSignalActions(program, actions().slice(1));
          return () => undefined;
        });
      expect(restore).toThrow(/has 61, not 62/);
    });
  });
});

describe("the alternate stack", () => {
  it.each([
    { ss_sp: 0x7f00_1234_5000n, ss_size: 65536n, ss_flags: 0 },
    { ss_sp: 0x7f00_1234_5000n, ss_size: 65536n, ss_flags: 0x8000_0000 },
    { ss_sp: 0n, ss_size: 0n, ss_flags: 2 },
  ])("comes back: flags $ss_flags", (stack) => {
    withSeed((seed) => {
      seed.run((program) => {
        restoreAlternateStack(program, { ss_sp: 4096n, ss_size: 65536n, ss_flags: 0 });
        restoreAlternateStack(program, stack);
        return () => undefined;
      });
      expect(seed.run(probeAlternateStack)).toEqual(stack);
    });
  });
});

describe("pending signals", () => {
  it("come back to their queue, in order, with sender and value", () => {
    withSeed((seed) => {
      const ids = { pid: seed.pid, tid: seed.pid };
      const [tracee] = seed.threads;
      if (tracee === undefined) throw new Error("no thread");
      const shared = [killed(12), queued(40, 1), queued(40, 2)].map((siginfo) => ({ siginfo }));
      const own = [killed(10), queued(41, 3)].map((siginfo) => ({ siginfo }));
      seed.run((program) => {
        restorePending(program, { signals: shared }, { queue: "process", ...ids });
        restorePending(program, { signals: own }, { queue: "thread", ...ids });
        return () => undefined;
      });
      expect(collectPending(tracee, "process").signals).toEqual(shared);
      expect(collectPending(tracee, "thread").signals).toEqual(own);
    });
  });

  it("SIGCHLDs are drained and nothing else", () => {
    withSeed((seed) => {
      const [tracee] = seed.threads;
      if (tracee === undefined) throw new Error("no thread");
      seed.run((program) => {
        program.call("kill", [seed.pid, SIGCHLD]);
        program.call("kill", [seed.pid, 12]);
        drainChildSignals(program, 3);
        return () => undefined;
      });
      const left = collectPending(tracee, "process").signals.map(({ siginfo }) => siginfo[0]);
      expect(left).toEqual([12]);
    });
  });

  it("that no signal has are refused", () => {
    withSeed((seed) => {
      const restore = () =>
        seed.run((program) => {
          restorePending(
            program,
            { signals: [{ siginfo: new Uint8Array(128) }] },
            { queue: "process", pid: seed.pid, tid: seed.pid },
          );
          return () => undefined;
        });
      expect(restore).toThrow(/cannot restore a pending signal/);
    });
  });
});

describe("a running program", () => {
  let program: RunningProgram | undefined;
  afterEach(async () => {
    if (program === undefined) return;
    await killProgram(program);
    removeDir(program.dir);
    program = undefined;
  });

  it("does not notice that its pending signals and actions were read", async () => {
    program = await startProgram("sigpending", [], { dir: makeDir("signals") });
    await program.waitReady();
    const seen = probeProcess(program.pid, (probed) => ({
      actions: probed.run(probeSignalActions),
      process: collectPending(probed.threads[0] ?? fail(), "process"),
      thread: collectPending(probed.threads[1] ?? fail(), "thread"),
      blocked: probed.run((calls) => {
        const mask = calls.output(SIGSET_SIZE);
        calls.call("rt_sigpending", [mask, SIGSET_SIZE]);
        return (result) => result.bytes(mask, SIGSET_SIZE).readBigUInt64LE(0);
      }),
    }));
    expect(seen.actions).toHaveLength(62);
    expect(seen.actions[8]?.sigaction).toBeGreaterThan(1n); // SIGUSR1 has a handler: the ninth in the list, which lacks 9
    const numbers = (queue: {
      signals: readonly { siginfo: Uint8Array }[];
    }): (number | undefined)[] => queue.signals.map(({ siginfo }) => siginfo[0]);
    expect(numbers(seen.process)).toEqual([37, 37, 37, 37, 37, 12, 2]);
    expect(numbers(seen.thread)).toEqual([38, 38, 38, 38, 38, 1]);
    expect(seen.blocked & (1n << 36n)).not.toBe(0n);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});

function fail(): never {
  throw new Error("a thread is missing");
}
