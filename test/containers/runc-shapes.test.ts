// Containers of many shapes under runc, each saved and restored twice: streams that the restore gets anew, terminals, limits that
// are too narrow for the engine, hooks, mounts from outside, namespaces of others, a user namespace. A container counts to its
// standard output; whatever it has, no number may be lost or come twice.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, readSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { SCM_RIGHTS } from "../../src/sys/abi/socket.ts";
import { trySyscall } from "../../src/sys/ffi.ts";
import { receiveMessage } from "../../src/sys/socket.ts";
import { accept, listenUnix } from "../../src/sys/stream.ts";
import { makeBundle, mapUsers } from "./bundle.ts";
import { COUNT, counted, expectNoGap, numbers } from "./counting.ts";
import { canHost, hasProgram, lastLines, logsBelow, startHost, type Host } from "./host.ts";

const CYCLES = 2;

const can = canHost("v1") && hasProgram("runc") && existsSync("/bin/busybox");

describe("shapes of containers", () => {
  let host: Host;
  beforeAll(async () => {
    if (can) host = await startHost("v1");
  }, 60_000);
  afterAll(async () => {
    if (can) await host.stop();
  }, 60_000);

  test("pipes, narrow limits, hooks, mounts from outside", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "narrow", (config, dir) => {
      mkdirSync(join(dir, "data/sub"), { recursive: true });
      mkdirSync(join(dir, "nested"));
      mkdirSync(join(dir, "rootfs/real"));
      symlinkSync("real", join(dir, "rootfs/link"));
      writeFileSync(join(dir, "file"), "text");
      const hook = join(dir, "hook");
      const script = `#!/bin/sh\ncat >/dev/null\necho "$1" >>${dir}/hooks\n`;
      writeFileSync(hook, script, { mode: 0o755 });
      config.hooks = { createRuntime: [{ path: hook, args: ["hook", "createRuntime"] }] };
      config.linux.resources = { memory: { limit: 32 << 20 }, pids: { limit: 10 } };
      const bind = (source: string, destination: string): void =>
        void config.mounts.push({ destination, type: "bind", source, options: ["rbind"] });
      bind(join(dir, "data"), "/data");
      bind(join(dir, "nested"), "/data/sub");
      bind(join(dir, "file"), "/etc/file");
      bind(join(dir, "nested"), "/link/inside");
      config.root.readonly = true;
      for (const name of ["data", "etc", "link/inside"])
        mkdirSync(join(dir, "rootfs", name), { recursive: true });
      writeFileSync(join(dir, "rootfs/etc/file"), "");
    });
    const out = await cycles(host, "narrow", bundle);
    expectNoGap(numbers(out));
    const hooks = readFileSync(join(bundle, "hooks"), "utf8").trim().split("\n");
    expect(hooks).toEqual(Array.from({ length: 1 + CYCLES }, () => "createRuntime"));
    expect(host.run(...runc(host, "exec", "narrow", "cat", "/etc/file"))).toBe("text");
  });

  test("a user namespace", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "users", (config, dir) => {
      mapUsers(host, { config, bundle: dir, firstId: 100_000 });
    });
    expectNoGap(numbers(await cycles(host, "users", bundle)));
    expect(host.run(...runc(host, "exec", "users", "id", "-u"))).toBe("0");
  });

  test("network and pid namespaces of others", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    // Its first process must reap, as that of a pod does.
    const reap = "while true; do wait; sleep 0.1; done";
    const pod = spawn(
      "nsenter",
      [...host.enter, "unshare", "-n", "-p", "-f", "--kill-child", "bash", "-c", reap],
      { stdio: "ignore" },
    );
    onTestFinished(() => void pod.kill("SIGKILL"));
    const first = await firstInside(pod.pid ?? -1);
    const bundle = makeBundle(host, "podded", ({ linux }) => {
      const namespaces = { network: "net", pid: "pid" } as const;
      for (const [type, name] of Object.entries(namespaces)) {
        const found = linux.namespaces.find((one) => one.type === type);
        if (found !== undefined) found.path = `/proc/${first}/ns/${name}`;
      }
    });
    expectNoGap(numbers(await cycles(host, "podded", bundle)));
    expect(Number(host.run(...runc(host, "exec", "podded", "sh", "-c", "echo $$")))).not.toBe(1);
  });

  test(
    "a container in a container, on an overlay in its memory",
    { timeout: 60_000 },
    async (context) => {
      if (!can) context.skip("no runc, or no such cgroups");
      const bundle = makeBundle(host, "outer", (config, dir) => {
        const privileged = config as unknown as Privileged;
        privileged.process.noNewPrivileges = false;
        for (const set of ["bounding", "effective", "permitted"] as const)
          privileged.process.capabilities[set] = OF_A_RUNTIME;
        privileged.linux.maskedPaths = [];
        privileged.linux.readonlyPaths = [];
        privileged.linux.resources = { devices: [{ allow: true, access: "rwm" }] };
        for (const mount of config.mounts)
          if (mount.type === "cgroup") mount.options = ["nosuid", "noexec", "nodev", "rw"];
        for (const path of ["/usr", "/lib", "/lib64"])
          config.mounts.push({
            destination: path,
            type: "bind",
            source: path,
            options: ["rbind", "ro"],
          });
        for (const destination of ["/inner", "/run"])
          config.mounts.push({ destination, type: "tmpfs", source: "tmpfs" });
        writeFileSync(join(dir, "rootfs/root/inner"), INNER);
        config.process.args = ["sh", "-c", `. /root/inner; ${COUNT}`];
      });
      const inner = (): number[] =>
        host
          .run(...runc(host, "exec", "outer", "cat", "/inner/up/count"))
          .split("\n")
          .map(Number);
      const out = await cycles(host, "outer", bundle);
      expectNoGap(numbers(out));
      const before = inner();
      expect(before.length).toBeGreaterThan(5);
      expectNoGap(before);
      await expect
        .poll(() => inner().length, { timeout: 10_000 })
        .toBeGreaterThan(before.length + 2);
    },
  );

  test("memory that comes when it is touched", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "lazy");
    const out = join(bundle, "out");
    for (const id of ["lazy", "lazy-2"])
      onTestFinished(() => void host.try(...runc(host, "delete", "--force", id)));
    startInPipe(host, out, ["run", "--detach", "--bundle", bundle, "lazy"]);
    await counted(out, 3);
    const images = join(bundle, "images");
    mkdirSync(images);
    const places = ["--image-path", images, "--work-path", images];
    const server = ["--lazy-pages", "--page-server", "127.0.0.1:27277", "--status-fd", "9"];
    const lazily = ["--page-server", "--address", "127.0.0.1", "--port", "27277", "-D", images];
    // The container is stopped, and its memory still in it, when the status descriptor says so.
    const script = [
      `cd ${images} && mkfifo ready && exec 8<>ready 9>ready`,
      `${runc(host, "checkpoint", ...server, ...places, "lazy").join(" ")} & checkpoint=$!`,
      "head -c1 <&8 >/dev/null",
      `criu lazy-pages --daemon ${lazily.join(" ")} 9>&-`,
      `${runc(host, "restore", "--detach", "--lazy-pages", ...places, "--bundle", bundle, "lazy-2").join(" ")} </dev/null 2>&1 9>&- | cat >>${out} 9>&- &`,
      "wait $checkpoint",
    ].join("\n");
    const before = numbers(out).length;
    host.run("sh", "-c", `exec >/dev/null 2>&1; ${script}`);
    await counted(out, before + 3);
    expectNoGap(numbers(out));
  });

  test("a terminal", { timeout: 60_000 }, async (context) => {
    if (!can) context.skip("no runc, or no such cgroups");
    const bundle = makeBundle(host, "term", (config) => {
      config.process.terminal = true;
    });
    onTestFinished(() => void host.try(...runc(host, "delete", "--force", "term")));
    let text = await inTerminal(host, ["run", "--detach", "--bundle", bundle], "term");
    for (let cycle = 0; cycle < CYCLES; cycle++) {
      const images = join(bundle, `images-${cycle}`);
      const places = ["--image-path", images, "--work-path", images] as const;
      host.run(...runc(host, "checkpoint", ...places, "term"));
      text += await inTerminal(
        host,
        ["restore", "--detach", ...places, "--bundle", bundle],
        "term",
      );
    }
    // What was on its way to the first terminal when its container was stopped may be lost with it.
    const seen = text.split(/\s+/).filter(Boolean).map(Number);
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(seen.length).toBeGreaterThan(3 * CYCLES);
    expect(host.run(...runc(host, "exec", "term", "ls", "-l", "/proc/1/fd/0"))).toContain(
      "/dev/pts/0",
    );
  });
});

