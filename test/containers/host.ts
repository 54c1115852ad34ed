// A small host of the tests' own for container tools that have no daemon: a mount and a network namespace that live as long as a
// process of ours, with the machine's cgroup v1 or a pure v2 mount, and Reprise as its criu.

import { spawn, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export type CgroupVersion = "v1" | "v2";

const REPRISE_BIN = fileURLToPath(new URL("../../bin", import.meta.url));
const REPRISE = join(REPRISE_BIN, "reprise");

export interface Host {
  readonly version: CgroupVersion;
  /** For everything that the test makes. */
  readonly dir: string;
  /** A root file system with busybox. */
  readonly rootfs: string;
  /** Name of a cgroup at the top of each hierarchy for the containers of the host; it goes with it. */
  readonly cgroup: string;
  /** Arguments of nsenter that lead into the host, for what stays. */
  readonly enter: readonly string[];
  /** A process of the host's namespaces. */
  readonly pid: number;
  readonly env: NodeJS.ProcessEnv;
  /** Runs a command on the host; its output without the last newline. Throws with what it said when it fails. */
  run(...words: readonly [string, ...string[]]): string;
  try(...words: readonly [string, ...string[]]): {
    readonly status: number | null;
    readonly output: string;
  };
  /** Ends everything that still runs on the host. */
  stop(): Promise<void>;
}

/** The engine that the container tools find as `criu`. */
export function criuPath(): string {
  return process.env["REPRISE_TEST_CRIU"] ?? join(REPRISE_BIN, "criu");
}

/** Whether the machine can have such a host; v1 needs the machine's hierarchies, a v2 mount can be made anywhere. */
export function canHost(version: CgroupVersion): boolean {
  return version === "v2" || existsSync("/sys/fs/cgroup/freezer");
}

/** Whether a program is installed. */
export function hasProgram(name: string): boolean {
  return spawnSync("sh", ["-c", `command -v ${name}`]).status === 0;
}

/**
 * Starts a host.
 *
 * @param criu what its container tools find under that name. @default bin/criu, or $REPRISE_TEST_CRIU
 * @param hasStandby whether engines stand by for it. @default when $REPRISE_TEST_STANDBY is set
 */
export async function startHost(
  version: CgroupVersion,
  criu: string = criuPath(),
  hasStandby: boolean = process.env["REPRISE_TEST_STANDBY"] !== undefined,
): Promise<Host> {
  const dir = mkdtempSync(join(tmpdir(), `reprise-host-${version}-`));
  const bin = join(dir, "bin");
  mkdirSync(bin);
  symlinkSync(criu, join(bin, "criu"));
  symlinkSync(REPRISE, join(bin, "reprise"));
  const rootfs = makeRootfs(join(dir, "rootfs"));
  writePodmanFiles(dir);
  const cgroups =
    version === "v2"
      ? "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
      : "";
  // The input is a pipe of ours: the host ends with the tests, however they end.
  const script = `ip link set lo up && ${cgroups}touch "$1/up" && cat`;
  const holder = spawn(
    "unshare",
    ["-n", "-m", "--propagation=private", "sh", "-c", script, "sh", dir],
    { stdio: ["pipe", "ignore", "inherit"], detached: true },
  );
  const env = {
    ...process.env,
    PATH: `${bin}:${process.env["PATH"] ?? ""}`,
    CONTAINERS_CONF: join(dir, "containers.conf"),
    CONTAINERS_STORAGE_CONF: join(dir, "storage.conf"),
    REPRISE_HOME: join(dir, "reprise"),
    // None else: another host's could not work here.
    REPRISE_STANDBY: join(dir, "standby"),
    XDG_RUNTIME_DIR: dir,
  };
  const enter = ["-t", String(holder.pid), "-m", "-n", "--wd=/", "--"];
  const host: Host = {
    version,
    dir,
    rootfs,
    cgroup: basename(dir),
    enter,
    pid: holder.pid ?? 0,
    env,
    try(...words) {
      const { status, stdout, stderr } = spawnSync("nsenter", [...enter, ...words], {
        env,
        encoding: "utf8",
        timeout: 60_000,
        stdio: ["ignore", "pipe", "pipe"],
      });
      return { status, output: `${stdout}${stderr}`.trimEnd() };
    },
    run(...words) {
      const { status, output } = host.try(...words);
      if (status !== 0) throw new Error(`${words.join(" ")}: ${output}\n${logsBelow(dir)}`);
      return output;
    },
    async stop() {
      host.try(REPRISE, "standby", "--stop");
      holder.stdin?.end();
      await new Promise((resolve) => holder.once("exit", resolve));
      await removeCgroups(basename(dir));
      rmSync(dir, { recursive: true, force: true });
    },
  };
  for (const deadline = Date.now() + 10_000; !existsSync(join(dir, "up")); await sleep(10)) {
    if (holder.exitCode !== null || Date.now() > deadline)
      throw new Error(`a host with cgroup ${version} does not come up`);
  }
  if (hasStandby) host.run(REPRISE, "standby", "--detach");
  return host;
}

/** Podman with everything in the host's directory, without systemd, and with runc: Debian's crun has no checkpoints. */
function writePodmanFiles(dir: string): void {
  const storage = `[storage]\ndriver = "overlay"\ngraphroot = "${dir}/podman"\nrunroot = "${dir}/podman-run"\n`;
  writeFileSync(join(dir, "storage.conf"), storage);
  const engine = [
    "[engine]",
    'runtime = "runc"',
    'cgroup_manager = "cgroupfs"',
    'events_logger = "file"',
    `tmp_dir = "${dir}/podman-tmp"`,
    "[containers]",
    // The default would need a controller that not every machine has on v2.
    "pids_limit = 0",
    'log_driver = "k8s-file"',
  ];
  writeFileSync(join(dir, "containers.conf"), `${engine.join("\n")}\n`);
}

/** busybox-static alone, with some of its names. */
export function makeRootfs(root: string): string {
  for (const name of ["bin", "dev", "etc", "proc", "sys", "tmp", "root"])
    mkdirSync(join(root, name), { recursive: true });
  spawnSync("cp", ["/bin/busybox", join(root, "bin/busybox")]);
  for (const name of [
    "sh",
    "sleep",
    "expr",
    "cat",
    "echo",
    "ps",
    "ls",
    "nc",
    "ip",
    "mount",
    "id",
    "tty",
    "grep",
    "df",
    "hostname",
  ])
    symlinkSync("busybox", join(root, "bin", name));
  return root;
}

/** The ends of the engine's logs, for the messages of failed tests. */
export function logsBelow(dir: string): string {
  const { stdout } = spawnSync("find", [dir, "-name", "*dump.log", "-o", "-name", "restore.log"], {
    encoding: "utf8",
  });
  const logs = stdout.split("\n").filter(Boolean);
  return logs.map((file) => `${file}:\n${lastLines(file)}`).join("\n");
}

/** The last lines of a file, if there is one. */
export function lastLines(file: string): string {
  return existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(-40).join("\n") : "";
}

/** Container tools leave cgroups behind, with processes in them that are still ending. */
async function removeCgroups(name: string): Promise<void> {
  const hierarchies = readdirSync("/sys/fs/cgroup").map((each) =>
    join("/sys/fs/cgroup", each, name),
  );
  const left = [join("/sys/fs/cgroup", name), ...hierarchies].filter(
    (directory) => statSync(directory, { throwIfNoEntry: false })?.isDirectory() === true,
  );
  for (const deadline = Date.now() + 10_000; !left.every(removeCgroup); await sleep(50)) {
    if (Date.now() > deadline) throw new Error(`cgroups are in use still: ${left.join(" ")}`);
  }
}

function removeCgroup(directory: string): boolean {
  if (statSync(directory, { throwIfNoEntry: false }) === undefined) return true;
  const children = readdirSync(directory, { withFileTypes: true }).filter((child) =>
    child.isDirectory(),
  );
  if (!children.every((child) => removeCgroup(join(directory, child.name)))) return false;
  try {
    rmdirSync(directory);
    return true;
  } catch {
    return false; // EBUSY
  }
}
