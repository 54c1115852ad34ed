// What criu(8) promises of --manage-cgroups and --cgroup-props, by the command line: on this machine's hierarchies, and where a
// pure v2 mount is all there is. And threads that are in other cgroups than their process.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { hierarchyName } from "../../src/objects/cgroups/hierarchies.ts";
import { readCgroups, readThreadCgroups } from "../../src/proc/cgroup.ts";
import { readTasksIfAlive } from "../../src/proc/tasks.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";
import { bringBack, cgroupOf, enter, isMounted, isRemoved, makeCgroup } from "./test-cgroups.ts";

const CRIU = fileURLToPath(new URL("../../bin/criu", import.meta.url));

/** [where the engine runs, a hierarchy, a setting in it] */
const PLACES = (
  [
    ["here", "pids", "pids.max"],
    ["here", "", "cgroup.max.depth"],
    ["where only v2 is mounted", "", "cgroup.max.depth"],
  ] as const
).filter(
  ([, hierarchy]) =>
    readCgroups(process.pid).some((one) => hierarchyName(one) === hierarchy) &&
    isMounted(hierarchy),
);

describe.each(PLACES)("%s, in the hierarchy '%s'", (place, hierarchy, setting) => {
  test("with the modes none and props a cgroup must be there, and with props it gets its settings", async () => {
    const home = makeCgroup(hierarchy, "home");
    writeFileSync(join(home.directory, setting), "77");
    const program = await start("counter");
    enter(home, program.pid);
    const imagesDir = imagesDirOf(program);
    await run(place, ["dump", "-D", imagesDir, "-t", String(program.pid), "-o", "dump.log"]);
    await expect.poll(() => isRemoved(home.directory)).toBe(true);
    for (const mode of ["none", "props"])
      expect(await tryRestore(place, imagesDir, mode)).toContain("there is no such cgroup");
    mkdirSync(home.directory);
    const unset = readFileSync(join(home.directory, setting), "utf8");
    expect(unset).not.toBe("77\n");

    const first = await restored(program, place, imagesDir, ["--manage-cgroups=none"]);
    expect(cgroupOf(first.pid, hierarchy)).toBe(home.path);
    expect(readFileSync(join(home.directory, setting), "utf8")).toBe(unset);
    expect(await first.ask()).toBe("ok 1");
    await run(place, [
      "dump",
      "-D",
      imagesDir,
      "-t",
      String(first.pid),
      "-o",
      "dump2.log",
      "--manage-cgroups=none",
    ]);
    await expect.poll(() => isRemoved(home.directory)).toBe(true);
    mkdirSync(home.directory);
    writeFileSync(join(home.directory, setting), "88");

    const second = await restored(program, place, imagesDir, ["--manage-cgroups=props"]);
    expect(readFileSync(join(home.directory, setting), "utf8")).toBe(unset);
    expect(await second.ask()).toBe("ok 2");
    expect(await second.finish()).toBe("pass");
  });
});

test.skipIf(!PLACES.some(([, hierarchy]) => hierarchy === "pids"))(
  "only the settings that the caller lists are saved",
  async () => {
    const home = makeCgroup("pids", "home");
    const limit = join(home.directory, "pids.max");
    const program = await start("counter");
    const imagesDir = imagesDirOf(program);
    const lists = join(imagesDir, "lists");
    const none = `"pids":\n - "strategy": "replace"\n - "properties": []\n`;
    writeFileSync(lists, `"pids":\n - "strategy": "merge"\n - "properties": [ "pids.max" ]\n`);
    let current: RunningProgram = program;
    for (const [options, wanted] of [
      [["--cgroup-props", none], "max\n"],
      [["--cgroup-dump-controller", "memory"], "max\n"],
      [["--cgroup-props", none, "--cgroup-props-file", lists], "55\n"],
    ] as const) {
      writeFileSync(limit, "55");
      enter(home, current.pid);
      await run("here", [
        "dump",
        "-D",
        imagesDir,
        "-t",
        String(current.pid),
        "-o",
        "dump.log",
        ...options,
      ]);
      await expect.poll(() => isRemoved(home.directory)).toBe(true);
      current = await restored(program, "here", imagesDir, ["--manage-cgroups=soft"]);
      expect(cgroupOf(current.pid, "pids")).toBe(home.path);
      expect(readFileSync(limit, "utf8")).toBe(wanted);
    }
    expect(await current.finish()).toBe("pass");
  },
);

