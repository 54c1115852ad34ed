// A Docker daemon of the tests' own, in a network and a mount namespace that go with it, with Reprise as its criu; on cgroup v1
// as the machine has it, or with a pure cgroup2 mount at /sys/fs/cgroup. Its image is made from busybox.

import { execFileSync, spawn, spawnSync, type ChildProcess } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const REPRISE_CRIU = fileURLToPath(new URL("../../bin/criu", import.meta.url));

export type CgroupVersion = "v1" | "v2";

export interface Docker {
  readonly dir: string;
  readonly version: CgroupVersion;
  /** Runs the client; its output without the last newline. Throws with what it said when it fails. */
  run(...args: readonly string[]): string;
  /** Like run; the exit code and both outputs. */
  try(...args: readonly string[]): { readonly status: number | null; readonly output: string };
  /** Environment in which tools find the daemon. */
  readonly env: NodeJS.ProcessEnv;
  stop(): Promise<void>;
}

/** Whether this machine can run such a daemon in this way. */
export function canRun(version: CgroupVersion): boolean {
  if (spawnSync("dockerd", ["--version"]).status !== 0) return false;
  const isV1 = existsSync("/sys/fs/cgroup/freezer") || existsSync("/sys/fs/cgroup/memory");
  // v1 needs the machine's hierarchies; a v2 mount can be made anywhere.
  return version === "v2" || isV1;
}

/** Starts a daemon with the image `busybox` and waits until it answers. */
export async function startDocker(version: CgroupVersion): Promise<Docker> {
  const dir = mkdtempSync(join(tmpdir(), `reprise-docker-${version}-`));
  const bin = join(dir, "bin");
  mkdirSync(bin);
  symlinkSync(process.env["REPRISE_TEST_CRIU"] ?? REPRISE_CRIU, join(bin, "criu"));
  const socket = `unix://${dir}/socket`;
  const daemon = spawnDaemon({ dir, version, bin, socket });
  const env = { ...process.env, DOCKER_HOST: socket, DOCKER_CONFIG: dir };
  const docker: Docker = {
    dir,
    version,
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
      if (status !== 0) throw new Error(`docker ${args.join(" ")}: ${output}\n${engineLogs(dir)}`);
      return output;
    },
    stop: () => stopDaemon(docker, daemon),
  };
  try {
    await waitUntilUp(docker, daemon);
    makeImage(docker);
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

function spawnDaemon(of: {
  readonly dir: string;
  readonly version: CgroupVersion;
  readonly bin: string;
  readonly socket: string;
}): ChildProcess {
  const { dir, version, bin, socket } = of;
  const cgroups =
    version === "v2"
      ? "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
      : "";
  const args = [
    "dockerd",
    "--experimental",
    `--data-root=${dir}/data`,
    `--exec-root=${dir}/exec`,
    `--pidfile=${dir}/pid`,
    `--host=${socket}`,
    `--cgroup-parent=/${cgroupParent(dir)}`,
    "--userland-proxy=false",
  ];
  const script = `ip link set lo up && ${cgroups}exec "$@"`;
  const log = openSync(join(dir, "log"), "a");
  return spawn(
    "unshare",
    ["-n", "-m", "--propagation=private", "sh", "-c", script, "sh", ...args],
    {
      stdio: ["ignore", log, log],
      detached: true,
      env: { ...process.env, PATH: `${bin}:${process.env["PATH"] ?? ""}` },
    },
  );
}

function cgroupParent(dir: string): string {
  return dir.slice(dir.lastIndexOf("/") + 1);
}

const START_TIMEOUT_MS = 30_000;

async function waitUntilUp(docker: Docker, daemon: ChildProcess): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (docker.try("version").status !== 0) {
    if (daemon.exitCode !== null || Date.now() > deadline)
      throw new Error(`dockerd does not come up:\n${tail(join(docker.dir, "log"))}`);
    await sleep(100);
  }
}

/** busybox-static alone, with its names. */
function makeImage(docker: Docker): void {
  const root = join(docker.dir, "rootfs");
  for (const name of ["bin", "dev", "etc", "proc", "sys", "tmp", "root"])
    mkdirSync(join(root, name), { recursive: true });
  execFileSync("cp", ["/bin/busybox", join(root, "bin/busybox")]);
  for (const name of [
    "sh",
    "sleep",
    "expr",
    "cat",
    "echo",
    "ps",
    "ls",
    "nc",
    "wget",
    "httpd",
    "ip",
    "mount",
    "id",
  ])
    symlinkSync("busybox", join(root, "bin", name));
  const archive = join(docker.dir, "rootfs.tar");
  execFileSync("tar", ["-C", root, "-cf", archive, "."]);
  docker.run("import", archive, "busybox");
}

async function stopDaemon(docker: Docker, daemon: ChildProcess): Promise<void> {
  const { output } = docker.try("ps", "-aq");
  const containers = output.split("\n").filter((line) => /^[0-9a-f]+$/.test(line));
  if (containers.length > 0) docker.try("rm", "-f", ...containers);
  if (daemon.pid !== undefined && daemon.exitCode === null) {
    daemon.kill("SIGTERM");
    const ended = new Promise<void>((resolve) => daemon.once("exit", () => resolve()));
    await Promise.race([ended, sleep(15_000).then(() => daemon.kill("SIGKILL"))]);
  }
  removeCgroups(cgroupParent(docker.dir));
  rmSync(docker.dir, { recursive: true, force: true });
}

/** The daemon leaves the parent of its containers' cgroups behind. */
function removeCgroups(name: string): void {
  const hierarchies = readdirSync("/sys/fs/cgroup").map((each) =>
    join("/sys/fs/cgroup", each, name),
  );
  for (const directory of [join("/sys/fs/cgroup", name), ...hierarchies]) {
    if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) continue;
    rmdirSync(directory);
  }
}

/** What the engine said in the directories in which the daemon lets it work. */
function engineLogs(dir: string): string {
  const { stdout } = spawnSync("find", [dir, "-name", "*dump.log", "-o", "-name", "restore.log"], {
    encoding: "utf8",
  });
  return stdout
    .split("\n")
    .filter(Boolean)
    .map((file) => `${file}:\n${tail(file)}`)
    .join("\n");
}

function tail(file: string): string {
  return existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(-40).join("\n") : "";
}
