// The flow that Reprise exists for, with an unmodified Docker: a container is checkpointed, restored as a clone, the clone is
// checkpointed again and restored again; on cgroup v1 and on pure v2, with Docker's default seccomp profile.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import {
  canRunDocker,
  checkpointsDir,
  startDocker,
  startFromCheckpoint,
  type Docker,
} from "./dockerd.ts";
import type { CgroupVersion } from "./host.ts";

const REPRISE = fileURLToPath(new URL("../../bin/reprise", import.meta.url));
const COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.2; done";

describe.each(["v1", "v2"] as const)("on cgroup %s", (version: CgroupVersion) => {
  let docker: Docker;
  beforeAll(async () => {
    if (canRunDocker(version)) docker = await startDocker(version);
  }, 60_000);
  afterAll(async () => docker?.stop(), 60_000);

  test(
    "run, checkpoint, restore, clone, and the clone again",
    { timeout: 90_000 },
    async (context) => {
      if (!canRunDocker(version)) context.skip("no dockerd, or no such cgroups");
      runContainer(docker, "looper");
      await counted(docker, "looper", 3);
      docker.run("checkpoint", "create", "looper", "c1");
      expect(stateOf(docker, "looper")).toBe("exited");

      // Again in its own container.
      await startFromCheckpoint(docker, "looper", "c1");
      await counted(docker, "looper", 6);

      // The clone: a second container from the same checkpoint, beside the first.
      createContainer(docker, "looper-clone");
      copyCheckpoint(docker, { from: "looper", to: "looper-clone", name: "c1" });
      await startFromCheckpoint(docker, "looper-clone", "c1");
      await counted(docker, "looper-clone", 3);
      expectOwnCgroups(docker, "looper-clone");
      expectOwnCgroups(docker, "looper");

      // Where CRIU ends on v2: the clone is checkpointed again, and restored again, and once more.
      for (const name of ["c2", "c3"]) {
        docker.run("checkpoint", "create", "looper-clone", name);
        await startFromCheckpoint(docker, "looper-clone", name);
        await counted(docker, "looper-clone", numbers(docker, "looper-clone").length + 3);
        expectOwnCgroups(docker, "looper-clone");
      }
      expect(docker.run("exec", "looper-clone", "echo", "hello")).toBe("hello");
      docker.run("stop", "-t", "1", "looper-clone", "looper");
      expect(stateOf(docker, "looper-clone")).toBe("exited");
      for (const name of ["looper", "looper-clone"]) expectNoGap(numbers(docker, name));
    },
  );

  test("by reprise's own commands", { timeout: 90_000 }, async (context) => {
    if (!canRunDocker(version)) context.skip("no dockerd, or no such cgroups");
    runContainer(docker, "mine");
    onTestFinished(() => void docker.try("rm", "-f", "twin"));
    await counted(docker, "mine", 3);
    docker.run("exec", "mine", "sh", "-c", "echo changed > /etc/changed");
    expect(reprise(docker, "clone", "docker:mine", "twin")).toContain(
      "twin runs, from checkpoint reprise-1 of mine",
    );
    await counted(docker, "twin", 3);
    expect(refused(docker, "clone", "docker:mine", "twin")).toContain(
      "there is a container twin already",
    );
    expect(docker.run("checkpoint", "ls", "mine").match(/reprise-/g)).toHaveLength(1);
    expectOwnCgroups(docker, "twin");
    expect(docker.run("exec", "twin", "cat", "/etc/changed")).toBe("changed");
    reprise(docker, "checkpoint", "docker:twin");
    expect(stateOf(docker, "twin")).toBe("exited");
    expect(refused(docker, "checkpoint", "docker:twin")).toContain("it is not running (exited)");
    expect(reprise(docker, "restore", "docker:twin")).toContain("twin runs again");
    const before = numbers(docker, "twin").length;
    await counted(docker, "twin", before + 2);
    expect(stateOf(docker, "mine")).toBe("running");
    for (const name of ["mine", "twin"]) expectNoGap(numbers(docker, name));
  });

  test("by reprise's own commands, writing all the while", { timeout: 60_000 }, async (context) => {
    if (!canRunDocker(version)) context.skip("no dockerd, or no such cgroups");
    const write = `${COUNT} > /root/count`;
    docker.run("run", "-d", "--name", "writer", "busybox", "sh", "-c", write);
    onTestFinished(() => void docker.try("rm", "-f", "writer", "second"));
    const lines = (name: string): number[] =>
      docker.run("exec", name, "cat", "/root/count").split("\n").map(Number);
    await expect.poll(() => lines("writer").length, { timeout: 10_000 }).toBeGreaterThan(3);
    expect(reprise(docker, "clone", "docker:writer", "second")).toContain("reprise-files:");
    const before = lines("second").length;
    await expect.poll(() => lines("second").length, { timeout: 10_000 }).toBeGreaterThan(before);
    for (const name of ["writer", "second"]) expectNoGap(lines(name));
    expect(stateOf(docker, "writer")).toBe("running");
  });

  test("a restart policy, and somebody inside", { timeout: 60_000 }, async (context) => {
    if (!canRunDocker(version)) context.skip("no dockerd, or no such cgroups");
    docker.run("run", "-d", "--name", "kept", "--restart=always", "busybox", "sh", "-c", COUNT);
    onTestFinished(() => void docker.try("rm", "-f", "kept"));
    const visitor = spawn("docker", ["exec", "-i", "kept", "sh", "-c", "echo in; exec cat"], {
      env: docker.env,
      stdio: ["pipe", "pipe", "ignore"],
    });
    onTestFinished(() => void visitor.kill());
    await once(visitor.stdout, "data");
    // What a visitor has left behind is the container's.
    docker.run("exec", "kept", "sh", "-c", "sleep 1000 &");
    docker.run("checkpoint", "create", "--leave-running", "kept", "c1");
    visitor.stdin.write("still there\n");
    expect(String((await once(visitor.stdout, "data"))[0])).toBe("still there\n");

    const ended = once(visitor, "exit");
    const saved = spawnSync(REPRISE, ["checkpoint", "docker:kept"], {
      env: docker.env,
      encoding: "utf8",
    });
    expect(saved).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(
        /^reprise: warning: a process in kept came in from outside \(exec\), and will not be/,
      ),
    });
    await ended;
    expect(stateOf(docker, "kept")).toBe("exited");
    const policy = "{{.HostConfig.RestartPolicy.Name}} {{.RestartCount}}";
    expect(docker.run("inspect", "-f", policy, "kept")).toBe("always 0");
    reprise(docker, "restore", "docker:kept");
    await counted(docker, "kept", numbers(docker, "kept").length + 2);
    expectNoGap(numbers(docker, "kept"));
    expect(docker.run("top", "kept", "-o", "pid,args")).toContain("sleep 1000");
    const again = spawnSync(REPRISE, ["restore", "docker:kept"], {
      env: docker.env,
      encoding: "utf8",
    });
    expect(again.stderr).toContain("cannot restore the container kept: it is running");

    docker.run("exec", "kept", "sh", "-c", "echo data > /root/new");
    expect(docker.run("commit", "kept", "committed")).toMatch(/^sha256:/);
    expect(docker.run("run", "--rm", "committed", "cat", "/root/new")).toBe("data");
    docker.run("checkpoint", "rm", "kept", "c1");
    expect(docker.run("checkpoint", "ls", "kept")).not.toMatch(/^c1$/m);
  });

  test("left running, and in a directory of one's own", { timeout: 60_000 }, async (context) => {
    if (!canRunDocker(version)) context.skip("no dockerd, or no such cgroups");
    runContainer(docker, "going");
    await counted(docker, "going", 2);
    const dir = join(docker.dir, "checkpoints");
    mkdirSync(dir);
    docker.run("checkpoint", "create", "--leave-running", "--checkpoint-dir", dir, "going", "c1");
    expect(stateOf(docker, "going")).toBe("running");
    await counted(docker, "going", numbers(docker, "going").length + 2);
    expect(docker.run("checkpoint", "ls", "--checkpoint-dir", dir, "going")).toContain("c1");
    expectNoGap(numbers(docker, "going"));
  });
});

