import { describe, expect, it } from "vitest";
import { parseMaps, readMaps, readMapsIfAlive } from "./maps.ts";

const area = {
  start: 0x5574930ae000,
  end: 0x5574930b2000,
  read: true,
  write: false,
  exec: false,
  shared: false,
  offset: 0,
  devMajor: 0xfe,
  devMinor: 0,
  inode: 260386n,
  path: "/usr/bin/head",
};
const HEAD =
  "5574930ae000-5574930b2000 r--p 00000000 fe:00 260386                     /usr/bin/head";

describe("parseMaps()", () => {
  it.each([
    ["a file", HEAD, area],
    [
      "anonymous memory, whose line ends behind the inode",
      "7fb1d0000000-7fb1d0021000 rw-p 00000000 00:00 0 ",
      {
        ...area,
        start: 0x7fb1d0000000,
        end: 0x7fb1d0021000,
        write: true,
        devMajor: 0,
        inode: 0n,
        path: "",
      },
    ],
    [
      "a shared deleted file with an offset above 4 GiB and a large inode",
      "7f0000000000-7f0000001000 r-xs 1fffff000 103:0a 18446744073709551615 /tmp/a (deleted)",
      {
        ...area,
        start: 0x7f0000000000,
        end: 0x7f0000001000,
        exec: true,
        shared: true,
        offset: 0x1fffff000,
        devMajor: 0x103,
        devMinor: 10,
        inode: 18446744073709551615n,
        path: "/tmp/a (deleted)",
      },
    ],
    [
      "vsyscall, whose addresses are above 2^53",
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
      {
        ...area,
        start: 0xffffffffff600000,
        end: 0xffffffffff601000,
        read: false,
        exec: true,
        devMajor: 0,
        inode: 0n,
        path: "[vsyscall]",
      },
    ],
  ])("reads %s", (_, line, expected) => {
    expect(parseMaps(`${line}\n`)).toStrictEqual([expected]);
  });

  it.each([
    ["blanks in and behind a name", "/tmp/a  b ", "/tmp/a  b "],
    ["a newline", String.raw`/tmp/a\012b`, "/tmp/a\nb"],
    ["backslashes that are the name's own", String.raw`/tmp/a\040\n`, String.raw`/tmp/a\040\n`],
    ["named anonymous memory", "[anon:a - b: c]", "[anon:a - b: c]"],
    ["letters outside ASCII", "/tmp/ü→", "/tmp/ü→"],
  ])("keeps %s", (_, raw, path) => {
    const text = `${HEAD.replace("/usr/bin/head", raw)}\n${HEAD}\n`;
    expect(parseMaps(text)).toStrictEqual([{ ...area, path }, area]);
  });

  it("gives nothing for an empty file", () => {
    expect(parseMaps("")).toStrictEqual([]);
  });
});

describe("readMaps()", () => {
  it("finds this program, its stack and its areas in order", () => {
    const vmas = readMaps(process.pid);
    expect(vmas.map((vma) => vma.path)).toEqual(
      expect.arrayContaining([process.execPath, "[stack]"]),
    );
    const user = vmas.filter((vma) => vma.path !== "[vsyscall]");
    expect(user.every((vma) => vma.start < vma.end && vma.end < 2 ** 47)).toBe(true);
    expect(user.every((vma, at) => at === 0 || vma.start >= (user[at - 1]?.end ?? 0))).toBe(true);
  });

  it("is undefined for a process that is not there", () => {
    expect(readMapsIfAlive(2 ** 30)).toBeUndefined();
  });
});
