// Cgroups through dump and restore: where a restored tree lives, by what its caller said; settings of cgroups that are made anew;
// trees in frozen cgroups.

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { Hierarchies, hierarchyName } from "../../src/objects/cgroups/hierarchies.ts";
import { readCgroups } from "../../src/proc/cgroup.ts";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";
import {
  bringBack,
  cgroupOf,
  childrenOf,
  enter,
  isMounted,
  isRemoved,
  makeCgroup,
  members,
} from "./test-cgroups.ts";

const CRIU = fileURLToPath(new URL("../../bin/criu", import.meta.url));

/** Hierarchies of this machine in which the tests make cgroups: the unified one, and that of pids where it is v1. */
const HIERARCHIES = readCgroups(process.pid)
  .map(hierarchyName)
  .filter((name) => (name === "" || name === "pids") && isMounted(name));

describe.each(HIERARCHIES)("in the hierarchy '%s'", (hierarchy) => {
  test("a cgroup that is gone is made again, with its settings", async () => {
    const home = makeCgroup(hierarchy, "home");
    const setting = hierarchy === "pids" ? "pids.max" : "cgroup.max.depth";
    writeFileSync(join(home.directory, setting), "77");
    const program = await start("counter");
    enter(home, program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    await expect.poll(() => isRemoved(home.directory)).toBe(true);
    const restored = await bringBack(program, imagesDir);
    expect(cgroupOf(restored.pid, hierarchy)).toBe(home.path);
    expect(readFileSync(join(home.directory, setting), "utf8")).toBe("77\n");
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test("the root that the caller names stands for the recorded one", async () => {
    const home = makeCgroup(hierarchy, "home");
    const other = makeCgroup(hierarchy, "other");
    const program = await start("many_tasks", ["3"]);
    enter(home, program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const roots = [{ controller: hierarchy, path: other.path }];
    const restored = await bringBack(program, imagesDir, { cgroups: { mode: "soft", roots } });
    expect(cgroupOf(restored.pid, hierarchy)).toBe(other.path);
    expect(members(home)).toEqual([]);
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test("a tree goes where its caller put the restorer, and the restorer leaves", async () => {
    const home = makeCgroup(hierarchy, "home");
    const other = makeCgroup(hierarchy, "other");
    const program = await start("counter");
    enter(home, program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const pidfile = join(imagesDir, "pid");
    const script = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"';
    const args = ["restore", "-D", imagesDir, "-d", "--pidfile", pidfile, "-o", "restore.log"];
    const { status } = spawnSync("sh", ["-c", script, "sh", other.directory, CRIU, ...args], {
      timeout: 20_000,
    });
    expect(status, readFileSync(join(imagesDir, "restore.log"), "utf8")).toBe(0);
    const pid = Number(readFileSync(pidfile, "utf8"));
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(cgroupOf(pid, hierarchy)).toBe(other.path);
    expect(members(other)).toEqual([pid]);
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test("with the mode ignore it stays where the restorer is, with the mode strict nothing may be there", async () => {
    const home = makeCgroup(hierarchy, "home");
    const program = await start("counter");
    enter(home, program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    await expect(restore({ imagesDir, cgroups: { mode: "strict" } })).rejects.toThrow(
      new RegExp(`cannot restore the cgroup ${home.path} .*: it exists`),
    );
    const restored = await bringBack(program, imagesDir, { cgroups: { mode: "ignore" } });
    expect(cgroupOf(restored.pid, hierarchy)).toBe(cgroupOf(process.pid, hierarchy));
    expect(await restored.finish()).toBe("pass");
  });
});

describe.each(
  readCgroups(process.pid)
    .map(hierarchyName)
    .filter((name) => (name === "" || name === "freezer") && isMounted(name)),
)("the freezer of the hierarchy '%s'", (hierarchy) => {
  const [file, frozen, thawed] =
    hierarchy === "" ? ["cgroup.freeze", "1", "0"] : ["freezer.state", "FROZEN", "THAWED"];

  test.each([
    ["that is frozen is so afterwards", true],
    ["that is not frozen is not afterwards", false],
  ])("a cgroup %s", async (_title, isFrozen) => {
    const home = makeCgroup(hierarchy, "home");
    const program = await start("many_tasks", ["3"]);
    enter(home, program.pid);
    for (const child of childrenOf(program.pid)) enter(home, child);
    const state = join(home.directory, file);
    if (isFrozen) writeFileSync(state, frozen);
    await checkpoint({
      pid: program.pid,
      imagesDir: imagesDirOf(program),
      leave: "running",
      ...(isFrozen ? {} : { freezeCgroup: home.directory }),
    });
    await expect.poll(() => readFileSync(state, "utf8").trim()).toBe(isFrozen ? frozen : thawed);
    writeFileSync(state, thawed);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });

  test("a cgroup without a freezer is no failure, that of the engine is refused", async () => {
    const program = await start("counter");
    const imagesDir = imagesDirOf(program);
    const own = new Hierarchies().directory(hierarchy, cgroupOf(process.pid, hierarchy) ?? "/");
    const refused = checkpoint({ pid: program.pid, imagesDir, freezeCgroup: own });
    await expect(refused).rejects.toThrow("the engine itself is in it");
    await checkpoint({ pid: program.pid, imagesDir, leave: "running", freezeCgroup: "/proc/sys" });
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});

test.skipIf(!isMounted("cpuset"))("a cpuset that is made gets what is above it", async () => {
  const home = makeCgroup(HIERARCHIES[0] ?? "", "home");
  const program = await start("counter");
  enter(home, program.pid);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  const other = makeCgroup("cpuset", "other");
  expect(isRemoved(other.directory)).toBe(true);
  const roots = [{ controller: "cpuset", path: other.path }];
  const restored = await bringBack(program, imagesDir, { cgroups: { mode: "soft", roots } });
  expect(cgroupOf(restored.pid, "cpuset")).toBe(other.path);
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
});
