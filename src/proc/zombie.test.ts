// A zombie has a number, parents and ids, but no memory, files or directories: a dump meets them in every
// tree, and each reader must say "nothing" and not "gone".
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readCgroups } from "./cgroup.ts";
import { readChildren } from "./children.ts";
import { readCmdline } from "./cmdline.ts";
import { readComm } from "./comm.ts";
import { readCoredumpFilter } from "./coredump-filter.ts";
import { readExe } from "./exe.ts";
import { readFds } from "./fd.ts";
import { readLimits } from "./limits.ts";
import { readMaps } from "./maps.ts";
import { readNamespaces } from "./ns.ts";
import { readPidUsage } from "./pid-usage.ts";
import { readSmaps } from "./smaps.ts";
import { readStat } from "./stat.ts";
import { readStatus } from "./status.ts";
import { readTasks } from "./tasks.ts";

let parent: ChildProcess;
let pid = 0;

beforeAll(async () => {
  // The shell turns into a program that never waits for the child that the shell made.
  const script = "exec 3<&0; sh -c 'read x; exit 3' <&3 & echo $!; exec sleep 60";
  parent = spawn("bash", ["-c", script], { stdio: ["pipe", "pipe", "inherit"] });
  if (parent.stdin === null || parent.stdout === null) throw new Error("no pipes");
  const [chunk] = (await once(parent.stdout, "data")) as [Buffer];
  pid = Number(chunk.toString());
  while (readComm(parent.pid ?? 0) !== "sleep") await sleep(2);
  parent.stdin.write("\n");
  while (readStat(pid).state !== "Z") await sleep(2);
}, 10_000);

afterAll(async () => {
  parent.kill("SIGKILL");
  await once(parent, "exit");
});

describe("a zombie", () => {
  it("has ids and an exit code", () => {
    expect(readStat(pid)).toMatchObject({ pid, ppid: parent.pid, comm: "sh", exitCode: 3 << 8 });
    expect(readStatus(pid)).toMatchObject({ pid, state: "Z", umask: undefined });
    expect(readTasks(pid)).toStrictEqual([pid]);
    expect(readCgroups(pid).length).toBeGreaterThan(0);
    expect(readLimits(pid)).toHaveLength(16);
    expect(readPidUsage([pid]).get(pid)).toMatchObject([{ role: "process", comm: "sh" }]);
    expect(readChildren(parent.pid ?? 0)).toStrictEqual([pid]);
  });

  it("has no memory, files, program or arguments", () => {
    expect(readSmaps(pid)).toStrictEqual([]);
    expect(readMaps(pid)).toStrictEqual([]);
    expect(readFds(pid)).toStrictEqual([]);
    expect(readCmdline(pid)).toStrictEqual([]);
    expect(readExe(pid)).toBeUndefined();
    expect(readCoredumpFilter(pid)).toBeUndefined();
    expect(readChildren(pid)).toStrictEqual([]);
  });

  it("keeps the user and pid namespaces alone", () => {
    const namespaces = readNamespaces(pid);
    expect(namespaces.user).toBe(readNamespaces(process.pid).user);
    expect(namespaces.net).toBeUndefined();
    expect(namespaces.mnt).toBeUndefined();
  });
});
