import { openSync, closeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { readFdInfo } from "./fdinfo.ts";
import { mountsById, parseMountinfo, readMountinfo, readMountinfoIfAlive } from "./mountinfo.ts";

const root = {
  mntId: 27,
  parentId: 1,
  devMajor: 254,
  devMinor: 0,
  root: "/",
  mountPoint: "/",
  options: ["rw", "relatime"],
  shared: undefined,
  master: undefined,
  propagateFrom: undefined,
  unbindable: false,
  otherFields: [],
  fsType: "ext4",
  source: "/dev/vda",
  superOptions: ["rw", "discard"],
};

describe("parseMountinfo()", () => {
  it.each([
    ["no optional fields", "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard", {}],
    [
      "all optional fields, and one that is new",
      "27 1 254:0 / / rw,relatime shared:1 master:22 propagate_from:3 new:4 unbindable - ext4 /dev/vda rw,discard",
      { shared: 1, master: 22, propagateFrom: 3, unbindable: true, otherFields: ["new:4"] },
    ],
    [
      "escaped names",
      String.raw`27 1 254:0 /a\040b//deleted /mnt\011\012\134040 rw,relatime - fuse.a\040b a\040\043b rw,lowerdir=/a\040b`,
      {
        root: "/a b//deleted",
        mountPoint: "/mnt\t\n\\040",
        fsType: "fuse.a b",
        source: "a #b",
        superOptions: ["rw", "lowerdir=/a b"],
      },
    ],
    [
      "a mount point and a source that look like the separator",
      "27 1 254:0 / - rw,relatime - ext4 - rw,discard",
      { mountPoint: "-", source: "-" },
    ],
    [
      "an empty source",
      "27 1 254:0 / / rw,relatime shared:5 - ext4  rw,discard",
      { shared: 5, source: "" },
    ],
  ])("reads %s", (_, line, expected) => {
    expect(parseMountinfo(`${line}\n`)).toStrictEqual([{ ...root, ...expected }]);
  });

  it("skips what is not a mount", () => {
    expect(parseMountinfo("\nhello\n")).toStrictEqual([]);
  });
});

describe("readMountinfo()", () => {
  it("has the mount that a descriptor names", () => {
    const fd = openSync("/proc/self/stat", "r");
    const { mntId } = readFdInfo({ pid: process.pid, fd });
    closeSync(fd);
    const mounts = mountsById(readMountinfo(process.pid));
    expect(mounts.get(mntId)).toMatchObject({ mntId, fsType: "proc", mountPoint: "/proc" });
    expect(readMountinfoIfAlive(2 ** 30)).toBeUndefined();
  });
});
