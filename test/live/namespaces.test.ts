// Namespaces of a whole tree: names, limits, clocks, ids and numbers in them.

import { spawn, spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { readChildren } from "../../src/proc/children.ts";
import { readComm } from "../../src/proc/comm.ts";
import { readNsLastPid } from "../../src/proc/self.ts";
import { readStatus } from "../../src/proc/status.ts";
import {
  attachProgram,
  compileProgram,
  makeDir,
  removeDir,
  type RunningProgram,
} from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("namespaces");

test.each([
  ["nested_namespaces", "own"],
  ["nested_pids", "user", "early", "mnt", "uts"],
])("numbers that the kernel is asked for rewind nothing: %s", async (name, ...args) => {
  const program = await start(name, args);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  for (let count = 0; count < 100; count++) spawnSync("true");
  const last = readNsLastPid() ?? 0;
  const { pid } = await restore({ imagesDir });
  expect(readNsLastPid()).toBeGreaterThanOrEqual(last);
  expect(await endWithTest(attachProgram(name, pid, program.dir)).ask()).toBe("ok 1");
});

/** Runs unshare(1) with a program that waits in the new namespaces, until the end of the test; gives the pid of that program. */
async function holdNamespaces(...flags: string[]): Promise<number> {
  const holder = spawn("unshare", [...flags, "sleep", "600"], { stdio: "ignore" });
  const outer = holder.pid ?? 0;
  const forks = flags.includes("--fork");
  const isAway = (): boolean =>
    forks ? readChildren(outer).length > 0 : readComm(outer) === "sleep";
  await vi.waitUntil(isAway, { timeout: 5000, interval: 5 });
  const pid = forks ? (readChildren(outer)[0] ?? 0) : outer;
  onTestFinished(() => {
    process.kill(pid, "SIGKILL");
  });
  return pid;
}

/** Runs a test program with nsenter(1) in the namespaces of a process; gives the program proper. */
async function startInside(pid: number, flags: readonly string[]): Promise<RunningProgram> {
  const dir = makeDir("inside");
  onTestFinished(() => removeDir(dir));
  const out = openSync(join(dir, "out"), "a");
  const words = ["--target", String(pid), ...flags, "setsid", compileProgram("umask_cwd_root")];
  const nsenter = spawn("nsenter", words, { cwd: dir, stdio: ["ignore", out, out] });
  closeSync(out);
  const outer = nsenter.pid ?? 0;
  const forks = flags.includes("--pid");
  await attachProgram("nsenter", outer, dir).waitReady();
  return endWithTest(
    attachProgram("umask_cwd_root", forks ? (readChildren(outer)[0] ?? 0) : outer, dir),
  );
}

function namespaceOf(pid: number, kind: string): string {
  return readlinkSync(`/proc/${pid}/ns/${kind}`);
}

describe("namespaces of outside", () => {
  test("a pid namespace that is external, with another init", async () => {
    const init = await holdNamespaces("--pid", "--fork", "--mount-proc");
    const program = await startInside(init, ["--pid"]);
    const inode = /\d+/.exec(namespaceOf(init, "pid"))?.[0];
    const external = [`pid[${inode}]:extRootPidNS`];
    const numbers = readStatus(program.pid).nsPid;
    expect(numbers).toHaveLength(2);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, external });
    await expect(restore({ imagesDir })).rejects.toThrow("nobody brings extRootPidNS");
    const fd = openSync(`/proc/${init}/ns/pid`, "r");
    const inheritFds = new Map([["extRootPidNS", fd]]);
    const { pid } = await restore({ imagesDir, inheritFds });
    closeSync(fd);
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(namespaceOf(pid, "pid")).toBe(namespaceOf(init, "pid"));
    expect(readStatus(pid).nsPid[1]).toBe(numbers[1]);
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test("a network namespace that is external", async () => {
    const keeper = await holdNamespaces("--net");
    const program = await startInside(keeper, ["--net"]);
    const inode = /\d+/.exec(namespaceOf(keeper, "net"))?.[0];
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, external: [`net[${inode}]:extRootNetNS`] });
    const other = await holdNamespaces("--net");
    const fd = openSync(`/proc/${other}/ns/net`, "r");
    const { pid } = await restore({ imagesDir, inheritFds: new Map([["extRootNetNS", fd]]) });
    closeSync(fd);
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(namespaceOf(pid, "net")).toBe(namespaceOf(other, "net"));
    expect(await restored.finish()).toBe("pass");
  });

  test("namespaces that exist are joined", async () => {
    const keeper = await holdNamespaces("--net", "--uts", "--ipc");
    const program = await start("umask_cwd_root");
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const joined = (["net", "uts", "ipc"] as const).map((kind) => ({
      kind,
      path: `/proc/${keeper}/ns/${kind}`,
    }));
    const { pid } = await restore({ imagesDir, join: joined });
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    for (const { kind } of joined) expect(namespaceOf(pid, kind)).toBe(namespaceOf(keeper, kind));
    expect(namespaceOf(pid, "mnt")).toBe(namespaceOf(process.pid, "mnt"));
    expect(await restored.finish()).toBe("pass");
  });

  test("a namespace that is not there is told", async () => {
    const program = await start("umask_cwd_root");
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const missing = [{ kind: "net" as const, path: "/run/netns/reprise-not-there" }];
    await expect(restore({ imagesDir, join: missing })).rejects.toThrow(
      "cannot join the net namespace /run/netns/reprise-not-there: open: ENOENT",
    );
  });
});

