import { afterEach, describe, expect, it } from "vitest";
import type { CredsEntry } from "../../images/schema/messages.generated.ts";
import { readStatus } from "../../proc/status.ts";
import {
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "../../../test/live/programs.ts";
import { probeProcess, withSeed, type ProbedProcess } from "../../../test/live/probe.ts";
import { probeCreds, restoreCreds, restoreNoNewPrivs } from "./creds.ts";

const CHOWN = 1;
const NET_BIND_SERVICE = 1 << 10;
const SETPCAP = 1 << 8;

const ROOT = { uid: 0, euid: 0, suid: 0, fsuid: 0, gid: 0, egid: 0, sgid: 0, fsgid: 0 };
const NONE = [0, 0];
const NO_CAPS = { cap_inh: NONE, cap_prm: NONE, cap_eff: NONE, cap_bnd: NONE, cap_amb: NONE };
const USER = { uid: 1000, euid: 1000, suid: 1000, fsuid: 1000, gid: 5, egid: 5, sgid: 5, fsgid: 5 };

function probe(process: ProbedProcess): CredsEntry {
  return process.run((program) => {
    const status = readStatus(process.pid);
    const creds = probeCreds(program, status);
    return (result) => creds(result, status);
  });
}

function roundTrip(creds: CredsEntry): CredsEntry {
  return withSeed((seed) => {
    seed.run((program) => {
      const check = restoreCreds(program, creds);
      restoreNoNewPrivs(program, creds);
      return check;
    });
    return probe(seed);
  });
}

describe("credentials come back", () => {
  it("of root, as it was", () => {
    const creds = withSeed(probe);
    expect(creds.cap_prm[0]).not.toBe(0);
    expect(roundTrip(creds)).toEqual(creds);
  });

  it("of a plain user", () => {
    const creds: CredsEntry = {
      uid: 1000,
      euid: 1001,
      suid: 1002,
      fsuid: 1003,
      gid: 2000,
      egid: 2001,
      sgid: 2002,
      fsgid: 2003,
      ...NO_CAPS,
      secbits: 0,
      groups: [10, 3000, 4_000_000_000],
      no_new_privs: 1,
    };
    expect(roundTrip(creds)).toEqual(creds);
  });

  it("with some capabilities, ambient ones, and locked secure bits, but without CAP_SETPCAP", () => {
    const creds: CredsEntry = {
      ...USER,
      cap_inh: [NET_BIND_SERVICE | CHOWN, 0],
      cap_prm: [NET_BIND_SERVICE | CHOWN, 1 << 5],
      cap_eff: [CHOWN, 1 << 5],
      cap_bnd: [NET_BIND_SERVICE, 1 << 8],
      cap_amb: [NET_BIND_SERVICE, 0],
      secbits: 0xff & ~0x30, // all four with their locks, but for KEEP_CAPS; NO_CAP_AMBIENT_RAISE among them
      groups: [],
    };
    expect(roundTrip(creds)).toEqual(creds);
  });

  it("of root with dropped capabilities and KEEP_CAPS", () => {
    const creds: CredsEntry = {
      ...ROOT,
      cap_inh: NONE,
      cap_prm: [SETPCAP, 0],
      cap_eff: NONE,
      cap_bnd: [SETPCAP | CHOWN, 0],
      cap_amb: NONE,
      secbits: 0x10,
      groups: [0],
    };
    expect(roundTrip(creds)).toEqual(creds);
  });
});

describe("credentials that cannot be set are told", () => {
  const creds: CredsEntry = {
    ...ROOT,
    ...NO_CAPS,
    secbits: 0,
    groups: [7],
  };

  it("when groups may not be set", () => {
    withSeed((seed) => {
      seed.run((program) =>
        restoreCreds(program, {
          ...creds,
          groups: [],
          cap_prm: [SETPCAP | 0xc0, 0],
          cap_eff: [SETPCAP | 0x80, 0],
        }),
      );
      expect(() => seed.run((program) => restoreCreds(program, creds))).toThrow(
        /setgroups|setresgid/,
      );
    });
  });

  it("when a capability is not ours to give", () => {
    withSeed((seed) => {
      seed.run((program) =>
        restoreCreds(program, {
          ...creds,
          cap_prm: [SETPCAP | 0xc0, 0],
          cap_eff: [SETPCAP | 0xc0, 0],
          cap_bnd: [0xffff_ffff, 0x1ff],
        }),
      );
      expect(() =>
        seed.run((program) => restoreCreds(program, { ...creds, cap_prm: [CHOWN, 0] })),
      ).toThrow(/cannot set the capabilities: capset.*EPERM/);
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

  it("does not notice that its credentials were read", async () => {
    const program = await startProgram("creds", [], { dir: makeDir("creds") });
    started.push(program);
    await program.waitReady();
    const status = readStatus(program.pid);
    const creds = probeProcess(program.pid, probe);
    expect([creds.uid, creds.euid, creds.suid, creds.fsuid]).toEqual(Object.values(status.uid));
    expect([creds.gid, creds.egid, creds.sgid, creds.fsgid]).toEqual(Object.values(status.gid));
    expect(creds.groups).toEqual(status.groups);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});
