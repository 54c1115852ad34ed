import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { parseChildren, readChildren, readChildrenIfAlive, scanForChildren } from "./children.ts";

describe("parseChildren()", () => {
  it.each([
    ["", []],
    ["12 ", [12]],
    ["12 7 4194303 ", [12, 7, 4194303]],
  ])("of %j is %j", (text, pids) => expect(parseChildren(text)).toStrictEqual(pids));
});

describe("readChildren()", () => {
  it("finds the children of a shell, both ways alike", async () => {
    const script = "sleep 60 & sleep 61 & echo $(jobs -p); exec sleep 62";
    const shell = spawn("bash", ["-c", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [chunk] = (await once(shell.stdout, "data")) as [Buffer];
    const jobs = chunk.toString().trim().split(" ").map(Number);
    const pid = shell.pid ?? 0;
    try {
      expect(readChildren(pid)).toStrictEqual(jobs);
      expect(scanForChildren(pid)).toStrictEqual(jobs);
      expect(readChildren(process.pid)).toContain(pid);
    } finally {
      for (const job of [...jobs, pid]) process.kill(job, "SIGKILL");
      await once(shell, "exit");
    }
    expect(readChildrenIfAlive(2 ** 30)).toBeUndefined();
  });
});
