// Namespaces, mounts and cgroups that are saved before the tree is frozen: what is changed between the look and the freeze is in the
// images, and what is not is not saved twice.

import { execFileSync, spawn } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import { checkpoint, type CheckpointOptions } from "../../src/engine/checkpoint.ts";
import type * as Freeze from "../../src/engine/freeze.ts";
import type { NetDeviceEntry } from "../../src/images/schema/messages.generated.ts";
import { ImageSetReader } from "../../src/images/image-set.ts";
import { LogLevel, setLogSink } from "../../src/log.ts";
import { hierarchyName } from "../../src/objects/cgroups/hierarchies.ts";
import { readCgroups } from "../../src/proc/cgroup.ts";
import { readComm } from "../../src/proc/comm.ts";
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../src/sys/abi/mman.ts";
import { memoryAt, syscall } from "../../src/sys/ffi.ts";
import { makeDir, removeDir } from "./programs.ts";
import { enter, makeCgroup, type TestCgroup } from "./test-cgroups.ts";

/** Called when everything has been looked at, and nothing is frozen yet. */
let beforeFreeze: () => void = () => undefined;

vi.mock("../../src/engine/freeze.ts", async (importOriginal) => {
  const freeze = await importOriginal<typeof Freeze>();
  const freezeTree: typeof freeze.freezeTree = (root, options) => {
    beforeFreeze();
    return freeze.freezeTree(root, options);
  };
  return { ...freeze, freezeTree };
});

afterEach(() => {
  setLogSink(undefined);
  beforeFreeze = () => undefined;
});

/** A process in namespaces of its own, with a file system in memory and one of queues. */
interface Subject {
  readonly pid: number;
  readonly dir: string;
  /** From outside. */
  readonly memory: string;
  readonly queues: string;
  readonly cgroup: TestCgroup;
  readonly elsewhere: TestCgroup;
  /** A setting of the cgroup. */
  readonly setting: string;
  /** Runs a program in its namespaces. */
  readonly run: (...words: [string, ...string[]]) => void;
}

/** Older than what the kernel's clock of files could mistake for now. */
const SETTLED_MS = 60;

async function startSubject(): Promise<Subject> {
  const dir = makeDir("spaces");
  onTestFinished(() => removeDir(dir));
  for (const name of ["memory", "queues"]) mkdirSync(join(dir, name));
  const script = [
    "mount -t tmpfs memory memory",
    "mkdir memory/below && echo content > memory/below/file && ln -s file memory/below/link",
    "mknod memory/null c 1 3",
    "mount -t mqueue queues queues",
    "hostname before",
    // Addresses of IPv6 would be tried out for a while.
    "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6",
    "ip link add v0 type veth peer name v1 && ip link add idle type veth peer name i1",
    "ip addr add 10.9.0.1/24 dev v0 && ip link set v0 up && ip link set v1 up",
    "exec sleep 600",
  ].join(" && ");
  const flags = ["-m", "-u", "-i", "-n", "--propagation", "private"];
  const { pid = 0 } = spawn("unshare", [...flags, "sh", "-c", script], {
    cwd: dir,
    stdio: "ignore",
    detached: true,
  });
  const isV1 = readCgroups(process.pid).some((entry) => hierarchyName(entry) === "pids");
  const [cgroup, elsewhere] = [
    makeCgroup(isV1 ? "pids" : "", "spaces"),
    makeCgroup(isV1 ? "pids" : "", "elsewhere"),
  ];
  onTestFinished(() => {
    process.kill(pid, "SIGKILL");
  });
  await vi.waitUntil(() => readComm(pid) === "sleep", { timeout: 5000, interval: 5 });
  enter(cgroup, pid);
  await sleep(SETTLED_MS);
  return {
    pid,
    dir,
    memory: `/proc/${pid}/root${dir}/memory`,
    queues: `/proc/${pid}/root${dir}/queues`,
    cgroup,
    elsewhere,
    setting: isV1 ? "pids.max" : "cgroup.max.depth",
    run: (...words) =>
      void execFileSync("nsenter", ["-t", String(pid), "-m", "-u", "-i", "-n", "--", ...words]),
  };
}