/** What a bundle's configuration has besides. */
interface Privileged {
  process: {
    noNewPrivileges: boolean;
    capabilities: Record<"bounding" | "effective" | "permitted", readonly string[]>;
  };
  linux: { maskedPaths: string[]; readonlyPaths: string[]; resources: unknown };
}

/** What runc needs, and gives to a container of its own. */
const OF_A_RUNTIME = [
  ..."CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP".split(" "),
  ..."NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE SYS_ADMIN NET_ADMIN SYS_PTRACE".split(" "),
].map((name) => `CAP_${name}`);

/** Starts a container of runc that counts into a file of an overlay. */
const INNER = `export PATH=/usr/sbin:/usr/bin:/bin
cd /inner
mkdir -p low/proc low/dev low/sys low/tmp up work b/rootfs
cp -a /bin low
mount -t overlay over -o lowerdir=/inner/low,upperdir=/inner/up,workdir=/inner/work b/rootfs
cd b
runc spec
sed -i 's/"terminal": true/"terminal": false/; s/"readonly": true/"readonly": false/' config.json
sed -i 's#"sh"#"sh","-c","i=0; while true; do echo $i >>/count; i=$(expr $i + 1); sleep 0.1; done"#' config.json
runc run --detach inner </dev/null >/root/log 2>&1
`;

