// epoll, inotify and pidfd: there and back, with a child that holds moved descriptors.
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, onTestFinished } from "vitest";
import { setLogSink } from "../../log.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { EPOLL_CTL_ADD, EPOLLONESHOT, IN_ONESHOT } from "../../sys/abi/event-files.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { epollKind, numberTargets } from "./epoll.ts";
import { handleEntry, inotifyKind } from "./inotify.ts";
import { DumpFixture, openFileOf, restoreHere } from "./live-file.fixture.ts";
import { pidfdKind } from "./pidfd.ts";
import { isSameInode, PathFinder } from "./watched-path.ts";

const open: number[] = [];
const children: ChildProcess[] = [];
const directories: string[] = [];

function keep(fd: number): number {
  open.push(fd);
  return fd;
}

/** A child that sleeps, with descriptors of ours under the numbers 0, 1, 2, 3, … */
function childWith(fds: readonly (number | "ignore")[]): number {
  const child = spawn("sleep", ["60"], { stdio: [...fds] });
  children.push(child);
  return child.pid ?? -1;
}

function directory(below = tmpdir()): string {
  const path = mkdtempSync(join(below, "reprise-watch-"));
  directories.push(path);
  return path;
}

afterEach(() => {
  for (const fd of open.splice(0)) trySyscall("close", fd);
  for (const child of children.splice(0)) child.kill("SIGKILL");
  for (const path of directories.splice(0)) rmSync(path, { recursive: true, force: true });
  setLogSink(undefined);
});

function watch(
  epoll: number,
  fd: number,
  event: { readonly events: number; readonly data: bigint },
): void {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32LE(event.events, 0);
  bytes.writeBigUInt64LE(event.data, 4);
  syscall("epoll_ctl", epoll, EPOLL_CTL_ADD, fd, bytes);
}

describe("numberTargets()", () => {
  it("counts targets of one number in their order", () => {
    const target = (tfd: number, data: bigint) => ({
      tfd,
      events: 1,
      data,
      pos: 0n,
      ino: 1n,
      sdev: 1,
    });
    const numbered = numberTargets([target(5, 1n), target(6, 2n), target(5, 3n), target(5, 4n)]);
    expect(numbered.map(({ target: { data }, offset }) => [data, offset])).toEqual([
      [1n, 0],
      [2n, 0],
      [3n, 1],
      [4n, 2],
    ]);
  });
});

