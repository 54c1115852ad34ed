import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { parseLimits, readLimits, readLimitsIfAlive, UNLIMITED } from "./limits.ts";

const TEXT = `Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             18446744073709551614 unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96366                processes 
Max open files            20000                30000                files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         3                    4                    
Max realtime priority     5                    6                    
Max realtime timeout      unlimited            7                    us        
`;

describe("parseLimits()", () => {
  it("gives all sixteen by number, with and without units", () => {
    const limits = parseLimits(TEXT);
    expect(limits.map((limit) => limit.resource)).toStrictEqual([...Array(16).keys()]);
    expect(limits[1]).toStrictEqual({
      resource: 1,
      name: "RLIMIT_FSIZE",
      soft: 18446744073709551614n,
      hard: UNLIMITED,
    });
    expect(limits[7]).toMatchObject({ name: "RLIMIT_NOFILE", soft: 20000n, hard: 30000n });
    expect(limits[13]).toMatchObject({ name: "RLIMIT_NICE", soft: 3n, hard: 4n });
    expect(limits[15]).toMatchObject({ name: "RLIMIT_RTTIME", soft: UNLIMITED, hard: 7n });
  });

  it("keeps the numbers when a line is missing", () => {
    const limits = parseLimits(TEXT.replace(/Max data size.*\n/, ""));
    expect(limits).toHaveLength(15);
    expect(limits[2]).toMatchObject({ resource: 3, name: "RLIMIT_STACK", soft: 8388608n });
  });
});

describe("readLimits()", () => {
  it("reads what a child set", async () => {
    const script = "ulimit -S -n 123; ulimit -H -n 456; echo; read x";
    const child = spawn("bash", ["-c", script], { stdio: ["pipe", "pipe", "inherit"] });
    await once(child.stdout, "data");
    try {
      expect(readLimits(child.pid ?? 0)[7]).toMatchObject({ soft: 123n, hard: 456n });
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(readLimitsIfAlive(2 ** 30)).toBeUndefined();
  });
});
