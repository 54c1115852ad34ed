import { readdirSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { probeProcess, withSeed, type ProbedProcess } from "../../../test/live/probe.ts";
import { writeMemory, writeU64 } from "../../sys/memory.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import {
  collectRegistrations,
  collectRobustList,
  collectRseq,
  probeClearTidAddress,
  restoreClearTidAddress,
  restoreRegistrations,
  restoreRseq,
  rseqSectionWord,
} from "./thread-registrations.ts";

const SIGNATURE = 0x5305_3053;
const RSEQ_SIZE = 32;
const NO_RESTART_ON_SIGNAL = 2;
/** A page in the seed's work area that programs do not reach, and what lies in it. */
const PAGE = 0x1008_0000;
const SECTION = PAGE + 256;

function leaderOf(process: ProbedProcess): Tracee {
  const [leader] = process.threads;
  if (leader === undefined) throw new Error("no thread");
  return leader;
}

describe("registrations of a thread", () => {
  it("come back", () => {
    withSeed((seed) => {
      const rseq_entry = {
        rseq_abi_pointer: BigInt(PAGE),
        rseq_abi_size: RSEQ_SIZE,
        signature: SIGNATURE,
      };
      const robust = { futex_rla: 0x7f00_1234_5678n, futex_rla_len: 24 };
      seed.run((program) => {
        restoreRegistrations(program, { ...robust, rseq_entry }, 0x7f00_aaaa_0000n);
        return () => undefined;
      });
      expect(collectRegistrations(leaderOf(seed), 0)).toEqual({
        ...robust,
        rseq_entry,
        abortAddress: undefined,
      });
      expect(seed.run(probeClearTidAddress)).toBe(0x7f00_aaaa_0000n);
      seed.run((program) => {
        restoreClearTidAddress(program, 0n);
        return () => undefined;
      });
      expect(seed.run(probeClearTidAddress)).toBe(0n);
    });
  });

  it("are none in a new process", () => {
    withSeed((seed) => {
      expect(collectRegistrations(leaderOf(seed), 0)).toEqual({
        futex_rla: 0n,
        futex_rla_len: 24,
        rseq_entry: { rseq_abi_pointer: 0n, rseq_abi_size: 0, signature: 0 },
        abortAddress: undefined,
      });
    });
  });
});

describe("a thread in a restartable sequence", () => {
  /** A process that has an rseq area with a section of 16 bytes. */
  function withSection<T>(flags: number, use: (tracee: Tracee) => T): T {
    return withSeed((seed) => {
      const entry = {
        rseq_abi_pointer: BigInt(PAGE),
        rseq_abi_size: RSEQ_SIZE,
        signature: SIGNATURE,
      };
      seed.run((program) => {
        restoreRseq(program, entry);
        return () => undefined;
      });
      const section = Buffer.alloc(32);
      section.writeUInt32LE(flags, 4);
      writeU64(section, 8, 0x5000);
      writeU64(section, 16, 16);
      writeU64(section, 24, 0x6000);
      const word = Buffer.alloc(8);
      writeU64(word, 0, SECTION);
      writeMemory(seed.pid, [{ address: SECTION, length: 32 }], section);
      writeMemory(seed.pid, [{ address: PAGE + 8, length: 8 }], word);
      return use(leaderOf(seed));
    });
  }

  it.each([
    { ip: 0x4fff, to: undefined },
    { ip: 0x5000, to: 0x6000 },
    { ip: 0x500f, to: 0x6000 },
    { ip: 0x5010, to: undefined },
  ])("goes on where the kernel would abort it: $ip", ({ ip, to }) => {
    withSection(0, (tracee) => {
      const { entry, abortAddress } = collectRseq(tracee, ip);
      expect(abortAddress).toBe(to);
      expect(entry.rseq_cs_pointer).toBeUndefined();
      expect(rseqSectionWord(entry)).toBeUndefined();
    });
  });

  it("stays in it when signals do not abort it", () => {
    withSection(NO_RESTART_ON_SIGNAL, (tracee) => {
      const { entry, abortAddress } = collectRseq(tracee, 0x5008);
      expect(abortAddress).toBeUndefined();
      expect(entry.rseq_cs_pointer).toBe(BigInt(SECTION));
      expect(rseqSectionWord(entry)).toEqual({ address: PAGE + 8, value: BigInt(SECTION) });
    });
  });

  it("of an unknown version is refused", () => {
    withSection(0, (tracee) => {
      writeMemory(tracee.leader, [{ address: SECTION, length: 4 }], Buffer.from([1, 0, 0, 0]));
      expect(() => collectRseq(tracee, 0x5008)).toThrow(/restartable sequence has version 1/);
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

  it("has its own in each thread, and does not notice that they were read", async () => {
    const program = await startProgram("threads", [], { dir: makeDir("registrations") });
    started.push(program);
    await program.waitReady();
    const seen = probeProcess(program.pid, (probed) =>
      probed.threads.map((tracee) => ({
        ...collectRegistrations(tracee, tracee.registers().getNumber("rip")),
        cleared: probed.run(probeClearTidAddress, tracee),
      })),
    );
    const tids = readdirSync(`/proc/${program.pid}/task`);
    expect(seen).toHaveLength(tids.length);
    expect(seen.length).toBeGreaterThan(1);
    for (const field of ["futex_rla", "cleared"] as const) {
      expect(new Set(seen.map((thread) => thread[field])).size, field).toBe(seen.length);
    }
    for (const thread of seen) expect(thread.futex_rla_len).toBe(24);
    expect(collectRobustList(program.pid)).toMatchObject({ futex_rla: seen[0]?.futex_rla });
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});