describe("epoll", () => {
  it("keeps targets with events and data, and epolls that watch each other", () => {
    const outer = keep(syscall("epoll_create1", 0));
    const inner = keep(syscall("epoll_create1", 0));
    const event = keep(syscall("eventfd2", 0, O_NONBLOCK));
    watch(inner, event, { events: 0x80000001, data: 0xffff_ffff_ffff_fff0n });
    watch(outer, inner, { events: 1, data: 2n });
    using dump = new DumpFixture();
    const entries = [outer, inner].map((fd, id) => {
      const file = openFileOf(process.pid, fd);
      expect(epollKind.recognise(file, dump)).toBe(true);
      return epollKind.write(file, id + 1, dump);
    });
    expect(entries[0]?.epfd?.tfd.map(({ tfd }) => tfd)).toEqual([inner]);
    const [first = -1, second = -1] = restoreHere(epollKind, entries).map(keep);
    expect(readFdInfo({ pid: process.pid, fd: first }).epoll).toMatchObject([
      { tfd: inner, data: 2n },
    ]);
    const targets = readFdInfo({ pid: process.pid, fd: second }).epoll;
    expect(targets).toMatchObject([{ tfd: event, data: 0xffff_ffff_ffff_fff0n }]);
    // EPOLLERR and EPOLLHUP are the kernel's own addition.
    expect(targets[0]?.events).toBe(0x80000019);
  });

  it("finds targets under the numbers that they have now", () => {
    const epoll = keep(syscall("epoll_create1", O_CLOEXEC));
    const events = [1, 2, 3].map(() => keep(syscall("eventfd2", 0, O_CLOEXEC)));
    events.forEach((fd, index) =>
      watch(epoll, fd, { events: 1 | EPOLLONESHOT, data: BigInt(index) }),
    );
    // In the child: 3 is the epoll, the events stand in another order.
    const pid = childWith(["ignore", "ignore", "ignore", epoll, ...events.toReversed()]);
    using dump = new DumpFixture();
    const { epfd } = epollKind.write(openFileOf(pid, 3), 1, dump);
    const found = new Map(epfd?.tfd.map(({ data, tfd }) => [data, tfd]));
    expect(found).toEqual(
      new Map([
        [0n, 6],
        [1n, 5],
        [2n, 4],
      ]),
    );
  });

  it("tells targets apart whose number was reused", () => {
    const epoll = keep(syscall("epoll_create1", 0));
    const first = keep(syscall("eventfd2", 0, 0));
    watch(epoll, first, { events: 1, data: 1n });
    const copy = keep(syscall("fcntl", first, 0, 100));
    const second = syscall("eventfd2", 0, 0);
    syscall("dup3", second, first, 0);
    closeSync(second);
    watch(epoll, first, { events: 1, data: 2n });
    using dump = new DumpFixture();
    const { epfd } = epollKind.write(openFileOf(process.pid, epoll), 1, dump);
    const found = new Map(epfd?.tfd.map(({ data, tfd }) => [data, tfd]));
    expect(found).toEqual(
      new Map([
        [1n, copy],
        [2n, first],
      ]),
    );
  });

  it("refuses a target that no process of the tree has open", () => {
    const epoll = keep(syscall("epoll_create1", O_CLOEXEC));
    const event = keep(syscall("eventfd2", 0, O_CLOEXEC));
    watch(epoll, event, { events: 1, data: 1n });
    const pid = childWith(["ignore", "ignore", "ignore", epoll]);
    using dump = new DumpFixture();
    epollKind.write(openFileOf(pid, 3), 1, dump);
    expect(() => dump.finish()).toThrow(
      new RegExp(
        `^cannot dump epoll fd 3 of pid ${pid}: it watches a file that was added as fd ${event}`,
      ),
    );
  });
});

function addWatch(fd: number, path: string, mask: number): number {
  return syscall("inotify_add_watch", fd, Buffer.from(`${path}\0`), mask);
}

describe("inotify", () => {
  it("keeps watches, their numbers and masks, and starts without events", () => {
    const top = directory();
    for (const name of ["a", "b", "c"]) mkdirSync(join(top, name));
    const fd = keep(syscall("inotify_init1", O_NONBLOCK));
    const wds = ["a", "b", "c"].map((name) =>
      addWatch(fd, join(top, name), 0x100 | (name === "c" ? IN_ONESHOT : 0)),
    );
    syscall("inotify_rm_watch", fd, wds[1] ?? -1);
    writeFileSync(join(top, "a", "seen"), "");
    const warnings: string[] = [];
    setLogSink((_, text) => warnings.push(text));
    using dump = new DumpFixture();
    const file = openFileOf(process.pid, fd);
    expect(inotifyKind.recognise(file, dump)).toBe(true);
    const entry = inotifyKind.write(file, 3, dump);
    expect(entry.ify?.wd.map(({ f_handle: { path } }) => path)).toEqual([
      join(top, "a"),
      join(top, "c"),
    ]);
    expect(warnings.some((text) => text.includes("queued events will be lost"))).toBe(true);

    const [copy = -1] = restoreHere(inotifyKind, [entry]).map(keep);
    const marks = (of: number) =>
      readFdInfo({ pid: process.pid, fd: of }).inotify.toSorted((a, b) => a.wd - b.wd);
    expect(marks(copy)).toEqual(marks(fd));
    const event = Buffer.alloc(512);
    expect(trySyscall("read", copy, event, event.length)).toBe(-11);
    writeFileSync(join(top, "a", "new"), "");
    expect(trySyscall("read", copy, event, event.length)).toBeGreaterThan(0);
    expect(event.readInt32LE(0)).toBe(wds[0]);
  });

  it("finds a deleted file that the task has open, and no other", () => {
    const path = join(directory(), "gone");
    writeFileSync(path, "");
    const holder = openSync(path, 0);
    const fd = keep(syscall("inotify_init1", 0));
    addWatch(fd, path, 0x100);
    // Memory keeps the file, but no descriptor leads to it any more.
    const area = syscall("mmap", 0, 4096, 1, 2, holder, 0);
    rmSync(path);
    using dump = new DumpFixture();
    const write = () => inotifyKind.write(openFileOf(process.pid, fd), 3, dump);
    expect(write().ify?.wd[0]?.f_handle.path).toBe(path);
    closeSync(holder);
    onTestFinished(() => void syscall("munmap", area, 4096));
    expect(write).toThrow(
      /^cannot dump watch 1 of inotify fd \d+ of pid \d+: no path leads to inode \d+ of device/,
    );
  });

  it("finds the path of an inode whose handle cannot be opened", () => {
    // A file system of its own, so that the search is short.
    const top = directory("/dev/shm");
    mkdirSync(join(top, "deep/er"), { recursive: true });
    const path = join(top, "deep/er/file");
    writeFileSync(path, "");
    const fd = keep(syscall("inotify_init1", 0));
    addWatch(fd, path, 0x100);
    const file = openFileOf(process.pid, fd);
    const [mark] = file.info.inotify;
    expect(mark).toBeDefined();
    if (mark === undefined) return;
    using finder = new PathFinder(file);
    expect(finder.find({ ...mark, handle: undefined })).toEqual({ path });
  });
});

