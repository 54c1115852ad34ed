// Image sets that CRIU 4.2 made on another machine are brought back, and the processes are looked at from outside: their
// memory, descriptors, signals and timers must be what the images say, and they must go on.

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  readlinkSync,
  statSync,
} from "node:fs";
import { execFileSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, onTestFinished, test, type TestContext } from "vitest";
import { restore } from "../../src/engine/restore.ts";
import { join } from "node:path";
import { RepriseError } from "../../src/errors.ts";
import { isMapped } from "../../src/objects/memory/vma.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { imagesOf, isAnyPidTaken, layOut, readSet, removeLayout } from "./criu-fixtures.ts";
import { makeDir, removeDir } from "./programs.ts";

const PAGE = 4096;
/** Of tiny: two arrays of 1024 and 4096 words. */
const BSS_PAGES = 10;

afterEach(removeLayout);

interface Restored {
  /** Number here of a process with this number in the images. */
  readonly pid: (inner: number) => number;
  readonly root: number;
  /** Directory of the files that the program uses. */
  readonly run: string;
}

/** Restores a set; the test is skipped where the machine has another libc than that of the dump. */
async function bringBack(set: string, context: TestContext): Promise<Restored> {
  const run = layOut(set);
  const imagesDir = imagesOf(set);
  const loaded = readSet(set);
  const newPidNamespace = isAnyPidTaken(loaded);
  try {
    await restore({ imagesDir, newPidNamespace, dryRun: true });
  } catch (error) {
    if (error instanceof RepriseError && /\/usr\/lib\//.test(error.message))
      context.skip(`this machine is not like that of the dump: ${error.message}`);
    throw error;
  }
  const workDir = makeDir("fixture");
  onTestFinished(() => removeDir(workDir));
  const { pid: root } = await restore({ imagesDir, workDir, newPidNamespace });
  const pids = new Map([...processes(root)].map((pid) => [innerPid(pid), pid]));
  onTestFinished(() => end(root, [...pids.values()]));
  expect(new Set(pids.keys())).toEqual(new Set(loaded.tasks.keys()));
  for (const [inner, { live }] of loaded.tasks) {
    if (live !== undefined) expectMaps(pids.get(inner) ?? 0, live.mm.vmas);
  }
  return { root, run, pid: (inner) => pids.get(inner) ?? 0 };
}

function* processes(pid: number): Generator<number> {
  yield pid;
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  for (const child of children.split(" ").filter(Boolean)) yield* processes(Number(child));
}

function innerPid(pid: number): number {
  return Number(field(pid, "NSpid").split(/\s+/).at(-1));
}

/** Ends the root first, stopped, so that it makes nobody anew. */
async function end(root: number, known: readonly number[]): Promise<void> {
  signal(root, "SIGSTOP");
  const pids = new Set([root, ...(isLiving(root) ? processes(root) : []), ...known]);
  for (const pid of pids) signal(pid, "SIGKILL");
  while ([...pids].some(isLiving)) await sleep(5);
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // It is gone.
  }
}

