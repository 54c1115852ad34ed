import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { findHolders, readPidUsage } from "./pid-usage.ts";
import { readTasks } from "./tasks.ts";

describe("findHolders()", () => {
  const processes = [
    { pid: 30, comm: "late", pgrp: 7, session: 5, tids: [] },
    { pid: 20, comm: "many", pgrp: 7, session: 5, tids: [20, 21, 22] },
    { pid: 10, comm: "leader", pgrp: 10, session: 10, tids: [] },
  ];

  it("names the holder of each kind, the one with the lowest pid", () => {
    expect([...findHolders(new Set([5, 7, 10, 21, 99]), processes)]).toStrictEqual([
      [
        10,
        [
          { role: "process", pid: 10, comm: "leader" },
          { role: "process group", pid: 10, comm: "leader" },
          { role: "session", pid: 10, comm: "leader" },
        ],
      ],
      [21, [{ role: "thread", pid: 20, comm: "many" }]],
      [7, [{ role: "process group", pid: 20, comm: "many" }]],
      [5, [{ role: "session", pid: 20, comm: "many" }]],
    ]);
  });
});

describe("readPidUsage()", () => {
  it("finds processes, threads, groups and sessions, and frees them with the last member", async () => {
    const child = spawn("sleep", ["60"], { detached: true });
    await once(child, "spawn");
    const pid = child.pid ?? 0;
    const tid = readTasks(process.pid).find((id) => id !== process.pid) ?? 0;
    const usage = readPidUsage([pid, tid, 2 ** 30]);
    process.kill(pid, "SIGKILL");
    await once(child, "exit");
    expect(usage.get(pid)?.map((holder) => holder.role)).toStrictEqual([
      "process",
      "process group",
      "session",
    ]);
    expect(usage.get(tid)).toMatchObject([{ role: "thread", pid: process.pid }]);
    expect(usage.has(2 ** 30)).toBe(false);
    expect(readPidUsage([pid]).size).toBe(0);
    expect(readPidUsage([]).size).toBe(0);
  });
});