test.skipIf(!isMounted("pids") || !isMounted(""))(
  "a tree in cgroups of both versions comes back in both",
  async () => {
    const first = makeCgroup("pids", "home");
    const second = makeCgroup("", "home");
    const program = await start("counter");
    enter(first, program.pid);
    enter(second, program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    for (const { directory } of [first, second])
      await expect.poll(() => isRemoved(directory)).toBe(true);
    const back = await bringBack(program, imagesDir);
    expect(cgroupOf(back.pid, "pids")).toBe(first.path);
    expect(cgroupOf(back.pid, "")).toBe(second.path);
    expect(await back.finish()).toBe("pass");
  },
);

describe("threads in other cgroups than their process", () => {
  test.skipIf(!isMounted("pids"))("on v1", async () => {
    const home = makeCgroup("pids", "home");
    const other = makeCgroup("pids", "other", home.path);
    const program = await start("threads");
    enter(home, program.pid);
    const [, thread = 0] = readTasksIfAlive(program.pid) ?? [];
    writeFileSync(join(other.directory, "tasks"), String(thread));
    await comeBack(program, thread, "pids", [home.path, other.path]);
  });

  test.skipIf(!isMounted(""))("on v2, in a threaded cgroup", async () => {
    const home = makeCgroup("", "home");
    const other = makeCgroup("", "other", home.path);
    writeFileSync(join(other.directory, "cgroup.type"), "threaded");
    const program = await start("threads");
    enter(home, program.pid);
    const [, thread = 0] = readTasksIfAlive(program.pid) ?? [];
    writeFileSync(join(other.directory, "cgroup.threads"), String(thread));
    await comeBack(program, thread, "", [home.path, other.path]);
    expect(readFileSync(join(other.directory, "cgroup.type"), "utf8")).toBe("threaded\n");
  });
});

/** The cgroups are gone and made again, and every thread is where it was. */
async function comeBack(
  program: RunningProgram,
  thread: number,
  hierarchy: string,
  [home, other]: readonly [string, string],
): Promise<void> {
  const places = (pid: number): Map<number, string | undefined> =>
    new Map(
      (readTasksIfAlive(pid) ?? []).map((tid) => [
        tid,
        readThreadCgroups(pid, tid).find((one) => hierarchyName(one) === hierarchy)?.path,
      ]),
    );
  const before = places(program.pid);
  expect(before.get(thread)).toBe(other);
  expect(before.get(program.pid)).toBe(home);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  const back = await bringBack(program, imagesDir);
  expect(places(back.pid)).toEqual(before);
  expect(await back.ask()).toBe("ok 1");
  expect(await back.finish()).toBe("pass");
}

type Place = (typeof PLACES)[number][0];

/** A mount namespace of its own, in which only v2 is mounted, as on a machine that was started so. */
const ONLY_V2 = [
  "unshare",
  "-m",
  "--propagation=private",
  "sh",
  "-c",
  'umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"',
  "sh",
];

/** Waits without blocking: the programs are children of ours, and must be reaped. */
async function criu(place: Place, args: readonly string[]): Promise<unknown> {
  const [command = "", ...rest] = [...(place === "here" ? [] : ONLY_V2), CRIU, ...args];
  const [status] = await once(spawn(command, rest, { timeout: 20_000, stdio: "ignore" }), "exit");
  return status as unknown;
}

/** Runs a command that must succeed. */
async function run(place: Place, args: readonly string[]): Promise<void> {
  const status = await criu(place, args);
  const [, , imagesDir = ""] = args;
  const log = args[args.indexOf("-o") + 1] ?? "";
  expect(status, readFileSync(join(imagesDir, log), "utf8")).toBe(0);
}

/** What a restore that must fail says. */
async function tryRestore(place: Place, imagesDir: string, mode: string): Promise<string> {
  const args = ["restore", "-D", imagesDir, "-d", "-o", "refused.log", `--manage-cgroups=${mode}`];
  expect(await criu(place, args)).not.toBe(0);
  return readFileSync(join(imagesDir, "refused.log"), "utf8");
}

let restores = 0;

async function restored(
  program: RunningProgram,
  place: Place,
  imagesDir: string,
  options: readonly string[],
): Promise<RunningProgram> {
  const pidfile = join(imagesDir, `pid-${++restores}`);
  await run(place, [
    "restore",
    "-D",
    imagesDir,
    "-d",
    "-o",
    "restore.log",
    "--pidfile",
    pidfile,
    ...options,
  ]);
  const pid = Number(readFileSync(pidfile, "utf8"));
  return endWithTest(attachProgram(program.name, pid, program.dir));
}