function isLiving(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

function field(pid: number, name: string): string {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return new RegExp(`^${name}:\\s+(.*)$`, "m").exec(status)?.[1] ?? "";
}

type Vmas = Parameters<typeof isMapped>[0][];

/** Every area of the image is mapped with its protection, and nothing else is there. */
function expectMaps(pid: number, vmas: readonly Vmas[number][]): void {
  const wanted = new Set<string>();
  for (const vma of vmas.filter(isMapped)) {
    const letters = [1, 2, 4].map((bit, i) => ((vma.prot & bit) !== 0 ? "rwx"[i] : "-")).join("");
    const sharing = (vma.flags & 1) !== 0 ? "s" : "p";
    for (let at = vma.start; at < vma.end; at += PAGE) wanted.add(`${at}${letters}${sharing}`);
  }
  const found = new Set<string>();
  // The code of another kernel's vdso stays, with jumps into this kernel's.
  const kernels = vmas.filter((vma) => !isMapped(vma));
  for (const line of readFileSync(`/proc/${pid}/maps`, "utf8").trimEnd().split("\n")) {
    const [range = "", permissions = "", , , , name = ""] = line.split(/\s+/);
    if (/^\[v(dso|var|var_vclock|syscall)\]$/.test(name)) continue;
    const [start = 0, stop = 0] = range.split("-").map((text) => Number.parseInt(text, 16));
    if (kernels.some((vma) => vma.start <= start && stop <= vma.end)) continue;
    for (let at = start; at < stop; at += PAGE) found.add(`${at}${permissions}`);
  }
  expect([...wanted].filter((page) => !found.has(page))).toEqual([]);
  expect([...found].filter((page) => !wanted.has(page))).toEqual([]);
}

function memory(pid: number, address: number, length: number): Buffer {
  const fd = openSync(`/proc/${pid}/mem`, "r");
  const bytes = Buffer.alloc(length);
  readSync(fd, bytes, 0, length, address);
  closeSync(fd);
  return bytes;
}

/** Our own copy of a descriptor of another process. */
function copyFd(pid: number, fd: number): number {
  const pidfd = syscall("pidfd_open", pid, 0);
  const copy = syscall("pidfd_getfd", pidfd, fd, 0);
  closeSync(pidfd);
  onTestFinished(() => closeSync(copy));
  return copy;
}

function read(fd: number, length: number): string {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, readSync(fd, bytes)).toString("latin1");
}

async function until(what: string, isTrue: () => boolean): Promise<void> {
  for (const limit = Date.now() + 5000; !isTrue();) {
    if (Date.now() > limit) throw new Error(`waited in vain: ${what}`);
    await sleep(10);
  }
}

function area(pid: number, name: RegExp): number {
  const line = readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .find((text) => name.test(text));
  return Number.parseInt(line ?? "", 16);
}

