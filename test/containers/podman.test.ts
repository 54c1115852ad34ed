// Podman with runc: checkpoint and restore in place, left running, through an archive under another name, with a pre-checkpoint,
// with a connection that stays up, and by reprise's own commands.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { canHost, hasProgram, startHost, type CgroupVersion, type Host } from "./host.ts";

const COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.2; done";

describe.each(["v1", "v2"] as const)("Podman on cgroup %s", (version: CgroupVersion) => {
  const can = canHost(version) && hasProgram("podman") && hasProgram("conmon");
  let host: Host;
  beforeAll(async () => {
    if (!can) return;
    host = await startHost(version);
    const archive = join(host.dir, "rootfs.tar");
    execFileSync("tar", ["-C", host.rootfs, "-cf", archive, "."]);
    podman(host, "import", archive, "busybox");
  }, 60_000);
  afterAll(async () => {
    if (!can) return;
    host.try(...words("rm", "-fa", "-t", "0"));
    await host.stop();
  }, 60_000);

  test("in place, and left running", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no podman, or no such cgroups");
    run(host, "looper");
    await counted(host, "looper", 3);
    const saved = podman(host, "container", "checkpoint", "--print-stats", "looper");
    expect(statisticsIn(saved)).toMatchObject({ pages_written: expect.any(Number) });
    expect(stateOf(host, "looper")).toBe("exited");
    const restored = podman(host, "container", "restore", "--print-stats", "looper");
    expect(statisticsIn(restored)).toMatchObject({ pages_restored: expect.any(Number) });
    await counted(host, "looper", numbers(host, "looper").length + 3);
    podman(host, "container", "checkpoint", "--leave-running", "looper");
    expect(stateOf(host, "looper")).toBe("running");
    await counted(host, "looper", numbers(host, "looper").length + 3);
    expectNoGap(numbers(host, "looper"));
    expect(podman(host, "exec", "looper", "echo", "hello")).toBe("hello");
  });

  test(
    "exported, imported under another name, and that one again",
    { timeout: 60_000 },
    async (context) => {
      if (!can) context.skip("no podman, or no such cgroups");
      run(host, "first");
      await counted(host, "first", 3);
      const archive = join(host.dir, "first.tar.zst");
      podman(host, "container", "checkpoint", "--leave-running", "--export", archive, "first");
      podman(host, "container", "restore", "--import", archive, "--name", "second");
      onTestFinished(() => void host.try(...words("rm", "-f", "-t", "0", "second")));
      await counted(host, "second", 3);
      expectOwnCgroup(host, "second");
      podman(host, "container", "checkpoint", "second");
      podman(host, "container", "restore", "second");
      await counted(host, "second", numbers(host, "second").length + 3);
      expectOwnCgroup(host, "second");
      expect(stateOf(host, "first")).toBe("running");
      expectNoGap(numbers(host, "first"));
    },
  );

  test("with a checkpoint before the checkpoint", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no podman, or no such cgroups");
    run(host, "twice");
    await counted(host, "twice", 3);
    podman(host, "container", "checkpoint", "--pre-checkpoint", "twice");
    await counted(host, "twice", numbers(host, "twice").length + 2);
    podman(host, "container", "checkpoint", "--with-previous", "twice");
    podman(host, "container", "restore", "twice");
    await counted(host, "twice", numbers(host, "twice").length + 3);
    expectNoGap(numbers(host, "twice"));
  });

  test("by reprise's own commands", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no podman, or no such cgroups");
    run(host, "mine", ["-v", "volume:/data"]);
    onTestFinished(() => void host.try(...words("volume", "rm", "-f", "volume")));
    await counted(host, "mine", 3);
    podman(host, "exec", "mine", "sh", "-c", "echo data > /data/file");
    expect(host.try("reprise", "clone", "podman:mine", "mine").output).toContain(
      "there is a container mine already",
    );
    expect(host.run("reprise", "clone", "podman:mine", "copy")).toContain("it shares the volumes");
    onTestFinished(() => void host.try(...words("rm", "-f", "-t", "0", "copy")));
    await counted(host, "copy", 3);
    host.run("reprise", "checkpoint", "podman:copy");
    host.run("reprise", "restore", "podman:copy");
    expect(host.try("reprise", "restore", "podman:copy").output).toContain(
      "cannot restore the container copy: it is running",
    );
    await counted(host, "copy", 3);
    expect(podman(host, "exec", "copy", "cat", "/data/file")).toBe("data");
    expectOwnCgroup(host, "copy");
    expect(stateOf(host, "mine")).toBe("running");
    expect(host.try("reprise", "checkpoint", "podman:nobody").output).toMatch(
      /no such container nobody\n {2}`podman ps -a` tells which/,
    );
  });

  // It takes its time, and cgroups are no other than elsewhere.
  test.skipIf(version === "v1")("as an image", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no podman, or no such cgroups");
    run(host, "whole");
    await counted(host, "whole", 3);
    podman(host, "exec", "whole", "sh", "-c", "echo changed > /root/file");
    // It asks for its directory, which must be one of the host.
    const make = 'cd / && exec podman container checkpoint --create-image "$1" "$2"';
    for (const [container, image] of [
      ["whole", "saved"],
      ["fromimage", "saved-again"],
    ] as const) {
      host.run("sh", "-c", make, "sh", image, container);
      podman(host, "rm", container);
      podman(host, "container", "restore", "--name", "fromimage", image);
      onTestFinished(() => void host.try(...words("rm", "-f", "-t", "0", "fromimage")));
      await counted(host, "fromimage", 3);
      expect(podman(host, "exec", "fromimage", "cat", "/root/file")).toBe("changed");
      expectOwnCgroup(host, "fromimage");
    }
  });
});

/** What --print-stats tells of the engine. */
function statisticsIn(text: string): unknown {
  const { container_statistics: [first] = [] } = JSON.parse(text) as {
    readonly container_statistics?: readonly { readonly criu_statistics: unknown }[];
  };
  return first?.criu_statistics;
}

function words(...args: readonly string[]): [string, ...string[]] {
  return ["podman", ...args];
}

function podman(host: Host, ...args: readonly string[]): string {
  return host.run(...words(...args));
}

function run(host: Host, name: string, options: readonly string[] = []): void {
  const place = ["--network=none", `--cgroup-parent=/${host.cgroup}`, "--name", name, ...options];
  podman(host, "run", "-d", ...place, "busybox", "sh", "-c", COUNT);
  onTestFinished(() => void host.try(...words("rm", "-f", "-t", "0", name)));
}

function stateOf(host: Host, name: string): string {
  return podman(host, "inspect", "-f", "{{.State.Status}}", name);
}

function numbers(host: Host, name: string): number[] {
  return podman(host, "logs", name).split("\n").filter(Boolean).map(Number);
}

async function counted(host: Host, name: string, count: number): Promise<void> {
  await expect
    .poll(() => numbers(host, name).length, { timeout: 15_000, interval: 200 })
    .toBeGreaterThanOrEqual(count);
}

function expectNoGap(seen: readonly number[]): void {
  expect(seen).toEqual(seen.map((_, index) => index));
}

function expectOwnCgroup(host: Host, name: string): void {
  const [id = "", pid = ""] = podman(host, "inspect", "-f", "{{.Id}} {{.State.Pid}}", name).split(
    " ",
  );
  const lines = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n");
  const ofContainers = lines.filter((line) => /[0-9a-f]{64}/.test(line));
  expect(ofContainers.length).toBeGreaterThan(0);
  for (const line of ofContainers) expect(line).toContain(id);
}
