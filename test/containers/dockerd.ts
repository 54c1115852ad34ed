// A Docker daemon of the tests' own, on a host of the tests' own, with an image of busybox.

import { execFileSync, spawnSync } from "node:child_process";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startDaemon, type Daemon } from "./daemon.ts";
import {
  canHost,
  hasProgram,
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
export async function startDocker(
  version: CgroupVersion,
  criu?: string,
  hasStandby?: boolean,
): Promise<Docker> {
  const host = await startHost(version, criu, hasStandby);
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
    await daemon.waitUntil(() => docker.try("version").status === 0);
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

function spawnDaemon(host: Host, socket: string): Daemon {
  const { dir, cgroup } = host;
  return startDaemon(host, "dockerd", [
    "--experimental",
    `--data-root=${dir}/data`,
    `--exec-root=${dir}/exec`,
    `--pidfile=${dir}/pid`,
    `--host=${socket}`,
    `--cgroup-parent=/${cgroup}`,
    "--userland-proxy=false",
  ]);
}

async function stopDocker(docker: Docker, daemon: Daemon): Promise<void> {
  const { output } = docker.try("ps", "-aq");
  const containers = output.split("\n").filter((line) => /^[0-9a-f]+$/.test(line));
  if (containers.length > 0) docker.try("rm", "-f", ...containers);
  await daemon.stop();
  await docker.host.stop();
}