describe("sets of CRIU come back", () => {
  test("tiny: it goes on counting", async (context) => {
    const { root } = await bringBack("tiny", context);
    // All of .bss; the counter is in one of its pages.
    const bss = area(root, /rw-p 00000000 00:00 0\s*$/);
    const first = memory(root, bss, BSS_PAGES * PAGE);
    await until("the counter changes", () => !memory(root, bss, BSS_PAGES * PAGE).equals(first));
  });

  test("shell-loop: the shell writes its next line when its child ends", async (context) => {
    const { root, pid, run } = await bringBack("shell-loop", context);
    expect(readlinkSync(`/proc/${root}/fd/1`)).toBe(`${run}/out`);
    expect(readlinkSync(`/proc/${root}/fd/10`)).toBe("/tmp/criu-fx/bin/shell-loop.sh");
    process.kill(pid(11806), "SIGTERM");
    await until("the next line", () => readFileSync(`${run}/out`, "utf8").startsWith("1\n"));
    await until("the next line", () => readFileSync(`${run}/out`, "utf8").endsWith("2\n"));
  });

  test("threads-pipes: threads, data in pipes, signals, timers, the dead and the stopped", async (context) => {
    const { root, pid } = await bringBack("threads-pipes", context);
    const threads = readdirSync(`/proc/${root}/task`).map((tid) => {
      const stat = readFileSync(`/proc/${root}/task/${tid}/stat`, "utf8");
      return [
        stat.slice(stat.indexOf("(") + 1, stat.lastIndexOf(")")),
        stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16],
      ];
    });
    expect(threads).toEqual([
      ["threads-pipes", "0"],
      ["worker-1", "0"],
      ["worker-2", "0"],
      ["worker-3", "5"],
    ]);
    expect(field(pid(14165), "State")).toMatch(/^Z/);
    expect(field(pid(14166), "Name")).toBe("child");
    expect(field(pid(14167), "State")).toMatch(/^T/);
    expect(field(root, "Umask")).toBe("0027");
    // SIGUSR1 for the leader alone; twice signal 35 for the process.
    expect(BigInt(`0x${field(root, "SigPnd")}`)).toBe(1n << 9n);
    expect(BigInt(`0x${field(root, "ShdPnd")}`)).toBe(1n << 34n);
    expect(BigInt(`0x${field(root, "SigIgn")}`) & (1n << 12n)).toBe(1n << 12n);
    expect(readFileSync(`/proc/${root}/timers`, "utf8")).toMatch(/^signal: 12\/0+1234$/m);
    expect(readFileSync(`/proc/${root}/limits`, "utf8")).toMatch(/^Max open files +777 +4096 /m);
    expect(read(copyFd(root, 3), 100)).toBe("hello pipe\n");
    expect(read(copyFd(root, 5), 10_000)).toBe("B".repeat(5000));
    expect(read(copyFd(root, 7), 100)).toBe("fifo data");
  });

  for (const set of ["shmem", "chain"]) {
    test(`${set}: mappings of every kind, in two processes`, async (context) => {
      const { root, pid } = await bringBack(set, context);
      const child = pid(set === "shmem" ? 15365 : 18370);
      const page = (address: number): string => memory(root, address, PAGE).toString("latin1");
      expect(page(0x1000_0000)).toBe("u".repeat(PAGE));
      expect(page(0x1000_1000)).toBe("u".repeat(PAGE));
      expect(page(0x1000_4000)).toBe("\0".repeat(PAGE));
      expect(page(0x1000_8000)).toBe("v".repeat(PAGE));
      expect(page(0x2000_0000)).toBe("g".repeat(PAGE));
      expect(page(0x3000_0000)).toBe("w".repeat(PAGE));
      const shared = area(root, /rw-s .*\/dev\/zero/);
      expect(page(shared)).toBe("a".repeat(PAGE));
      expect(page(shared + 3 * PAGE)).toBe(`D${"d".repeat(PAGE - 1)}`);
      const [file, pages] = [area(root, /rw-s .*\/mapped/), area(root, /rw-p .*\/mapped/)];
      expect(page(file).startsWith("in the file\0")).toBe(true);
      expect(page(pages + 2 * PAGE).startsWith("only here\0")).toBe(true);
      const memfd = openSync(`/proc/${root}/fd/3`, "r");
      expect(read(memfd, PAGE)).toBe("m".repeat(PAGE));
      closeSync(memfd);
      // One memory: what is written in one process is seen in the other.
      const writer = openSync(`/proc/${root}/fd/3`, "r+");
      onTestFinished(() => closeSync(writer));
      syscall("pwrite64", writer, Buffer.from("seen"), 4, 0);
      const inChild = area(child, /rw-s .*memfd:fx-memfd/);
      expect(memory(child, inChild, 5).toString()).toBe("seenm");
    });
  }

  test("ghost: deleted files have their content, and one its other name", async (context) => {
    const { root, run } = await bringBack("ghost", context);
    expect(readFileSync(`/proc/${root}/fd/3`, "utf8")).toBe("ghost content\n");
    expect(readlinkSync(`/proc/${root}/fd/3`)).toBe(`${run}/gone-small (deleted)`);
    const sparse = readFileSync(`/proc/${root}/fd/4`);
    expect([
      sparse.length,
      sparse.toString("latin1", 0, 4),
      sparse.toString("latin1", 200_000),
    ]).toEqual([200_004, "head", "tail"]);
    expect(statSync(`/proc/${root}/fd/4`).blocks).toBeLessThan(200);
    expect(statSync(`/proc/${root}/fd/5`).ino).toBe(statSync(`${run}/linked-b`).ino);
    expect(statSync(`/proc/${root}/fd/6`).isDirectory()).toBe(true);
    const info = (fd: number): string => readFileSync(`/proc/${root}/fdinfo/${fd}`, "utf8");
    expect(info(7)).toMatch(/^pos:\t4\nflags:\t0102002$/m);
    expect(info(9)).toMatch(/^flags:\t010/m);
    expect(info(7)).toMatch(/^lock:\t\d+: POSIX +ADVISORY +WRITE \d+ \S+ 2 4$/m);
    expect(info(8)).toMatch(/^lock:\t\d+: FLOCK +ADVISORY +READ /m);
    expect(info(11)).toMatch(/^lock:\t\d+: OFDLCK ADVISORY +READ -1 \S+ 8 EOF$/m);
    expect(readlinkSync(`/proc/${root}/cwd`)).toBe(`${run}/cwd`);
  });

  test("pty: a terminal with its settings, its session and what is on its way", async (context) => {
    if (existsSync("/dev/pts/0"))
      context.skip("terminal /dev/pts/0 is in use, whose number the set has");
    const { root, pid } = await bringBack("pty", context);
    const child = pid(15711);
    expect(readlinkSync(`/proc/${root}/fd/5`)).toBe("/dev/ptmx");
    const slave = readlinkSync(`/proc/${child}/fd/0`);
    const settings = execFileSync("stty", ["-a", "-F", slave], { encoding: "utf8" });
    expect(settings).toContain("rows 41; columns 123;");
    expect(settings).toMatch(/ -icanon /);
    expect(settings).toMatch(/ -echo /);
    const stat = readFileSync(`/proc/${child}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
    expect(stat[3]).toBe(String(stat[2]));
    expect(stat[4]).not.toBe("0");
    expect(stat[5]).toBe(stat[2]);
    expect(read(copyFd(root, 5), 100)).toBe("out to master");
    expect(read(copyFd(child, 0), 100)).toBe("typed in");
  });

  test("unix: pairs with what was sent and not read", async (context) => {
    const { root } = await bringBack("unix", context);
    expect(read(copyFd(root, 3), 100)).toBe("from four Afrom four B");
    expect(read(copyFd(root, 4), 100)).toBe("from three");
  });

  test("seccomp: the filters are in force", async (context) => {
    const { root } = await bringBack("seccomp", context);
    expect(field(root, "Seccomp")).toBe("2");
    const filters = readdirSync(`/proc/${root}/task`).map(
      (tid) =>
        /^Seccomp_filters:\s+(\d+)$/m.exec(
          readFileSync(`/proc/${root}/task/${tid}/status`, "utf8"),
        )?.[1],
    );
    expect(filters).toEqual(["2", "1"]);
  });
});

test("userns: a user and a time namespace", async (context) => {
  const { root } = await bringBack("userns", context);
  expect(readFileSync(`/proc/${root}/uid_map`, "utf8").trim().split(/\s+/)).toEqual([
    "0",
    "0",
    "1",
  ]);
  expect(readlinkSync(`/proc/${root}/ns/user`)).not.toBe(readlinkSync("/proc/self/ns/user"));
  expect(readlinkSync(`/proc/${root}/ns/time`)).not.toBe(readlinkSync("/proc/self/ns/time"));
});

test("evfds: descriptors of events, with what they wait for", async (context) => {
  const { root } = await bringBack("evfds", context);
  const kinds = readdirSync(`/proc/${root}/fd`).map((fd) => readlinkSync(`/proc/${root}/fd/${fd}`));
  for (const kind of ["eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify"])
    expect(kinds.filter((link) => link.includes(kind)).length, kind).toBeGreaterThan(0);
});

test("nsinit: a container whose root has another content is refused, and nothing stays", async () => {
  const root = makeDir("fixture");
  onTestFinished(() => removeDir(root));
  for (const directory of ["bin", "dev", "dir", "inner", "proc"]) mkdirSync(join(root, directory));
  const children = (): number[] => [...processes(process.pid)].slice(1);
  const before = readFileSync("/proc/self/mountinfo", "utf8");
  const childrenBefore = children();
  await expect(restore({ imagesDir: imagesOf("nsinit"), root })).rejects.toThrow("/bin/nsinit");
  expect(readFileSync("/proc/self/mountinfo", "utf8")).toBe(before);
  // Who would take the network lock back, had the engine died, is ending.
  await until("only the children of before", () => children().join() === childrenBefore.join());
});
