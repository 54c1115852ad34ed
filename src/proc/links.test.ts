import {
  closeSync,
  mkdtempSync,
  openSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readExe, readExeIfAlive } from "./exe.ts";
import {
  deviceMajor,
  deviceMinor,
  mapFilePath,
  readCwd,
  readFdStat,
  readMapFile,
  readRoot,
} from "./links.ts";
import { readMaps } from "./maps.ts";

const exe = realpathSync(process.execPath);

describe("readExe(), readCwd(), readRoot()", () => {
  it("give the text and the file behind it", async () => {
    const child = spawn(exe, ["-e", "setTimeout(() => {}, 60000)"], { cwd: "/tmp" });
    await once(child, "spawn");
    const pid = child.pid ?? 0;
    try {
      const program = readExe(pid);
      expect(program?.target).toBe(exe);
      expect(program?.stat.inode).toBe(statSync(exe, { bigint: true }).ino);
      expect(program?.stat.size).toBe(statSync(exe, { bigint: true }).size);
      expect(readCwd(pid)).toMatchObject({ target: "/tmp", stat: { inode: inode("/tmp") } });
      expect(readRoot(pid)).toMatchObject({ target: "/", stat: { inode: inode("/") } });
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(readExeIfAlive(2 ** 30)).toBeUndefined();
  });
});

describe("readMapFile()", () => {
  it("agrees with maps about device and inode, and knows memory without a file", () => {
    const vmas = readMaps(process.pid);
    const vma = vmas.find((candidate) => candidate.path === exe) ?? { start: 0, end: 0 };
    const file = readMapFile(process.pid, vma);
    expect(file?.target).toBe(exe);
    expect(vma).toMatchObject({
      devMajor: file?.stat.devMajor,
      devMinor: file?.stat.devMinor,
      inode: file?.stat.inode,
    });
    expect(readMapFile(process.pid, { start: 4096, end: 8192 })).toBeUndefined();
  });

  it("writes addresses as the kernel wants them", () => {
    expect(mapFilePath(12, { start: 0x400000, end: 0x7f00abcdf000 })).toBe(
      "/proc/12/map_files/400000-7f00abcdf000",
    );
  });
});

describe("readFdStat()", () => {
  it("reaches a file whose name is gone", () => {
    const dir = mkdtempSync(join(tmpdir(), "links-"));
    const path = join(dir, "file");
    writeFileSync(path, "12345", { mode: 0o640 });
    const fd = openSync(path, "r");
    rmSync(dir, { recursive: true });
    const stat = readFdStat(process.pid, fd);
    closeSync(fd);
    expect(stat).toMatchObject({ nlink: 0, size: 5n, mode: 0o100640 });
  });

  it("tells the number of a device file", () => {
    const fd = openSync("/dev/null", "r");
    const stat = readFdStat(process.pid, fd);
    closeSync(fd);
    expect(stat).toMatchObject({ rdevMajor: 1, rdevMinor: 3 });
  });
});

describe("deviceMajor(), deviceMinor()", () => {
  it.each([
    [0x103n, 1, 3],
    [0xfe00n, 254, 0],
    [0x2bcde18765412332n, 0x2bcde123, 0x18765432],
  ])("of %s", (dev, major, minor) => {
    expect([deviceMajor(dev), deviceMinor(dev)]).toStrictEqual([major, minor]);
  });
});

function inode(path: string): bigint {
  return statSync(path, { bigint: true }).ino;
}