describe("isSameInode()", () => {
  const mark = {
    wd: 1,
    ino: 5n,
    sdev: 9,
    mask: 0,
    ignoredMask: 0,
    handle: { type: 1, bytes: Uint8Array.of(1, 2) },
  };
  it.each([
    ["itself under another number", { ...mark, wd: 4 }, true],
    ["another inode", { ...mark, ino: 6n }, false],
    ["another device", { ...mark, sdev: 8 }, false],
    ["another generation", { ...mark, handle: { type: 1, bytes: Uint8Array.of(1, 3) } }, false],
    ["one without a handle", { ...mark, handle: undefined }, true],
  ])("compares with %s", (_, other, same) => {
    expect(isSameInode(mark, other)).toBe(same);
  });
});

describe("handleEntry()", () => {
  it("fills the handle up to 16 words", () => {
    const entry = handleEntry(
      { type: 1, bytes: Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0, 2) },
      { path: "/a" },
    );
    expect(entry).toMatchObject({ bytes: 9, type: 1, path: "/a" });
    expect(entry.handle).toEqual([1n, 2n, ...Array.from({ length: 14 }, () => 0n)]);
  });
});

describe("pidfd", () => {
  it("keeps the process, and close-on-exec", () => {
    const pid = childWith(["ignore"]);
    const fd = keep(syscall("pidfd_open", pid, O_NONBLOCK));
    using dump = new DumpFixture({}, new Map([[pid, pid]]));
    const file = openFileOf(process.pid, fd);
    expect(pidfdKind.recognise(file, dump)).toBe(true);
    const entry = pidfdKind.write(file, 4, dump);
    expect(entry.pidfd).toMatchObject({ nspid: pid, flags: O_NONBLOCK });
    const [copy = -1] = restoreHere(pidfdKind, [entry], { at: 200 }).map(keep);
    const info = readFdInfo({ pid: process.pid, fd: copy });
    expect(info.pidfd?.pid).toBe(pid);
    expect(info.flags).toBe(openFileOf(process.pid, fd).info.flags & ~O_CLOEXEC);
  });

  it("refuses a process outside of the tree, and a thread", () => {
    const pid = childWith(["ignore"]);
    using dump = new DumpFixture();
    const fd = keep(syscall("pidfd_open", pid, 0));
    expect(() => pidfdKind.write(openFileOf(process.pid, fd), 4, dump)).toThrow(
      `process ${pid}, which is not in the tree`,
    );
    const thread = keep(syscall("pidfd_open", process.pid, 0o200));
    expect(() => pidfdKind.write(openFileOf(process.pid, thread), 4, dump)).toThrow(
      `it stands for thread ${process.pid}, which is not in the tree`,
    );
  });

  it("notes that its process is gone", async () => {
    const child = spawn("true");
    const fd = keep(syscall("pidfd_open", child.pid ?? -1, 0));
    await new Promise((resolve) => child.once("exit", resolve));
    using dump = new DumpFixture();
    expect(pidfdKind.write(openFileOf(process.pid, fd), 4, dump).pidfd?.nspid).toBe(-1);
  });
});
