// A process that this one makes itself: it has the wanted pid, the wanted parent, and in a new user namespace it is root.

import { readFileSync, writeFileSync } from "node:fs";
import { expect, onTestFinished, test } from "vitest";
import { CLONE_NEWUSER } from "../sys/abi/sched.ts";
import { readPidMax } from "../proc/self.ts";
import { readStatus } from "../proc/status.ts";
import { sendSignal } from "../sys/process.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { startSeed, workAreaAt, type SeedAs } from "./seed.ts";
import type { Tracee } from "./tracee.ts";

/** Numbers that are hardly ever in use; others each time, as nobody reaps these processes while the tests run. */
const FIRST_PID = readPidMax() - 100 - Math.floor(Math.random() * 1000);
const TRIALS = 10;

function start(as: SeedAs): Tracee {
  const seed = startSeed(workAreaAt(0x1000_0000, 0x10_0000), { stops: 0, remoteCalls: 0 }, as);
  onTestFinished(() => sendSignal(seed.tid, SIGKILL));
  return seed;
}

test("has the wanted pid, and our own parent", () => {
  const seed = start({ pid: FIRST_PID, flags: 0 });
  expect(seed.tid).toBe(FIRST_PID);
  const { ppid, tracerPid } = readStatus(seed.tid);
  expect(ppid).toBe(process.ppid);
  expect(tracerPid).toBe(process.pid);
});

test("is root in its user namespace, however late it comes to wait for the maps", () => {
  for (let trial = 1; trial <= TRIALS; trial++) {
    const seed = start({
      pid: FIRST_PID + trial,
      flags: CLONE_NEWUSER,
      beforeProgram: (pid) => {
        expect(pid).toBe(FIRST_PID + trial);
        for (const map of ["uid_map", "gid_map"]) writeMap(pid, map);
      },
    });
    const status = readFileSync(`/proc/${seed.tid}/status`, "utf8");
    expect(status).toMatch(/^Uid:\t100000\t/m);
    expect(status).toMatch(/^Gid:\t100000\t/m);
    expect(status).toMatch(/^CapEff:\t[0-9a-f]*f{8}$/m);
  }
});

function writeMap(pid: number, name: string): void {
  writeFileSync(`/proc/${pid}/${name}`, "0 100000 65536");
}
