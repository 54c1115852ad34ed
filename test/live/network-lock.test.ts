// The lock that one engine leaves behind is taken away by the other: it goes by its name.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { NetNamespace } from "../../src/objects/network/net-namespace.fixture.ts";
import {
  attachProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";

const CRIU = process.env["REPRISE_REAL_CRIU"];

describe.skipIf(CRIU === undefined)("the network lock of Reprise and CRIU", () => {
  let dir: string;
  let program: RunningProgram;

  beforeEach(() => {
    dir = makeDir("lock");
  });

  afterEach(async () => {
    await killProgram(program);
    removeDir(dir);
  });

  it.each([
    ["nftables", "CRIU"],
    ["nftables", "Reprise"],
    ["iptables", "CRIU"],
    ["iptables", "Reprise"],
  ] as const)("by %s is left by %s and taken away by the other", async (method, first) => {
    using net = new NetNamespace();
    const started = await net.inside(() => startProgram("cloexec", [], { dir }));
    program = started;
    await started.waitReady();
    const imagesDir = mkdtempSync(join(dir, "images-"));
    const target = { kind: "net", path: `/proc/${process.pid}/fd/${net.fd}` } as const;
    const criu = (...args: readonly string[]): void => {
      const run = spawnSync(CRIU as string, [...args, "-D", imagesDir], { encoding: "utf8" });
      expect(run.status, run.stderr).toBe(0);
    };
    if (first === "CRIU") {
      criu("dump", "-t", String(started.pid), "--network-lock", method);
      expect(rules(net)).toMatch(/CRIU/);
      const { pid } = await restore({ imagesDir, join: [target] });
      program = attachProgram("cloexec", pid, dir);
    } else {
      await checkpoint({ pid: started.pid, imagesDir, networkLock: method });
      expect(rules(net)).toMatch(/CRIU/);
      criu("restore", "-d", "--join-ns", `net:${target.path}`);
    }
    expect(await program.ask()).toBe("ok 1");
    expect(rules(net)).not.toMatch(/CRIU/);
  });
});

function rules(net: NetNamespace): string {
  const command = "nft list ruleset; iptables-legacy-save";
  return net.inside(() => execFileSync("sh", ["-c", command], { encoding: "utf8" }));
}
