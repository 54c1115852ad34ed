import { describe, expect, it } from "vitest";
import { parseStat, readStat, readStatIfAlive, readThreadStat } from "./stat.ts";

const LINUX_6_18 =
  "4372 (cat) R 4370 4371 2697 34816 4372 4194304 102 1 2 3 4 5 6 7 20 -5 1 0 90640 3133440 390 18446744073709551615 93889164525568 93889164545449 140728022897776 8 9 10 11 12 13 14 15 16 17 1 50 2 18 19 21 93889164561456 93889164563072 93889662910464 140728022899426 140728022899446 140728022899447 140728022900715 9\n";

describe("parseStat()", () => {
  it("reads every field from its place", () => {
    expect(parseStat(LINUX_6_18)).toStrictEqual({
      pid: 4372,
      comm: "cat",
      state: "R",
      ppid: 4370,
      pgrp: 4371,
      session: 2697,
      ttyNr: 34816,
      tpgid: 4372,
      flags: 4194304,
      minflt: 102,
      cminflt: 1,
      majflt: 2,
      cmajflt: 3,
      utime: 4,
      stime: 5,
      cutime: 6,
      cstime: 7,
      priority: 20,
      nice: -5,
      numThreads: 1,
      itrealvalue: 0,
      starttime: 90640,
      vsize: 3133440,
      rss: 390,
      rsslim: 18446744073709551615n,
      startCode: 93889164525568,
      endCode: 93889164545449,
      startStack: 140728022897776,
      kstkesp: 8,
      kstkeip: 9,
      signal: 10,
      blocked: 11,
      sigignore: 12,
      sigcatch: 13,
      wchan: 14,
      nswap: 15,
      cnswap: 16,
      exitSignal: 17,
      processor: 1,
      rtPriority: 50,
      policy: 2,
      delayacctBlkioTicks: 18,
      guestTime: 19,
      cguestTime: 21,
      startData: 93889164561456,
      endData: 93889164563072,
      startBrk: 93889662910464,
      argStart: 140728022899426,
      argEnd: 140728022899446,
      envStart: 140728022899447,
      envEnd: 140728022900715,
      exitCode: 9,
    });
  });

  it.each(["a) S 1 (b", ") R 1 2 3", "((", "a\nb", "", "kworker/0:1-ev"])(
    "takes the name %j whole",
    (comm) => {
      const stat = parseStat(LINUX_6_18.replace("(cat)", `(${comm})`));
      expect(stat).toMatchObject({ pid: 4372, comm, state: "R", ppid: 4370, exitCode: 9 });
    },
  );

  it("throws INTERNAL on something else", () => {
    expect(() => parseStat("4372 (cat) R 1 2\n")).toThrow(
      expect.objectContaining({ code: "INTERNAL" }),
    );
  });
});

describe("readStat()", () => {
  it("reads this process and its first thread", () => {
    const stat = readStat(process.pid);
    expect(stat).toMatchObject({ pid: process.pid, ppid: process.ppid });
    expect(stat.numThreads).toBeGreaterThan(1);
    expect(stat.startStack).toBeGreaterThan(stat.startCode);
    expect(readThreadStat(process.pid, process.pid).starttime).toBe(stat.starttime);
  });

  it("is undefined for a process that is not there", () => {
    expect(readStatIfAlive(2 ** 30)).toBeUndefined();
  });
});
