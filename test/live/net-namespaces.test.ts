// What callers may want of a tree's network namespace: devices that lead outside, none of its content, another one, and that
// no rule of the network lock stays behind. This process lives in a namespace of its own: it is the outside here.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { checkpoint, type CheckpointOptions } from "../../src/engine/checkpoint.ts";
import type { EngineHooks, ScriptAction } from "../../src/engine/progress.ts";
import { restore, type RestoreOptions } from "../../src/engine/restore.ts";
import { NetNamespace } from "../../src/objects/network/net-namespace.fixture.ts";
import { CLONE_NEWNET } from "../../src/sys/abi/sched.ts";
import { syscall } from "../../src/sys/ffi.ts";
import {
  attachProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";

let dir: string;
let imagesDir: string;
let programs: RunningProgram[];

beforeAll(() => {
  syscall("unshare", CLONE_NEWNET);
});

beforeEach(() => {
  dir = makeDir("netns");
  imagesDir = mkdtempSync(join(dir, "images-"));
  programs = [];
});

afterEach(async () => {
  for (const program of programs) await killProgram(program);
  removeDir(dir);
});

async function start(net: NetNamespace, name = "cloexec"): Promise<RunningProgram> {
  const program = await net.inside(() => startProgram(name, [], { dir }));
  programs.push(program);
  await program.waitReady();
  return program;
}

async function dump(
  program: RunningProgram,
  options: Partial<CheckpointOptions> = {},
): Promise<void> {
  await checkpoint({ pid: program.pid, imagesDir, ...options });
}

async function bringBack(options: Partial<RestoreOptions> = {}): Promise<RunningProgram> {
  const { pid } = await restore({ imagesDir, ...options });
  const program = attachProgram("cloexec", pid, dir);
  programs.push(program);
  expect(await program.ask()).toBe("ok 1");
  return program;
}

/** Output of a command in the namespace of a program, or out here. */
function run(command: string, program?: RunningProgram): string {
  const enter = program === undefined ? [] : ["-n", "-t", String(program.pid)];
  return execFileSync("nsenter", [...enter, "sh", "-c", command], { encoding: "utf8" });
}

function listener(): { hooks: EngineHooks; seen: ScriptAction[] } {
  const seen: ScriptAction[] = [];
  return { hooks: { script: (action) => void seen.push(action) }, seen };
}

it("makes a pair of devices again that leads to a bridge outside", async () => {
  run("ip link add rbr0 type bridge; ip link set rbr0 up; ip addr add 10.6.0.1/24 dev rbr0");
  using net = new NetNamespace();
  const program = await start(net);
  run(`ip link add rout0 type veth peer name in0; ip link set in0 netns ${program.pid}`);
  run("ip link set rout0 master rbr0; ip link set rout0 up");
  run(
    "ip addr add 10.6.0.2/24 dev in0; ip link set in0 up; ip route add default via 10.6.0.1",
    program,
  );
  await dump(program);
  net[Symbol.dispose]();
  await expect.poll(() => run("ip -o link"), { timeout: 5_000 }).not.toContain("rout0");

  await expect(restore({ imagesDir })).rejects.toThrow(/other end of this veth pair/);
  const again = await bringBack({ external: ["veth[in0]:rout1@rbr0"] });
  expect(run("ip -o link show rout1")).toMatch(/master rbr0 .*state UP/);
  expect(run("ip route", again)).toContain("default via 10.6.0.1 dev in0");
  const call = "bash -c 'echo > /dev/tcp/10.6.0.1/9' 2>&1 || true";
  expect(run(call, again)).toContain("refused");
  expect(run("nft list ruleset", again)).toBe("");
});

it("moves a device in that the caller has made", async () => {
  using net = new NetNamespace(
    "ip link add in0 type veth peer name in1",
    "ip link set in0 mtu 1400",
  );
  const program = await start(net);
  await dump(program);
  run(
    "ip link add given0 type veth peer name given1; ip link add given2 type veth peer name given3",
  );
  const again = await bringBack({ external: ["netdev[in0]:given0", "netdev[in1]:given2"] });
  expect(run("ip -o link show in0", again)).toMatch(/in0@if\d+: .* mtu 1400/);
  expect(run("ip -o link")).not.toContain("given0");
});

it("gives the caller's devices back when it fails", async () => {
  using net = new NetNamespace(
    "ip link add in0 type veth peer name in1",
    "ip link set in0 mtu 1400",
  );
  const program = await start(net);
  await dump(program);
  run("ip link add given0 type veth peer name given1; ip link set given0 mtu 1350 up");
  const before = run("ip -o link show given0");
  const failed = restore({
    imagesDir,
    external: ["netdev[in0]:given0", "netdev[in1]:missing"],
  });
  await expect(failed).rejects.toThrow("there is no device missing here");
  expect(run("ip -o link show given0")).toBe(before);
  const script = (action: ScriptAction): void => {
    if (action === "post-restore") throw new Error("no");
  };
  const external = ["netdev[in0]:given0", "netdev[in1]:given1"];
  await expect(restore({ imagesDir, external, hooks: { script } })).rejects.toThrow("no");
  expect(run("ip -o link show given0")).toBe(before);
  const again = await bringBack({ external });
  expect(run("ip -o link show in0", again)).toMatch(/in0@in1: .* mtu 1400/);
});

it("saves and loads of a namespace that is to stay empty what holds for the whole of it", async () => {
  const settings = {
    "core/somaxconn": "77",
    "ipv4/ip_forward": "1",
    "ipv4/ping_group_range": "5\t7",
  };
  using net = new NetNamespace(
    "ip link add in0 type veth peer name in1",
    ...Object.entries(settings).map(([name, value]) => `echo '${value}' > /proc/sys/net/${name}`),
  );
  const program = await start(net);
  await dump(program, { emptyNet: true });
  expect(readdirSync(imagesDir).filter((name) => /^(netdev|ifaddr|route)/.test(name))).toEqual([]);
  const { hooks, seen } = listener();
  const again = await bringBack({ emptyNet: true, hooks });
  expect(run("ip -o link", again).trim().split("\n")).toHaveLength(1);
  for (const [name, value] of Object.entries(settings))
    expect(run(`cat /proc/sys/net/${name}`, again)).toBe(`${value}\n`);
  expect(run("ip -o link show lo up", again)).toContain("lo");
  expect(readlinkSync(`/proc/${again.pid}/ns/net`)).not.toBe(readlinkSync("/proc/self/ns/net"));
  const order: readonly ScriptAction[] = [
    "setup-namespaces",
    "post-setup-namespaces",
    "network-unlock",
  ];
  expect(seen.filter((action) => order.includes(action))).toEqual(order);
});

it("puts the tree into another namespace, and takes the lock out of it", async () => {
  using net = new NetNamespace("ip link add in0 type veth peer name in1");
  using other = new NetNamespace("ip link add here type veth peer name there");
  const program = await start(net);
  await dump(program);
  expect(net.run("nft list ruleset")).toContain("policy drop");
  const path = `/proc/${process.pid}/fd/${other.fd}`;
  const again = await bringBack({ join: [{ kind: "net", path }] });
  expect(run("ip -o link", again)).toMatch(/here/);
  expect(run("ip -o link", again)).not.toMatch(/in0/);
  expect(other.run("nft list ruleset")).toBe("");
});

it("leaves a namespace that is somebody else's as it is", async () => {
  using net = new NetNamespace("ip link add in0 type veth peer name in1");
  const program = await start(net);
  const inode = /\d+/.exec(readlinkSync(`/proc/${program.pid}/ns/net`))?.[0];
  await dump(program, { external: [`net[${inode}]:theirs`] });
  expect(readdirSync(imagesDir).filter((name) => /^(netdev|nftables)/.test(name))).toEqual([]);
  expect(net.run("nft list ruleset")).toBe("");
  await expect(restore({ imagesDir })).rejects.toThrow(/nobody brings theirs/);
  const again = await bringBack({ inheritFds: new Map([["theirs", net.fd]]) });
  expect(run("ip -o link", again)).toMatch(/in0/);
  expect(net.run("nft list ruleset")).toBe("");
});

it("unlocks the namespace of a tree that goes on, and after a dump that fails", async () => {
  using net = new NetNamespace();
  const program = await start(net);
  const { hooks, seen } = listener();
  await dump(program, { leave: "running", hooks });
  expect(seen.filter((action) => action.startsWith("network"))).toEqual([
    "network-lock",
    "network-unlock",
  ]);
  expect(net.run("nft list ruleset")).toBe("");
  const failing = dump(program, {
    hooks: {
      script(action) {
        if (action === "post-dump") throw new Error("no");
      },
    },
  });
  await expect(failing).rejects.toThrow(/no/);
  expect(net.run("nft list ruleset")).toBe("");
  expect(await program.ask()).toBe("ok 1");
});
