import { describe, expect, it } from "vitest";
import { parseCgroups, readCgroups, readCgroupsIfAlive, readThreadCgroups } from "./cgroup.ts";

describe("parseCgroups()", () => {
  it("reads v1, named and v2 hierarchies, and paths with colons and blanks", () => {
    const text = "9:name=systemd:/\n4:cpu,cpuacct:/a b:c\n3::/odd\n0::/../x.scope (deleted)\n";
    expect(parseCgroups(text)).toStrictEqual([
      { hierarchy: 9, version: 1, controllers: ["name=systemd"], path: "/" },
      { hierarchy: 4, version: 1, controllers: ["cpu", "cpuacct"], path: "/a b:c" },
      { hierarchy: 3, version: 1, controllers: [], path: "/odd" },
      { hierarchy: 0, version: 2, controllers: [], path: "/../x.scope (deleted)" },
    ]);
  });

  it("gives nothing for an empty file", () => {
    expect(parseCgroups("")).toStrictEqual([]);
  });
});

describe("readCgroups()", () => {
  it("reads this process and its first thread", () => {
    const cgroups = readCgroups(process.pid);
    expect(cgroups.length).toBeGreaterThan(0);
    expect(cgroups.every((entry) => entry.path.startsWith("/"))).toBe(true);
    expect(readThreadCgroups(process.pid, process.pid)).toStrictEqual(cgroups);
    expect(readCgroupsIfAlive(2 ** 30)).toBeUndefined();
  });
});
