// Plain runc: a container comes back, under its own id and as a clone with another id, bundle and cgroup, which is saved again.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import {
  canHost,
  hasProgram,
  lastLines,
  logsBelow,
  startHost,
  type CgroupVersion,
  type Host,
} from "./host.ts";

const COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.2; done > /root/count";

describe.each(["v1", "v2"] as const)("runc on cgroup %s", (version: CgroupVersion) => {
  const can = canHost(version) && hasProgram("runc");
  let host: Host;
  let parent: string;
  beforeAll(async () => {
    if (!can) return;
    host = await startHost(version);
    parent = host.cgroup;
  }, 60_000);
  afterAll(async () => {
    if (!can) return;
    await host.stop();
  }, 60_000);

  test(
    "a container, its restore, and its clone, saved again",
    { timeout: 60_000 },
    async (context) => {
      if (!can) context.skip("no runc, or no such cgroups");
      const bundle = makeBundle(host, "looper", `/${parent}/looper`);
      runDetached(host, runc(host, "run", "--detach", "--bundle", bundle, "looper"));
      onTestFinished(() => void host.try(...runc(host, "delete", "--force", "looper")));
      const count = join(bundle, "rootfs/root/count");
      await counted(count, 3);

      const images = join(host.dir, "images");
      host.run(
        ...runc(host, "checkpoint", "--image-path", images, "--work-path", images, "looper"),
      );
      const saved = numbers(count).length;
      const restore = [
        "restore",
        "--detach",
        "--image-path",
        images,
        "--work-path",
        images,
      ] as const;
      runDetached(host, runc(host, ...restore, "--bundle", bundle, "looper"));
      await counted(count, saved + 3);
      expectNoGap(numbers(count));
      expectCgroup(host, "looper", `/${parent}/looper`);

      // The same images, another container: its own bundle and its own cgroup.
      const twin = makeBundle(host, "twin", `/${parent}/twin`);
      writeFileSync(
        join(twin, "rootfs/root/count"),
        numbers(count).slice(0, saved).join("\n") + "\n",
      );
      runDetached(host, runc(host, ...restore, "--bundle", twin, "twin"));
      onTestFinished(() => void host.try(...runc(host, "delete", "--force", "twin")));
      const twinCount = join(twin, "rootfs/root/count");
      await counted(twinCount, saved + 3);
      expectCgroup(host, "twin", `/${parent}/twin`);

      const again = join(host.dir, "images-2");
      host.run(...runc(host, "checkpoint", "--image-path", again, "--work-path", again, "twin"));
      const savedAgain = numbers(twinCount).length;
      runDetached(
        host,
        runc(
          host,
          "restore",
          "--detach",
          "--image-path",
          again,
          "--work-path",
          again,
          "--bundle",
          twin,
          "twin",
        ),
      );
      await counted(twinCount, savedAgain + 3);
      expectCgroup(host, "twin", `/${parent}/twin`);
      expect(host.run(...runc(host, "exec", "twin", "echo", "hello"))).toBe("hello");
      expect(stateOf(host, "looper")).toBe("running");
    },
  );

  test("left running, after a pause too", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "going", `/${parent}/going`);
    runDetached(host, runc(host, "run", "--detach", "--bundle", bundle, "going"));
    onTestFinished(() => void host.try(...runc(host, "delete", "--force", "going")));
    const count = join(bundle, "rootfs/root/count");
    await counted(count, 2);
    const images = join(host.dir, "images-going");
    host.run(...runc(host, "checkpoint", "--leave-running", "--image-path", images, "going"));
    await counted(count, numbers(count).length + 2);
    // containerd and CRI-O pause the container first, and want it paused afterwards.
    host.run(...runc(host, "pause", "going"));
    host.run(
      ...runc(host, "checkpoint", "--leave-running", "--image-path", `${images}-2`, "going"),
    );
    expect(stateOf(host, "going")).toBe("paused");
    host.run(...runc(host, "resume", "going"));
    await counted(count, numbers(count).length + 2);
    expectNoGap(numbers(count));
  });
});

function runc(host: Host, ...words: readonly string[]): [string, ...string[]] {
  return ["runc", "--root", join(host.dir, "runc"), "--log", logOf(host), ...words];
}

/** Runs a command whose container inherits its output: a file of the host would be in nobody's mount namespace at a dump. */
function runDetached(host: Host, words: readonly [string, ...string[]]): void {
  const { status } = host.try("sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", ...words);
  expect(status, `${words.join(" ")}:\n${lastLines(logOf(host))}\n${logsBelow(host.dir)}`).toBe(0);
}

function logOf(host: Host): string {
  return join(host.dir, "runc.log");
}

/** A bundle with a copy of the root file system, whose process counts into a file. */
function makeBundle(host: Host, name: string, cgroupsPath: string): string {
  const bundle = join(host.dir, "bundles", name);
  mkdirSync(bundle, { recursive: true });
  spawnSync("cp", ["-a", host.rootfs, join(bundle, "rootfs")]);
  spawnSync("runc", ["spec", "--bundle", bundle]);
  const file = join(bundle, "config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as {
    process: { terminal: boolean; args: string[] };
    root: { readonly: boolean };
    linux: { cgroupsPath: string };
  };
  config.process.terminal = false;
  config.process.args = ["sh", "-c", COUNT];
  config.root.readonly = false;
  config.linux.cgroupsPath = cgroupsPath;
  writeFileSync(file, JSON.stringify(config));
  return bundle;
}

function stateOf(host: Host, id: string): string {
  return (JSON.parse(host.run(...runc(host, "state", id))) as { readonly status: string }).status;
}

function expectCgroup(host: Host, id: string, path: string): void {
  const { pid } = JSON.parse(host.run(...runc(host, "state", id))) as { readonly pid: number };
  const lines = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n");
  const own = lines.filter((line) => line.includes("reprise-host"));
  expect(own.length).toBeGreaterThan(0);
  for (const line of own) expect(line.slice(line.indexOf(":/") + 1)).toBe(path);
}

function numbers(file: string): number[] {
  try {
    return readFileSync(file, "utf8").split("\n").filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

async function counted(file: string, count: number): Promise<void> {
  await expect.poll(() => numbers(file).length, { timeout: 15_000 }).toBeGreaterThanOrEqual(count);
}

function expectNoGap(seen: readonly number[]): void {
  expect(seen).toEqual(seen.map((_, index) => index));
}