/** Dumps it; gives the images, and the log's lines about what was saved again. */
async function dump(
  { pid, dir }: Subject,
  options: Partial<CheckpointOptions> = {},
): Promise<{ set: ImageSetReader; again: string[] }> {
  const lines: string[] = [];
  setLogSink((_level, text) => void lines.push(text), LogLevel.DEBUG);
  const imagesDir = join(dir, "images");
  await checkpoint({ pid, imagesDir, leave: "running", external: ["mnt[]:ms"], ...options });
  const set = new ImageSetReader(imagesDir);
  set.verify();
  return { set, again: lines.filter((line) => line.includes(" again")) };
}

/** Ids of its namespaces in the images. */
function idsIn(set: ImageSetReader): { mnt: number; uts: number; ipc: number; net: number } {
  const [pid = 0] = set.readOne("pstree").threads;
  const {
    mnt_ns_id: mnt = 0,
    uts_ns_id: uts = 0,
    ipc_ns_id: ipc = 0,
    net_ns_id: net = 0,
  } = set.readOne("ids", pid);
  return { mnt, uts, ipc, net };
}

/** What is in the images of the file system in memory: a line a file, then the content of one. */
function archived(set: ImageSetReader): string {
  const mounts = set.read("mountpoints", idsIn(set).mnt);
  const entry = mounts.find(({ source }) => source === "memory");
  const archive = set.path("tmpfs-dev", entry?.root_dev);
  const list = (flags: string, ...names: string[]): string =>
    execFileSync("tar", [flags, archive, "--xattrs", "--xattrs-include=*", ...names], {
      encoding: "utf8",
    });
  return list("-tvvzf") + list("-xOzf", "./below/file");
}

test("nothing is saved again of what nobody has changed", async () => {
  const subject = await startSubject();
  const { set, again } = await dump(subject);
  expect(again).toEqual([]);
  expect(archived(set)).toMatch(/ \.\/below\/file\n[^]*content\n$/);
  expect(set.readOne("utsns", idsIn(set).uts).nodename).toBe("before");
});

test("a mount of outside that the tree does not have is not in the way", async () => {
  const subject = await startSubject();
  beforeFreeze = () => {
    execFileSync("mount", ["-t", "tmpfs", "outside", join(subject.dir, "memory")]);
    onTestFinished(() => void execFileSync("umount", [join(subject.dir, "memory")]));
  };
  const { again } = await dump(subject);
  expect(again).toEqual([]);
});

/** What may happen between the look and the freeze. */
interface Change {
  readonly what: string;
  readonly change: (subject: Subject) => void;
  readonly saved: (set: ImageSetReader, subject: Subject) => unknown;
  readonly expected: unknown;
  /** What the log says then. */
  readonly again: RegExp;
}

const MEMORY = /^what is in .*\/memory is saved again: it has changed$/;
const SPACES = /^namespaces and mounts are looked at again: they have changed$/;

