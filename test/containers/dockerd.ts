// A Docker daemon of the tests' own, on a host of the tests' own, with an image of busybox.

import { execFileSync, spawn, spawnSync, type ChildProcess } from "node:child_process";
import { openSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  canHost,
  hasProgram,
  lastLines,
  logsBelow,
  startHost,
  type CgroupVersion,
  type Host,
} from "./host.ts";

export interface Docker {
  readonly host: Host;
  readonly dir: string;
  /** Runs the client; its output without the last newline. Throws with what it said when it fails. */
  run(...args: readonly string[]): string;
  /** Like run; the exit code and both outputs. */
  try(...args: readonly string[]): { readonly status: number | null; readonly output: string };
  /** Environment in which tools find the daemon. */
  readonly env: NodeJS.ProcessEnv;
  stop(): Promise<void>;
}

/** Whether this machine can run such a daemon. */
export function canRunDocker(version: CgroupVersion): boolean {
  return canHost(version) && hasProgram("dockerd");
}

/** Starts a daemon with the image `busybox` and waits until it answers. */
export async function startDocker(version: CgroupVersion, criu?: string): Promise<Docker> {
  const host = await startHost(version, criu);
  const { dir } = host;
  const socket = `unix://${dir}/socket`;
  const env = { ...process.env, DOCKER_HOST: socket, DOCKER_CONFIG: dir };
  const daemon = spawnDaemon(host, socket);
  const docker: Docker = {
    host,
    dir,
    env,
    try(...args) {
      const { status, stdout, stderr } = spawnSync("docker", args, {
        env,
        encoding: "utf8",
        timeout: 60_000,
      });
      return { status, output: `${stdout}${stderr}`.trimEnd() };
    },
    run(...args) {
      const { status, output } = docker.try(...args);
      if (status !== 0) throw new Error(`docker ${args.join(" ")}: ${output}\n${logsBelow(dir)}`);
      return output;
    },
    stop: () => stopDocker(docker, daemon),
  };
  try {
    await waitUntilUp(docker, daemon);
    const archive = join(dir, "rootfs.tar");
    execFileSync("tar", ["-C", host.rootfs, "-cf", archive, "."]);
    docker.run("import", archive, "busybox");
    return docker;
  } catch (error) {
    await docker.stop();
    throw error;
  }
}

/** Where the daemon keeps a container's checkpoints: the only way in which one comes to another container. */
export function checkpointsDir(docker: Docker, container: string): string {
  const id = docker.run("inspect", "-f", "{{.Id}}", container);
  return join(docker.dir, "data", "containers", id, "checkpoints");
}

/**
 * Starts a container from a checkpoint. The daemon hands it on as an archive named by its content, times in seconds included, and
 * fails when the same one is still there from making it.
 */
export async function startFromCheckpoint(
  docker: Docker,
  container: string,
  name: string,
): Promise<void> {
  const { status, output } = docker.try("start", "--checkpoint", name, container);
  if (status === 0) return;
  if (!output.includes("already exists")) throw new Error(`${output}\n${logsBelow(docker.dir)}`);
  await sleep(1100);
  execFileSync("find", [
    join(checkpointsDir(docker, container), name),
    "-exec",
    "touch",
    "{}",
    "+",
  ]);
  docker.run("start", "--checkpoint", name, container);
}

function spawnDaemon({ dir, enter, env, cgroup }: Host, socket: string): ChildProcess {
  const log = openSync(join(dir, "dockerd.log"), "a");
  const args = [
    "dockerd",
    "--experimental",
    `--data-root=${dir}/data`,
    `--exec-root=${dir}/exec`,
    `--pidfile=${dir}/pid`,
    `--host=${socket}`,
    `--cgroup-parent=/${cgroup}`,
    "--userland-proxy=false",
  ];
  return spawn("nsenter", [...enter, ...args], {
    stdio: ["ignore", log, log],
    detached: true,
    env,
  });
}

const START_TIMEOUT_MS = 30_000;

async function waitUntilUp(docker: Docker, daemon: ChildProcess): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (docker.try("version").status !== 0) {
    if (daemon.exitCode !== null || Date.now() > deadline)
      throw new Error(`dockerd does not come up:\n${lastLines(join(docker.dir, "dockerd.log"))}`);
    await sleep(100);
  }
}

async function stopDocker(docker: Docker, daemon: ChildProcess): Promise<void> {
  const { output } = docker.try("ps", "-aq");
  const containers = output.split("\n").filter((line) => /^[0-9a-f]+$/.test(line));
  if (containers.length > 0) docker.try("rm", "-f", ...containers);
  if (daemon.exitCode === null) {
    const ended = new Promise<void>((resolve) => daemon.once("exit", () => resolve()));
    daemon.kill("SIGTERM");
    await Promise.race([ended, sleep(15_000).then(() => daemon.kill("SIGKILL"))]);
  }
  await docker.host.stop();
}
