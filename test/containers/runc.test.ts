// Plain runc: a container comes back, under its own id and as a clone with another id, bundle and cgroup, which is saved again.

import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
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

  test("a container in a user namespace", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "mapped", `/${parent}/mapped`, { firstId: 100_000 });
    runDetached(host, runc(host, "run", "--detach", "--bundle", bundle, "mapped"));
    onTestFinished(() => void host.try(...runc(host, "delete", "--force", "mapped")));
    const count = join(bundle, "rootfs/root/count");
    for (const round of ["1", "2"]) {
      await counted(count, numbers(count).length + 3);
      const images = join(host.dir, `images-mapped-${round}`);
      const where = ["--image-path", images, "--work-path", images] as const;
      host.run(...runc(host, "checkpoint", ...where, "mapped"));
      runDetached(host, runc(host, "restore", "--detach", ...where, "--bundle", bundle, "mapped"));
      await counted(count, numbers(count).length + 3);
      const { pid } = stateObject(host, "mapped");
      expect(readFileSync(`/proc/${pid}/uid_map`, "utf8")).toMatch(/^\s+0\s+100000\s+65536\s*$/);
      expect(readFileSync(`/proc/${pid}/status`, "utf8")).toMatch(/^Uid:\s+100000\s/m);
    }
    expectNoGap(numbers(count));
  });

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
function makeBundle(
  host: Host,
  name: string,
  cgroupsPath: string,
  userNamespace?: { readonly firstId: number },
): string {
  const bundle = join(host.dir, "bundles", name);
  mkdirSync(bundle, { recursive: true });
  spawnSync("cp", ["-a", host.rootfs, join(bundle, "rootfs")]);
  // On the host: with cgroup v2 a container has a cgroup namespace.
  host.run("runc", "spec", "--bundle", bundle);
  const file = join(bundle, "config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as {
    process: { terminal: boolean; args: string[] };
    root: { readonly: boolean };
    linux: {
      cgroupsPath: string;
      namespaces: { type: string }[];
      uidMappings?: readonly IdMapping[];
      gidMappings?: readonly IdMapping[];
    };
  };
  config.process.terminal = false;
  config.process.args = ["sh", "-c", COUNT];
  config.root.readonly = false;
  config.linux.cgroupsPath = cgroupsPath;
  if (userNamespace !== undefined) {
    const { firstId } = userNamespace;
    const mappings = [{ containerID: 0, hostID: firstId, size: 65_536 }];
    config.linux.namespaces.push({ type: "user" });
    config.linux.uidMappings = mappings;
    config.linux.gidMappings = mappings;
    spawnSync("chown", ["-R", `${firstId}:${firstId}`, join(bundle, "rootfs")]);
    // Its root must be able to reach its files.
    for (const directory of [host.dir, join(host.dir, "bundles"), bundle])
      chmodSync(directory, 0o755);
  }
  writeFileSync(file, JSON.stringify(config));
  return bundle;
}

interface IdMapping {
  readonly containerID: number;
  readonly hostID: number;
  readonly size: number;
}

function stateOf(host: Host, id: string): string {
  return stateObject(host, id).status;
}

function stateObject(host: Host, id: string): { readonly status: string; readonly pid: number } {
  return JSON.parse(host.run(...runc(host, "state", id))) as { status: string; pid: number };
}

function expectCgroup(host: Host, id: string, path: string): void {
  const { pid } = stateObject(host, id);
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