const CHANGES: readonly Change[] = [
  {
    what: "a host name",
    change: ({ run }) => run("hostname", "after"),
    saved: (set) => set.readOne("utsns", idsIn(set).uts).nodename,
    expected: "after",
    again: /^uts namespace \d+ is saved again/,
  },
  {
    what: "a limit of the IPC namespace",
    change: ({ run }) => run("sh", "-c", "echo 77 > /proc/sys/kernel/shmmni"),
    saved: (set) => set.readOne("ipcns-var", idsIn(set).ipc).shm_ctlmni,
    expected: 77,
    again: /^ipc namespace \d+ is saved again/,
  },
  ...(["shm", "sem", "msg"] as const).map((kind) => ({
    what: `a System V object (${kind})`,
    change: ({ run }: Subject) => run("ipcmk", ...IPCMK[kind]),
    saved: (set: ImageSetReader) => set.read(`ipcns-${kind}`, idsIn(set).ipc).length,
    expected: 1,
    again: /^ipc namespace \d+ is saved again/,
  })),
  {
    what: "a new file in memory",
    change: ({ memory }) => writeFileSync(join(memory, "new"), ""),
    saved: archived,
    expected: expect.stringContaining(" ./new\n"),
    again: MEMORY,
  },
  {
    what: "a file in memory that went",
    change: ({ memory }) => unlinkSync(join(memory, "below", "link")),
    saved: archived,
    expected: expect.not.stringContaining("link"),
    again: MEMORY,
  },
  {
    what: "a name in memory",
    change: ({ memory }) => renameSync(join(memory, "null"), join(memory, "nothing")),
    saved: archived,
    expected: expect.stringContaining(" ./nothing\n"),
    again: MEMORY,
  },
  {
    what: "a mode of a file in memory",
    change: ({ memory }) => chmodSync(join(memory, "null"), 0o600),
    saved: archived,
    expected: expect.stringMatching(/^crw------- .* \.\/null$/m),
    again: MEMORY,
  },
  {
    what: "an attribute of a file in memory",
    change: ({ memory }) => {
      const name = Buffer.from(`${join(memory, "null")}\0`);
      syscall("lsetxattr", name, Buffer.from("trusted.mark\0"), Buffer.from("set"), 3, 0);
    },
    saved: archived,
    expected: expect.stringContaining("trusted.mark"),
    again: MEMORY,
  },
  {
    what: "the content of a file in memory",
    change: ({ memory }) => appendFileSync(join(memory, "below", "file"), "more\n"),
    saved: archived,
    expected: expect.stringMatching(/content\nmore\n$/),
    again: MEMORY,
  },
  {
    what: "a mount",
    change: ({ run, dir }) => run("mount", "-t", "tmpfs", "another", join(dir, "memory/below")),
    saved: (set) => set.read("mountpoints", idsIn(set).mnt).map(({ source }) => source),
    expected: expect.arrayContaining(["another"]),
    again: SPACES,
  },
  {
    what: "a setting of a cgroup",
    change: ({ cgroup, setting }) => writeFileSync(join(cgroup.directory, setting), "7"),
    saved: (set, { setting }) => savedSetting(set, setting),
    expected: "7",
    again: /^the cgroups are saved again/,
  },
  {
    what: "a cgroup below",
    change: ({ cgroup }) => {
      const below = join(cgroup.directory, "below");
      mkdirSync(below);
      onTestFinished(() => rmdirSync(below));
    },
    saved: (set) => JSON.stringify(set.readOne("cgroup").controllers),
    expected: expect.stringContaining('"below"'),
    again: /^the cgroups are saved again/,
  },
  {
    what: "the cgroup of a task",
    change: ({ elsewhere, pid }) => enter(elsewhere, pid),
    saved: (set) => JSON.stringify(set.readOne("cgroup").sets),
    expected: expect.stringMatching(/-elsewhere"/),
    again: /^the cgroups are saved again/,
  },
];

/** Of a network namespace: a command, and what is saved. */
const NET_CHANGES: readonly {
  readonly what: string;
  readonly command: string;
  readonly saved: (set: ImageSetReader, id: number) => unknown;
  readonly expected: unknown;
}[] = [
  {
    what: "a setting",
    command: "echo 77 > /proc/sys/net/ipv4/tcp_fin_timeout",
    saved: (set, id) => settingIn(set, id, "ipv4/tcp_fin_timeout"),
    expected: "77",
  },
  {
    what: "an address",
    command: "ip addr add 10.9.0.77/24 dev v0",
    saved: (set, id) => hex(set, "ifaddr", id),
    expected: expect.stringContaining("0a09004d"),
  },
  {
    what: "a route",
    command: "ip route add 10.77.0.0/16 via 10.9.0.2",
    saved: (set, id) => hex(set, "route", id),
    expected: expect.stringContaining("0a4d0000"),
  },
  {
    what: "a rule",
    command: "ip rule add from 10.78.0.0/16 table 78",
    saved: (set, id) => hex(set, "rule", id),
    expected: expect.stringContaining("0a4e0000"),
  },
  {
    what: "a next hop",
    command: "ip nexthop add id 7 via 10.9.0.79 dev v0",
    saved: (set, id) => Buffer.from(set.readOne("netns", id).nexthops ?? []).toString("hex"),
    expected: expect.stringContaining("0a09004f"),
  },
  {
    what: "a neighbour",
    command: "ip neigh add 10.9.0.80 lladdr 02:00:00:00:00:50 dev v0 nud permanent",
    saved: (set, id) => neighboursIn(set, id, "v0"),
    expected: expect.stringContaining("0a090050"),
  },
  {
    what: "a neighbour that is answered for",
    command: "ip neigh add proxy 10.9.0.81 dev v0",
    saved: (set, id) => neighboursIn(set, id, "v0"),
    expected: expect.stringContaining("0a090051"),
  },
  {
    what: "the alias of a device that is down",
    command: "ip link set idle alias another",
    saved: (set, id) => Buffer.from(device(set, id, "idle")?.link_attributes ?? []).toString(),
    expected: expect.stringContaining("another"),
  },
  {
    what: "a device",
    command: "ip link add late type veth peer name l1",
    saved: (set, id) => device(set, id, "late")?.name,
    expected: "late",
  },
  {
    what: "a table of the firewall",
    command: "nft add table inet late",
    saved: (set, id) => readFileSync(set.path("nftables", id), "utf8"),
    expected: expect.stringContaining("table inet late"),
  },
];

function hex(set: ImageSetReader, kind: "ifaddr" | "route" | "rule", id: number): string {
  return readFileSync(set.path(kind, id)).toString("hex");
}

function settingIn(set: ImageSetReader, id: number, wanted: string): string | undefined {
  return set.readOne("netns", id).sysctls.find(({ name }) => name === wanted)?.value;
}

function device(set: ImageSetReader, id: number, wanted: string): NetDeviceEntry | undefined {
  return set.read("netdev", id).find(({ name }) => name === wanted);
}

function neighboursIn(set: ImageSetReader, id: number, name: string): string {
  return Buffer.from(device(set, id, name)?.neighbours ?? []).toString("hex");
}

const IPCMK = { shm: ["-M", "4096"], sem: ["-S", "2"], msg: ["-Q"] } as const;

function savedSetting(set: ImageSetReader, name: string): string | undefined {
  const { controllers } = set.readOne("cgroup");
  const properties = controllers.flatMap(({ dirs }) => dirs.flatMap((dir) => dir.properties));
  return properties.find((property) => property.name === name)?.value;
}

test.each(CHANGES)(
  "$what that changes after the look is saved",
  async ({ change, saved, expected, again: said }) => {
    const subject = await startSubject();
    beforeFreeze = () => change(subject);
    const { set, again } = await dump(subject);
    expect(saved(set, subject)).toEqual(expected);
    expect(again).toEqual([expect.stringMatching(said)]);
  },
);

const NET = /^net namespace \d+ is saved again: it has changed$/;

test.each(NET_CHANGES)(
  "$what in the network that changes after the look is saved",
  async ({ command, saved, expected }) => {
    const subject = await startSubject();
    beforeFreeze = () => subject.run("sh", "-c", command);
    const { set, again } = await dump(subject);
    expect(saved(set, idsIn(set).net)).toEqual(expected);
    expect(again).toEqual([expect.stringMatching(NET)]);
  },
);

test("of a network that is to stay empty a setting that changes after the look is saved", async () => {
  const subject = await startSubject();
  beforeFreeze = () => subject.run("sh", "-c", "echo 77 > /proc/sys/net/ipv4/tcp_fin_timeout");
  const { set, again } = await dump(subject, { emptyNet: true });
  expect(settingIn(set, idsIn(set).net, "ipv4/tcp_fin_timeout")).toBe("77");
  expect(again).toEqual([expect.stringMatching(NET)]);
});

test("nothing is saved again when the network is to stay empty", async () => {
  const { again } = await dump(await startSubject(), { emptyNet: true });
  expect(again).toEqual([]);
});

test("what is written through a mapping after the look is saved, though the file does not tell of it", async () => {
  const subject = await startSubject();
  const fd = openSync(join(subject.memory, "below", "file"), "r+");
  const at = syscall("mmap", 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  closeSync(fd);
  onTestFinished(() => void syscall("munmap", at, 4096));
  const bytes = memoryAt(at, 7);
  bytes.set(Buffer.from("CONTENT"));
  await sleep(SETTLED_MS);
  beforeFreeze = () => bytes.set(Buffer.from("changed"));
  const { set, again } = await dump(subject);
  expect(archived(set)).toMatch(/changed\n$/);
  expect(again).toEqual([expect.stringMatching(MEMORY)]);
});

test("a queue that is made after the look is no less refused", async () => {
  const subject = await startSubject();
  beforeFreeze = () => writeFileSync(join(subject.queues, "queue"), "");
  await expect(dump(subject)).rejects.toMatchObject({ code: "UNSUPPORTED" });
});

test("what was changed just before the look may change unseen, and is saved in the freeze", async () => {
  const subject = await startSubject();
  writeFileSync(join(subject.memory, "fresh"), "");
  const { set, again } = await dump(subject);
  expect(archived(set)).toContain(" ./fresh\n");
  expect(again).toEqual([]);
});
