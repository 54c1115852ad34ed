// The readers whose files are a line or a list: one table of texts each, and this process as it is.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { parseAutogroup, readAutogroup } from "./autogroup.ts";
import { parseAuxv, readAuxv, readAuxvIfAlive } from "./auxv.ts";
import { parseCmdline, readCmdline, readCmdlineIfAlive } from "./cmdline.ts";
import { parseComm, readComm, readCommIfAlive } from "./comm.ts";
import { parseCoredumpFilter, readCoredumpFilter } from "./coredump-filter.ts";
import { readLoginuid } from "./loginuid.ts";
import { parseNamespaceLink, readNamespaces, readThreadNamespaces } from "./ns.ts";
import { readOomScoreAdj, readOomScoreAdjIfAlive } from "./oom.ts";
import { readPersonality, readPersonalityIfAlive, readThreadPersonality } from "./personality.ts";
import {
  parseFilesystems,
  parseUptime,
  readBootId,
  readCapLastCap,
  readFilesystems,
  readNsLastPid,
  readPidMax,
  readUptime,
} from "./self.ts";
import { readTasks, readTasksIfAlive } from "./tasks.ts";
import { readTimerslack } from "./timerslack.ts";

const NOBODY = 2 ** 30;

describe("comm", () => {
  it.each([
    ["cat\n", "cat"],
    ["a\nb\n", "a\nb"],
    ["\n", ""],
    ["a \n", "a "],
  ])("parseComm(%j) is %j", (text, name) => expect(parseComm(text)).toBe(name));

  it("reads a process and its threads", () => {
    expect(readComm(process.ppid)).toBe(
      parseComm(readFileSync(`/proc/${process.ppid}/comm`, "utf8")),
    );
    expect(readCommIfAlive(NOBODY)).toBeUndefined();
  });
});

describe("cmdline", () => {
  it.each([
    ["", []],
    ["sh\0-c\0\0", ["sh", "-c", ""]],
    ["\0", [""]],
    ["nginx: master process", ["nginx: master process"]],
  ])("parseCmdline(%j) is %j", (text, args) => expect(parseCmdline(text)).toStrictEqual(args));

  it("reads the arguments of a child", async () => {
    const child = spawn("sleep", ["60", "0", "0"]);
    await once(child, "spawn");
    try {
      expect(readCmdline(child.pid ?? 0)).toStrictEqual(["sleep", "60", "0", "0"]);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(readCmdlineIfAlive(NOBODY)).toBeUndefined();
  });
});

describe("auxv", () => {
  it("parses little-endian pairs of 64 bits and drops a rest", () => {
    const bytes = new Uint8Array(41);
    bytes.set([33, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], 1);
    expect(parseAuxv(bytes.subarray(1))).toStrictEqual([
      { key: 33n, value: 0xfeffffffffffffffn },
      { key: 0n, value: 0n },
    ]);
  });

  it("reads the page size and the end mark of this process", () => {
    const auxv = readAuxv(process.pid);
    expect(auxv).toContainEqual({ key: 6n, value: 4096n });
    expect(auxv.some((entry) => entry.key === 0n)).toBe(true);
    expect(readAuxvIfAlive(NOBODY)).toBeUndefined();
  });
});

describe("autogroup", () => {
  it.each([
    ["/autogroup-10 nice 0\n", { id: 10, nice: 0 }],
    ["/autogroup-1234 nice -20\n", { id: 1234, nice: -20 }],
    ["", undefined],
  ])("parseAutogroup(%j) is %j", (text, group) => expect(parseAutogroup(text)).toEqual(group));

  it("throws for a process that is not there", () => {
    expect(() => readAutogroup(NOBODY)).toThrow(
      expect.objectContaining({ code: "NO_SUCH_PROCESS" }),
    );
  });
});

describe("coredump_filter", () => {
  it("is hexadecimal, and nothing for a task without memory", () => {
    expect(parseCoredumpFilter("000001ff\n")).toBe(0x1ff);
    expect(parseCoredumpFilter("")).toBeUndefined();
    const text = readFileSync(`/proc/${process.pid}/coredump_filter`, "utf8");
    expect(readCoredumpFilter(process.pid)?.toString(16).padStart(8, "0")).toBe(text.trim());
  });
});

describe("what a child set for itself", () => {
  it("is read back: oom_score_adj, timer slack, personality", async () => {
    const script =
      "echo 567 > /proc/self/oom_score_adj; echo 12345 > /proc/$$/timerslack_ns; echo; read x";
    const child = spawn("setarch", ["-R", "bash", "-c", script], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    const pid = child.pid ?? 0;
    try {
      expect(readOomScoreAdj(pid)).toBe(567);
      expect(readTimerslack(pid)).toBe(12345n);
      expect(readPersonality(pid)).toBe(0x0040000);
      expect(readThreadPersonality(pid, pid)).toBe(0x0040000);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
  });

  it("is undefined for a process that is not there", () => {
    expect(readOomScoreAdjIfAlive(NOBODY)).toBeUndefined();
    expect(readPersonalityIfAlive(NOBODY)).toBeUndefined();
  });
});

describe("loginuid", () => {
  it("reads this process's as the file says it", () => {
    const { stdout } = spawnSync("sh", ["-c", "cat /proc/$PPID/loginuid 2>/dev/null"]);
    const text = stdout.toString();
    expect(readLoginuid(process.pid)).toBe(text === "" ? undefined : Number(text));
  });
});

describe("namespaces", () => {
  it.each([
    ["net:[4026531833]", 4026531833],
    ["/proc/1/ns/net", undefined],
  ])("parseNamespaceLink(%j) is %j", (text, inode) => expect(parseNamespaceLink(text)).toBe(inode));

  it("differ for a child with another host name alone", async () => {
    const child = spawn("unshare", ["--uts", "sh", "-c", "echo; read x"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    try {
      const { uts, ...others } = readNamespaces(child.pid ?? 0);
      const { uts: ours, ...ourOthers } = readThreadNamespaces(process.pid, process.pid);
      expect(others).toStrictEqual(ourOthers);
      expect(others.mnt).toBeGreaterThan(0);
      expect(uts).toBeGreaterThan(0);
      expect(uts).not.toBe(ours);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(() => readNamespaces(NOBODY)).toThrow(
      expect.objectContaining({ code: "NO_SUCH_PROCESS" }),
    );
  });
});

describe("tasks", () => {
  it("lists the threads of this process in order, the leader too", () => {
    const tids = readTasks(process.pid);
    expect(tids.length).toBeGreaterThan(4);
    expect(tids).toContain(process.pid);
    expect(tids).toStrictEqual(tids.toSorted((a, b) => a - b));
    expect(readTasksIfAlive(NOBODY)).toBeUndefined();
  });
});

describe("the system", () => {
  it("parses uptime and filesystems", () => {
    expect(parseUptime("906.41 1708.93\n")).toStrictEqual({ up: 906.41, idle: 1708.93 });
    expect([...parseFilesystems("nodev\tproc\n\text4\nnodev\tfuse.x\n")]).toStrictEqual([
      "proc",
      "ext4",
      "fuse.x",
    ]);
  });

  it("reads the numbers of this system", () => {
    expect(readPidMax()).toBeGreaterThan(process.pid);
    expect(readNsLastPid()).toBeLessThan(readPidMax());
    expect(readCapLastCap()).toBeGreaterThanOrEqual(39);
    expect(readBootId()).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    expect(readUptime().up).toBeGreaterThan(0);
    expect(readFilesystems().has("proc")).toBe(true);
  });
});
