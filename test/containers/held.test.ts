// What containers hold: volumes, tmpfs, a terminal, a read-only root, several processes, limits, a health check, another user, and
// servers with data in a volume. Each is checkpointed, started from it, and asked, twice.

import {
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
  existsSync,
  readdirSync,
} from "node:fs";
import { execFileSync, spawnSync } from "node:child_process";
import { basename, dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { canRunDocker, startDocker, startFromCheckpoint, type Docker } from "./dockerd.ts";
import { canHost, hasProgram } from "./host.ts";

const COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.2; done";
const VERSION = canHost("v1") ? "v1" : "v2";

describe.runIf(canRunDocker(VERSION))("containers of Docker", () => {
  let docker: Docker;
  beforeAll(async () => {
    docker = await startDocker(VERSION);
  }, 60_000);
  afterAll(async () => docker?.stop(), 60_000);

  test("a volume, a tmpfs with files, and a read-only root", { timeout: 60_000 }, async () => {
    const data = join(docker.dir, "data-of-volumes");
    mkdirSync(data);
    const name = run(docker, "volumes", {
      options: ["-v", `${data}:/data`, "--tmpfs", "/scratch", "--read-only"],
      command: [
        "sh",
        "-c",
        `echo kept > /scratch/file; exec 3>/scratch/open; exec 4</scratch/file; (${COUNT}) > /data/count`,
      ],
    });
    const numbers = (): number[] =>
      existsSync(join(data, "count")) ? lines(readFileSync(join(data, "count"), "utf8")) : [];
    for (let round = 1; round <= 2; round++) {
      await atLeast(numbers, numbers().length + 3);
      await again(docker, name, `c${round}`);
      await atLeast(numbers, numbers().length + 3);
      expect(docker.run("exec", name, "cat", "/scratch/file")).toBe("kept");
      expect(docker.try("exec", name, "sh", "-c", "echo x > /etc/x").status).not.toBe(0);
      expect(docker.run("exec", name, "ls", "-l", "/proc/1/fd/3")).toContain("/scratch/open");
    }
    expectNoGap(numbers());
  });

  test("a terminal", { timeout: 60_000 }, async () => {
    const name = run(docker, "terminal", { options: ["-t"], command: ["sh", "-c", COUNT] });
    const numbers = (): number[] => lines(docker.run("logs", name).replaceAll("\r", ""));
    for (let round = 1; round <= 2; round++) {
      await atLeast(numbers, numbers().length + 3);
      await again(docker, name, `c${round}`);
      await atLeast(numbers, numbers().length + 3);
      expect(docker.run("exec", name, "ls", "-l", "/proc/1/fd/1")).toMatch(
        /\/dev\/(pts\/0|console)/,
      );
    }
    expectNoGap(numbers());
  });

  test("several processes, another user, a health check", { timeout: 60_000 }, async () => {
    const script = `${COUNT} & sleep 1000 & (${COUNT}) >/dev/null & wait`;
    const name = run(docker, "several", {
      options: ["--user", "1234:5678", "--health-cmd", "id", "--health-interval", "1s"],
      command: ["sh", "-c", script],
    });
    const numbers = (): number[] => lines(docker.run("logs", name));
    for (let round = 1; round <= 2; round++) {
      await atLeast(numbers, numbers().length + 3);
      await again(docker, name, `c${round}`);
      await atLeast(numbers, numbers().length + 3);
      expect(docker.run("exec", name, "ps").split("\n").length).toBeGreaterThanOrEqual(6);
      expect(statusOf(docker, name, "Uid")).toBe("1234\t1234\t1234\t1234");
      expect(statusOf(docker, name, "Seccomp")).toBe("2");
      await expect
        .poll(() => docker.run("inspect", "-f", "{{.State.Health.Status}}", name), {
          timeout: 10_000,
        })
        .toBe("healthy");
    }
    expectNoGap(numbers());
  });

  test("what is set on the command line", { timeout: 60_000 }, async () => {
    const options = [
      "--init --hostname=here --ulimit=nofile=100:200 --oom-score-adj=300 --shm-size=8m",
      "--sysctl=net.core.somaxconn=77 --sysctl=kernel.msgmax=10000 --cpuset-cpus=0",
      "--security-opt=no-new-privileges --cap-drop=all",
    ].flatMap((line) => line.split(" "));
    const script = `echo kept > /dev/shm/file; exec 5</dev/shm/file; ${COUNT}`;
    const name = run(docker, "options", { options, command: ["sh", "-c", script] });
    const numbers = (): number[] => lines(docker.run("logs", name));
    const told =
      "hostname; grep 'open files' /proc/1/limits; cat /proc/1/oom_score_adj /dev/shm/file; df -k /dev/shm; " +
      "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax; grep -E '^(Cap|NoNewPrivs|Cpus_allowed)' /proc/1/status";
    await atLeast(numbers, 2);
    const before = docker.run("exec", name, "sh", "-c", told);
    expect(before).toMatch(/^here\nMax open files +100 +200 .*\n300\nkept\n/);
    for (let round = 1; round <= 2; round++) {
      await again(docker, name, `c${round}`);
      await atLeast(numbers, numbers().length + 3);
      expect(docker.run("exec", name, "sh", "-c", told)).toBe(before);
    }
    expectNoGap(numbers());
  });

  test("namespaces of another container", { timeout: 60_000 }, async () => {
    const host = run(docker, "whose", {
      options: ["--ipc=shareable"],
      command: ["sh", "-c", COUNT],
    });
    const options = ["network", "pid", "ipc"].map((kind) => `--${kind}=container:${host}`);
    const name = run(docker, "guest", { options, command: ["sh", "-c", COUNT] });
    const numbers = (): number[] => lines(docker.run("logs", name));
    const namespaces = (of: string): string =>
      docker.run("exec", of, "sh", "-c", "ls -l /proc/self/ns | grep -oE '(net|pid|ipc):.*'");
    await atLeast(numbers, 2);
    for (let round = 1; round <= 2; round++) {
      await again(docker, name, `c${round}`);
      await atLeast(numbers, numbers().length + 3);
      expect(namespaces(name)).toBe(namespaces(host));
    }
    expectNoGap(numbers());
    expectNoGap(lines(docker.run("logs", host)));
  });

  test.runIf(VERSION === "v1")("little memory and few processes", { timeout: 60_000 }, async () => {
    const name = run(docker, "limited", {
      options: ["--memory", "32m", "--pids-limit", "5"],
      command: ["sh", "-c", COUNT],
    });
    const numbers = (): number[] => lines(docker.run("logs", name));
    await atLeast(numbers, 3);
    await again(docker, name, "c1");
    await atLeast(numbers, numbers().length + 3);
    await again(docker, name, "c2");
    await atLeast(numbers, numbers().length + 3);
    const id = docker.run("inspect", "-f", "{{.Id}}", name);
    const setting = (controller: string, file: string): string =>
      readFileSync(join("/sys/fs/cgroup", controller, docker.host.cgroup, id, file), "utf8").trim();
    expect(setting("pids", "pids.max")).toBe("5");
    expect(setting("memory", "memory.limit_in_bytes")).toBe(String(32 * 1024 * 1024));
    expectNoGap(numbers());
  });

  test.runIf(hasProgram("redis-server"))("redis with a volume", { timeout: 60_000 }, async () => {
    importPrograms(docker, "redis", ["/usr/bin/redis-server", "/usr/bin/redis-cli"]);
    const data = join(docker.dir, "redis-data");
    mkdirSync(data);
    const server = ["/usr/bin/redis-server", "--dir", "/data", "--save", ""];
    run(docker, "redis", { options: ["-v", `${data}:/data`], command: server, image: "redis" });
    const ask = (...words: readonly string[]): string =>
      docker.run("exec", "redis", "/usr/bin/redis-cli", ...words);
    await expect
      .poll(() => docker.try("exec", "redis", "/usr/bin/redis-cli", "ping").output)
      .toBe("PONG");
    ask("set", "key", "before");
    for (let round = 1; round <= 2; round++) {
      await again(docker, "redis", `c${round}`);
      expect(ask("get", "key")).toBe(round === 1 ? "before" : "after");
      ask("set", "key", "after");
      expect(ask("save")).toBe("OK");
    }
    expect(readdirSync(data)).toContain("dump.rdb");
  });

  test.runIf(hasProgram("nginx"))(
    "nginx with workers and its pages in a volume",
    { timeout: 60_000 },
    async () => {
      importPrograms(docker, "nginx", ["/usr/sbin/nginx"]);
      const data = join(docker.dir, "nginx-data");
      mkdirSync(data);
      writeFileSync(join(data, "index.html"), "hello\n");
      const config = [
        "daemon off; worker_processes 2; user root; pid /tmp/pid; error_log /dev/stderr;",
        "events { worker_connections 64; }",
        "http { access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c;",
        "  uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e; server { listen 80; root /data; } }",
      ];
      writeFileSync(join(data, "nginx.conf"), config.join("\n"));
      const server = ["/usr/sbin/nginx", "-c", "/data/nginx.conf"];
      run(docker, "nginx", {
        options: ["-v", `${data}:/data:ro`],
        command: server,
        image: "nginx",
      });
      const get = (): string =>
        docker.try("exec", "nginx", "wget", "-q", "-O", "-", "http://127.0.0.1/").output;
      await expect.poll(get, { timeout: 10_000 }).toBe("hello");
      for (let round = 1; round <= 2; round++) {
        await again(docker, "nginx", `c${round}`);
        expect(get()).toBe("hello");
      }
    },
  );
});

function run(
  docker: Docker,
  name: string,
  of: {
    readonly options: readonly string[];
    readonly command: readonly string[];
    readonly image?: string;
  },
): string {
  docker.run("run", "-d", "--name", name, ...of.options, of.image ?? "busybox", ...of.command);
  onTestFinished(() => void docker.try("rm", "-f", name));
  return name;
}

/** Checkpoints a container, which ends it, and starts it from there. */
async function again(docker: Docker, container: string, name: string): Promise<void> {
  docker.run("checkpoint", "create", container, name);
  await startFromCheckpoint(docker, container, name);
}

function lines(text: string): number[] {
  return text.split("\n").filter(Boolean).map(Number);
}

async function atLeast(numbers: () => readonly number[], count: number): Promise<void> {
  await expect
    .poll(() => numbers().length, { timeout: 15_000, interval: 100 })
    .toBeGreaterThanOrEqual(count);
}

function statusOf(docker: Docker, name: string, field: string): string | undefined {
  const pid = docker.run("inspect", "-f", "{{.State.Pid}}", name);
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return new RegExp(`^${field}:\\s+(.*)$`, "m").exec(status)?.[1];
}

/** An image of busybox and programs of this machine with the libraries that they load. */
function importPrograms(docker: Docker, image: string, programs: readonly string[]): void {
  const root = join(docker.dir, `rootfs-${image}`);
  execFileSync("cp", ["-a", docker.host.rootfs, root]);
  for (const name of ["usr/bin", "usr/sbin", "lib64", "var/log/nginx", "var/lib/nginx"])
    mkdirSync(join(root, name), { recursive: true });
  writeFileSync(join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
  writeFileSync(join(root, "etc/group"), "root:x:0:\n");
  for (const program of programs) {
    const { stdout } = spawnSync("ldd", [program], { encoding: "utf8" });
    for (const file of [program, ...(stdout.match(/\/\S+/g) ?? [])]) {
      mkdirSync(join(root, dirname(file)), { recursive: true });
      execFileSync("cp", ["-L", file, join(root, file)]);
    }
  }
  if (!existsSync(join(root, "bin/wget"))) symlinkSync("busybox", join(root, "bin/wget"));
  const archive = join(docker.dir, `${basename(image)}.tar`);
  execFileSync("tar", ["-C", root, "-cf", archive, "."]);
  docker.run("import", archive, image);
}

/** It counts on while it is looked at: the numbers are those of one moment. */
function expectNoGap(numbers: readonly number[]): void {
  expect(numbers).toEqual(numbers.map((_, index) => index));
}
