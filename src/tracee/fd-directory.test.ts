import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { readFdInfo } from "../proc/fdinfo.ts";
import { readFdStat } from "../proc/links.ts";
import { readProcLink } from "../proc/procfs.ts";
import { O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { syscall } from "../sys/ffi.ts";
import { FdDirectory } from "./fd-directory.ts";

it("reads many descriptors as each alone", () => {
  const root = mkdtempSync(join(tmpdir(), "reprise-fds-"));
  const deep = join(root, "a".repeat(200), "b".repeat(200));
  mkdirSync(deep, { recursive: true });
  const fds: number[] = [];
  try {
    for (let index = 0; index < 150; index += 1) {
      const path = join(index % 7 === 0 ? deep : root, `file-${index}`);
      fds.push(index % 5 === 0 ? syscall("eventfd2", index, O_CLOEXEC) : openSync(path, "w+"));
    }
    const { pid } = process;
    using directory = new FdDirectory(pid);
    directory.prepare(fds, ["infos", "stats", "targets"]);
    for (const fd of fds) {
      expect(directory.info(fd)).toEqual(readFdInfo({ pid, fd }));
      expect(directory.stat(fd)).toEqual(readFdStat(pid, fd));
      expect(directory.target(fd)).toBe(readProcLink(pid, `fd/${fd}`));
    }
  } finally {
    for (const fd of fds) closeSync(fd);
    rmSync(root, { recursive: true });
  }
});

it("says what is wrong with one that is closed", () => {
  const fds = Array.from({ length: 40 }, () => openSync("/dev/null", "r"));
  const closed = Math.max(...fds) + 1000;
  try {
    using directory = new FdDirectory(process.pid);
    directory.prepare([...fds, closed], ["infos", "stats", "targets"]);
    expect(() => directory.info(closed)).toThrow(`fdinfo/${closed}: read: ENOENT`);
    expect(() => directory.stat(closed)).toThrow("ENOENT");
    expect(() => directory.target(closed)).toThrow("ENOENT");
  } finally {
    for (const fd of fds) closeSync(fd);
  }
});