function reprise(docker: Docker, ...args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(REPRISE, args, {
    env: docker.env,
    encoding: "utf8",
  });
  expect(status, stderr).toBe(0);
  return stdout;
}

/** What reprise says when it does not do something. */
function refused(docker: Docker, ...args: readonly string[]): string {
  const { status, stderr } = spawnSync(REPRISE, args, { env: docker.env, encoding: "utf8" });
  expect(status, stderr).not.toBe(0);
  return stderr;
}

function runContainer(docker: Docker, name: string): void {
  docker.run("run", "-d", "--name", name, "busybox", "sh", "-c", COUNT);
  onTestFinished(() => void docker.try("rm", "-f", name));
}

function createContainer(docker: Docker, name: string): void {
  docker.run("create", "--name", name, "busybox", "sh", "-c", COUNT);
  onTestFinished(() => void docker.try("rm", "-f", name));
}

function copyCheckpoint(
  docker: Docker,
  { from, to, name }: { readonly from: string; readonly to: string; readonly name: string },
): void {
  cpSync(join(checkpointsDir(docker, from), name), join(checkpointsDir(docker, to), name), {
    recursive: true,
  });
}

function stateOf(docker: Docker, name: string): string {
  return docker.run("inspect", "-f", "{{.State.Status}}", name);
}

function numbers(docker: Docker, name: string): number[] {
  return docker.run("logs", name).split("\n").filter(Boolean).map(Number);
}

async function counted(docker: Docker, name: string, count: number): Promise<void> {
  await expect
    .poll(() => numbers(docker, name).length, { timeout: 15_000, interval: 100 })
    .toBeGreaterThanOrEqual(count);
}

/** Logs of a container that was stopped and went on: no number is missing and none comes twice in a row of restores. */
function expectNoGap(seen: readonly number[]): void {
  const steps = seen.slice(1).map((number, index) => number - (seen[index] as number));
  expect(
    steps.filter((step) => step > 1),
    seen.join(" "),
  ).toEqual([]);
}

/** A container's first process is in the cgroups that carry the container's own id, wherever it is in one at all. */
function expectOwnCgroups(docker: Docker, name: string): void {
  const [id = "", pid = ""] = docker
    .run("inspect", "-f", "{{.Id}} {{.State.Pid}}", name)
    .split(" ");
  const cgroups = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n");
  const ofContainers = cgroups.filter((line) => /\/[0-9a-f]{64}(\/|$)/.test(line));
  expect(ofContainers.length).toBeGreaterThan(0);
  for (const line of ofContainers) expect(line).toContain(id);
}