/** Runs a container with a pipe for its output, and saves and restores it. Gives the file in which the output is collected. */
async function cycles(host: Host, name: string, bundle: string): Promise<string> {
  const out = join(bundle, "out");
  onTestFinished(() => void host.try(...runc(host, "delete", "--force", name)));
  startInPipe(host, out, ["run", "--detach", "--bundle", bundle, name]);
  await counted(out, 3);
  for (let cycle = 0; cycle < CYCLES; cycle++) {
    const images = join(bundle, `images-${cycle}`);
    const places = ["--image-path", images, "--work-path", images] as const;
    host.run(...runc(host, "checkpoint", ...places, name));
    const before = numbers(out).length;
    startInPipe(host, out, ["restore", "--detach", ...places, "--bundle", bundle, name]);
    try {
      await counted(out, before + 3);
    } catch {
      throw new Error(`${name} does not count on:\n${lastLines(out)}\n${logsBelow(bundle)}`);
    }
  }
  return out;
}

function startInPipe(host: Host, out: string, words: readonly string[]): void {
  const command = runc(host, ...words);
  const script = `out=$1; shift; "$@" </dev/null 2>&1 | cat >>"$out"`;
  spawn("nsenter", [...host.enter, "sh", "-c", script, "sh", out, ...command], {
    env: host.env,
    stdio: "ignore",
  }).unref();
}

/** Runs a command with a console socket, and reads from the terminal that it hands over for a moment. */
async function inTerminal(host: Host, words: readonly string[], id: string): Promise<string> {
  const path = join(host.dir, `console-${Date.now()}`);
  const listener = listenUnix(path);
  const [program, ...rest] = runc(host, ...words, "--console-socket", path, id);
  const command = spawn("nsenter", [...host.enter, program, ...rest], {
    env: host.env,
    stdio: "ignore",
  });
  const ended = new Promise<number | null>((resolve) => command.once("exit", resolve));
  const connection = accept(listener);
  const received = receiveMessage(connection, Buffer.alloc(4096), 0);
  if (typeof received === "number") throw new Error(`no terminal: ${received}`);
  const [rights] = received.control.filter(({ type }) => type === SCM_RIGHTS);
  const master = rights?.data.readInt32LE(0) ?? -1;
  trySyscall("close", connection);
  trySyscall("close", listener);
  try {
    expect(await ended, logsBelow(host.dir)).toBe(0);
    let text = "";
    for (const end = Date.now() + 4_000; text.split("\n").length < 5 && Date.now() < end;) {
      const bytes = Buffer.alloc(256);
      text += bytes.toString("latin1", 0, readSync(master, bytes));
      await sleep(10);
    }
    return text;
  } finally {
    // The container lives on only while somebody holds its terminal.
    onTestFinished(() => void trySyscall("close", master));
  }
}

/** The first process in the pid namespace that a process (or a child of it) has made. */
async function firstInside(pid: number): Promise<number> {
  for (const end = Date.now() + 5_000; Date.now() < end; await sleep(10)) {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ");
    const child = Number(children[0]);
    if (child > 0) return child;
  }
  throw new Error("unshare makes no process");
}

function runc(host: Host, ...words: readonly string[]): [string, ...string[]] {
  return ["runc", "--root", join(host.dir, "runc"), "--log", join(host.dir, "runc.log"), ...words];
}
