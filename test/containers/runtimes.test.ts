// Plain runc, and crun where it was built with checkpoints: a container comes back, under its own id and as a clone with another id,
// bundle and cgroup, which is saved again.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { bundleWithFile, makeBundle, mapUsers } from "./bundle.ts";
import { COUNT, counted, expectNoGap, numbers } from "./counting.ts";
import { canHost, lastLines, logsBelow, startHost, type CgroupVersion, type Host } from "./host.ts";

type Runtime = "runc" | "crun";

/** Debian's crun was built without libcriu. */
function hasCheckpoints(runtime: Runtime): boolean {
  const { stdout } = spawnSync(runtime, ["--version"], { encoding: "utf8" });
  return stdout !== null && (runtime === "runc" || stdout.includes("+CRIU"));
}

const CASES: readonly (readonly [Runtime, CgroupVersion])[] = [
  ["runc", "v1"],
  ["runc", "v2"],
  ["crun", "v1"],
  ["crun", "v2"],
];

describe.each(CASES)("%s on cgroup %s", (runtime, version) => {
  const can = canHost(version) && hasCheckpoints(runtime);
  /** The runtime's command line. */
  function cli(host: Host, ...words: readonly string[]): [string, ...string[]] {
    return [runtime, "--root", join(host.dir, runtime), "--log", logOf(host), ...words];
  }
  function stateOf(host: Host, id: string): string {
    return stateObject(host, id).status;
  }

  function stateObject(host: Host, id: string): { readonly status: string; readonly pid: number } {
    return JSON.parse(host.run(...cli(host, "state", id))) as { status: string; pid: number };
  }

  function expectCgroup(host: Host, id: string, path: string): void {
    const { pid } = stateObject(host, id);
    const lines = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n");
    const own = lines.filter((line) => line.includes("reprise-host"));
    expect(own.length).toBeGreaterThan(0);
    for (const line of own) expect(line.slice(line.indexOf(":/") + 1)).toBe(path);
  }
  let host: Host;
  let parent: string;
  beforeAll(async () => {
    if (!can) return;
    host = await startHost(version);
    // crun refuses v1 hierarchies beside a v2 one that has controllers.
    if (runtime === "crun" && version === "v1") host.try("umount", "/sys/fs/cgroup/unified");
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
      if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
      const bundle = bundleWithFile(host, "looper");
      runDetached(host, cli(host, "run", "--detach", "--bundle", bundle, "looper"));
      onTestFinished(() => void host.try(...cli(host, "delete", "--force", "looper")));
      const count = join(bundle, "rootfs/root/count");
      await counted(count, 3);

      const images = join(host.dir, "images");
      host.run(...cli(host, "checkpoint", "--image-path", images, "--work-path", images, "looper"));
      const saved = numbers(count).length;
      const restore = [
        "restore",
        "--detach",
        "--image-path",
        images,
        "--work-path",
        images,
      ] as const;
      runDetached(host, cli(host, ...restore, "--bundle", bundle, "looper"));
      await counted(count, saved + 3);
      expectNoGap(numbers(count));
      expectCgroup(host, "looper", `/${parent}/looper`);

      // The same images, another container: its own bundle and its own cgroup.
      const twin = bundleWithFile(host, "twin");
      writeFileSync(
        join(twin, "rootfs/root/count"),
        numbers(count).slice(0, saved).join("\n") + "\n",
      );
      runDetached(host, cli(host, ...restore, "--bundle", twin, "twin"));
      onTestFinished(() => void host.try(...cli(host, "delete", "--force", "twin")));
      const twinCount = join(twin, "rootfs/root/count");
      await counted(twinCount, saved + 3);
      expectCgroup(host, "twin", `/${parent}/twin`);

      const again = join(host.dir, "images-2");
      host.run(...cli(host, "checkpoint", "--image-path", again, "--work-path", again, "twin"));
      const savedAgain = numbers(twinCount).length;
      runDetached(
        host,
        cli(
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
      expect(host.run(...cli(host, "exec", "twin", "echo", "hello"))).toBe("hello");
      expect(stateOf(host, "looper")).toBe("running");
    },
  );

  test("a container in a user namespace", { timeout: 60_000 }, async (context) => {
    if (runtime === "crun") context.skip("crun binds devices of the host there, and does not tell");
    if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
    const bundle = bundleWithFile(host, "mapped", (config, dir) =>
      mapUsers(host, { config, bundle: dir, firstId: 100_000 }),
    );
    runDetached(host, cli(host, "run", "--detach", "--bundle", bundle, "mapped"));
    onTestFinished(() => void host.try(...cli(host, "delete", "--force", "mapped")));
    const count = join(bundle, "rootfs/root/count");
    for (const round of ["1", "2"]) {
      await counted(count, numbers(count).length + 3);
      const images = join(host.dir, `images-mapped-${round}`);
      const where = ["--image-path", images, "--work-path", images] as const;
      host.run(...cli(host, "checkpoint", ...where, "mapped"));
      runDetached(host, cli(host, "restore", "--detach", ...where, "--bundle", bundle, "mapped"));
      await counted(count, numbers(count).length + 3);
      const { pid } = stateObject(host, "mapped");
      expect(readFileSync(`/proc/${pid}/uid_map`, "utf8")).toMatch(/^\s+0\s+100000\s+65536\s*$/);
      expect(readFileSync(`/proc/${pid}/status`, "utf8")).toMatch(/^Uid:\s+100000\s/m);
    }
    expectNoGap(numbers(count));
  });

  test("by reprise's own commands", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
    // In the runtime's default directory, which all share: names of our own.
    const [first, copy] = [`${parent}-first`, `${parent}-copy`];
    const own = (...words: readonly string[]): [string, ...string[]] => [runtime, ...words];
    const loud = COUNT.replace("echo $i;", "echo $i; echo $i >>/root/count;");
    const bundle = makeBundle(host, first, ({ process }) => {
      process.args = ["sh", "-c", loud];
    });
    // With pipes, which a restore wires anew: nobody may wait for their end, or be gone when they are written to.
    host.run(
      "sh",
      "-c",
      `exec >/dev/null 2>&1; "$@" </dev/null | cat &`,
      "sh",
      ...own("run", "--detach", "--bundle", bundle, first),
    );
    onTestFinished(() => void host.try(...own("delete", "--force", first)));
    onTestFinished(() => void host.try(...own("delete", "--force", copy)));
    const count = join(bundle, "rootfs/root/count");
    await counted(count, 3);
    const said = host.run("reprise", "clone", `${runtime}:${first}`, copy);
    const twin = /its bundle is (.*)$/m.exec(said)?.[1] ?? "";
    const twinCount = join(twin, "rootfs/root/count");
    await counted(twinCount, numbers(twinCount).length + 3);
    host.run("reprise", "checkpoint", `${runtime}:${copy}`);
    host.run("reprise", "restore", `${runtime}:${copy}`);
    await counted(twinCount, numbers(twinCount).length + 3);
    expectNoGap(numbers(count));
    expectNoGap(numbers(twinCount));
    // Each number that it has counted since, the last perhaps on its way still.
    const output = numbers(/its output goes to (.*)$/m.exec(said)?.[1] ?? "");
    expect(output.length).toBeGreaterThan(4);
    expect(numbers(twinCount)).toEqual(expect.arrayContaining(output.slice(0, -1)));
  });

  test("processes that came in from outside", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
    const bundle = bundleWithFile(host, "visited");
    runDetached(host, cli(host, "run", "--detach", "--bundle", bundle, "visited"));
    onTestFinished(() => void host.try(...cli(host, "delete", "--force", "visited")));
    const [count, guest, heir] = ["count", "guest", "heir"].map((name) =>
      join(bundle, "rootfs/root", name),
    ) as [string, string, string];
    const exec = (script: string): void =>
      runDetached(host, cli(host, "exec", "--detach", "visited", "sh", "-c", script));
    exec(`${COUNT.replace("0.2", "0.01")} > /root/guest`);
    // Its parent has ended: it is a child of the container's first process, and saved like others.
    exec(`(${COUNT}) > /root/heir &`);
    for (const file of [guest, heir]) await counted(file, 3);

    // A pause holds for those who are not saved, too, even while the others are thawed for the dump.
    host.run(...cli(host, "pause", "visited"));
    const [images, again] = [join(host.dir, "images-visited"), join(host.dir, "images-visited-2")];
    const until = numbers(guest).length;
    host.run(...cli(host, "checkpoint", "--leave-running", ...at(images), "visited"));
    expect(numbers(guest).length).toBe(until);
    expect(lastLines(join(images, "dump.log"))).toMatch(
      /process \d+ of the container's pid namespace \(sh\) came from outside/,
    );
    host.run(...cli(host, "resume", "visited"));
    for (const file of [count, guest, heir]) await counted(file, numbers(file).length + 2);

    host.run(...cli(host, "checkpoint", ...at(again), "visited"));
    expect(host.try(...cli(host, "state", "visited")).status).not.toBe(0);
    const [left, saved] = [numbers(guest).length, numbers(heir).length];
    runDetached(
      host,
      cli(host, "restore", "--detach", ...at(again), "--bundle", bundle, "visited"),
    );
    await counted(heir, saved + 3);
    expect(numbers(guest).length).toBe(left);
    for (const file of [count, heir]) expectNoGap(numbers(file));
  });

  test("one whose parent does not ask for its end", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
    const bundle = bundleWithFile(host, "held");
    runDetached(host, cli(host, "run", "--detach", "--bundle", bundle, "held"));
    onTestFinished(() => void host.try(...cli(host, "delete", "--force", "held")));
    await counted(join(bundle, "rootfs/root/count"), 2);
    const { pid } = stateObject(host, "held");
    const visitor = spawn("nsenter", ["-t", `${pid}`, "-a", "sh", "-c", "echo in; exec sleep 60"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    onTestFinished(() => void visitor.kill("SIGKILL"));
    await once(visitor.stdout, "data");
    visitor.kill("SIGSTOP");
    const images = join(host.dir, "images-held");
    // The first process of the pid namespace waits for it in the kernel, and the dump does not wait for both.
    const begun = performance.now();
    host.run(...cli(host, "checkpoint", ...at(images), "held"));
    expect(performance.now() - begun).toBeLessThan(20_000);
    expect(lastLines(join(images, "dump.log"))).toContain(
      `pid ${pid} was killed, and is not reaped yet; in its pid namespace is still pid `,
    );
    visitor.kill("SIGCONT");
    await expect.poll(() => existsSync(`/proc/${pid}/exe`)).toBe(false);
  });

  test("left running, after a pause too", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no such runtime with checkpoints, or no such cgroups");
    const bundle = bundleWithFile(host, "going");
    runDetached(host, cli(host, "run", "--detach", "--bundle", bundle, "going"));
    onTestFinished(() => void host.try(...cli(host, "delete", "--force", "going")));
    const count = join(bundle, "rootfs/root/count");
    await counted(count, 2);
    const images = join(host.dir, "images-going");
    host.run(...cli(host, "checkpoint", "--leave-running", "--image-path", images, "going"));
    await counted(count, numbers(count).length + 2);
    // containerd and CRI-O pause the container first, and want it paused afterwards.
    host.run(...cli(host, "pause", "going"));
    host.run(...cli(host, "checkpoint", "--leave-running", "--image-path", `${images}-2`, "going"));
    expect(stateOf(host, "going")).toBe("paused");
    host.run(...cli(host, "resume", "going"));
    await counted(count, numbers(count).length + 2);
    expectNoGap(numbers(count));
  });
});

/** Where a set and its logs go. */
function at(images: string): readonly [string, string, string, string] {
  return ["--image-path", images, "--work-path", images];
}

/** Runs a command whose container inherits its output: a file of the host would be in nobody's mount namespace at a dump. */
function runDetached(host: Host, words: readonly [string, ...string[]]): void {
  const { status } = host.try("sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", ...words);
  expect(status, `${words.join(" ")}:\n${lastLines(logOf(host))}\n${logsBelow(host.dir)}`).toBe(0);
}

function logOf(host: Host): string {
  return join(host.dir, "runtime.log");
}