test("a tree in a user namespace without a pid namespace comes back with its numbers, or in a new one", async () => {
  const dir = makeDir("user");
  onTestFinished(() => removeDir(dir));
  const out = openSync(join(dir, "out"), "a");
  const words = ["--user", "--map-root-user", "setsid", compileProgram("threads")];
  const unshared = spawn("unshare", words, { cwd: dir, stdio: ["ignore", out, out] });
  closeSync(out);
  const program = endWithTest(attachProgram("threads", unshared.pid ?? 0, dir));
  await program.waitReady();
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
  const { pid } = await restore({ imagesDir, newPidNamespace: true });
  const clone = endWithTest(attachProgram("threads", pid, dir));
  expect(await clone.ask()).toBe("ok 1");
  expect(await clone.finish()).toBe("pass");
  const again = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir: again });
  expect((await restore({ imagesDir: again })).pid).toBe(program.pid);
  const restored = endWithTest(attachProgram("threads", program.pid, dir));
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
});

const BUBBLEWRAP = "/usr/bin/bwrap";

const AS_SOMEBODY = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"];

test.skipIf(!existsSync(BUBBLEWRAP)).each([
  { by: "root", prefix: [] },
  // Its mounts and processes belong to a user namespace in which no process is left.
  { by: "somebody else", prefix: AS_SOMEBODY },
])("a sandbox of bubblewrap comes back twice, made by $by", async ({ prefix }) => {
  const dir = makeDir("bwrap");
  onTestFinished(() => removeDir(dir));
  const script = "echo inner > /tmp/note; exec sleep 600 > /tmp/out";
  const links = ["bin", "lib", "lib64"].flatMap((name) => ["--symlink", `usr/${name}`, `/${name}`]);
  const sandbox = ["--unshare-all", "--ro-bind", "/usr", "/usr", ...links, "--tmpfs", "/tmp"];
  const words = [
    ...prefix,
    BUBBLEWRAP,
    ...sandbox,
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "sh",
    "-c",
    script,
  ];
  // What this test process has open is no part of the sandbox.
  const bare = 'for fd in /proc/$$/fd/*; do n=${fd##*/}; ((n > 2)) && eval "exec $n>&-"; done';
  const shell = ["-c", `${bare}; exec setsid "$@"`, "bash", ...words];
  const started = spawn("bash", shell, { cwd: "/", stdio: "ignore" });
  let pid = started.pid ?? 0;
  const child = (of: number): number => readChildren(of)[0] ?? 0;
  // The first process in the sandbox does not end with the one outside.
  onTestFinished(() => {
    for (const one of [child(pid), pid]) process.kill(one, "SIGKILL");
  });
  const innermost = (): number => child(child(pid));
  const isReady = (): boolean => {
    try {
      return readComm(innermost()) === "sleep";
    } catch {
      return false;
    }
  };
  await vi.waitUntil(isReady, { timeout: 5000, interval: 10 });
  for (let round = 0; round < 2; round++) {
    const imagesDir = mkdtempSync(join(dir, "images-"));
    await checkpoint({ pid, imagesDir });
    pid = (await restore({ imagesDir })).pid;
    expect(readStatus(innermost()).nsPid.slice(1)).toEqual([2]);
    expect(readlinkSync(`/proc/${innermost()}/fd/1`)).toBe("/tmp/out");
    const inside = ["--target", String(innermost()), "--mount", "--pid"];
    const command = "cat /tmp/note /proc/1/comm; ls /";
    const { stdout } = spawnSync("nsenter", [...inside, "sh", "-c", command], { encoding: "utf8" });
    expect(stdout).toBe("inner\nbwrap\nbin\ndev\nlib\nlib64\nproc\ntmp\nusr\n");
  }
});
