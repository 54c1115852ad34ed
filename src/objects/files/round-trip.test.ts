// Regular files, deleted files, pipes, FIFOs and memfds: there and back in this process.
import { spawn } from "node:child_process";
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  rmdirSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadGhost } from "../../images/check-set.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { O_ASYNC } from "./owner.ts";
import { FilesOfSet, SavedFiles } from "./round-trip.fixture.ts";
import { checkUnchanged } from "./unchanged.ts";

let dir = "";
const open: number[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "reprise-open-"));
});

afterEach(() => {
  for (const fd of open.splice(0)) trySyscall("close", fd);
  rmSync(dir, { recursive: true, force: true });
});

function keep(fd: number): number {
  open.push(fd);
  return fd;
}

function path(name: string): string {
  return join(dir, name);
}

function info(fd: number): { flags: number; pos: bigint } {
  const { flags, pos } = readFdInfo({ pid: process.pid, fd });
  return { flags: flags & ~fcntl.O_CLOEXEC, pos };
}

function target(fd: number): string {
  return readlinkSync(`/proc/self/fd/${fd}`);
}

/** The whole content, whatever the descriptor may do. */
function content(fd: number): string {
  return readFileSync(`/proc/self/fd/${fd}`, "utf8");
}

function codeOf(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return { code: (error as { code: string }).code, message: (error as Error).message };
  }
  return "no error";
}

describe("regular files", () => {
  it.each([
    ["reading", constants.O_RDONLY],
    ["appending", constants.O_WRONLY | constants.O_APPEND],
    ["both, synchronously", constants.O_RDWR | constants.O_SYNC],
  ])("come back with flags and position: %s", (_, flags) => {
    writeFileSync(path("a"), "0123456789");
    const fd = keep(openSync(path("a"), flags));
    syscall("lseek", fd, 4, 0);
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(copy).not.toBe(fd);
    expect(info(copy)).toEqual(info(fd));
    expect(info(copy).pos).toBe(4n);
    expect(target(copy)).toBe(path("a"));
  });

  it("does not make, empty or insist on a new file", () => {
    writeFileSync(path("a"), "kept");
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC;
    const fd = keep(openSync(path("a"), flags));
    writeFileSync(path("a"), "kept");
    using saved = new SavedFiles([fd]);
    expect(content(saved.restore()[0] ?? -1)).toBe("kept");
  });

  it("keeps two descriptors of one description one, and two opens two", () => {
    writeFileSync(path("a"), "0123456789");
    const one = keep(openSync(path("a"), "r"));
    const same = keep(syscall("fcntl", one, fcntl.F_DUPFD, 0));
    const other = keep(openSync(path("a"), "r"));
    using saved = new SavedFiles([one, same, other]);
    expect(saved.ids[1]).toBe(saved.ids[0]);
    expect(saved.ids[2]).not.toBe(saved.ids[0]);
  });

  it("opens directories, devices, symbolic links and paths", () => {
    symlinkSync("nowhere", path("link"));
    const fds = [
      openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY),
      openSync("/dev/null", "r+"),
      openSync("/dev/urandom", "r"),
      openSync(path("link"), fcntl.O_PATH | constants.O_NOFOLLOW),
      openSync(dir, fcntl.O_PATH),
    ].map(keep);
    using saved = new SavedFiles(fds);
    const copies = saved.restore();
    expect(copies.map(target)).toEqual(fds.map(target));
    expect(copies.map(info)).toEqual(fds.map(info));
    expect(fstatSync(copies[3] ?? -1).isSymbolicLink()).toBe(true);
  });

  it("finds a living file whose name ends like a deleted one's", () => {
    writeFileSync(path("x (deleted)"), "alive");
    const fd = keep(openSync(path("x (deleted)"), "r"));
    using saved = new SavedFiles([fd]);
    expect(saved.set.remaps).toEqual([]);
    expect(target(saved.restore()[0] ?? -1)).toBe(path("x (deleted)"));
  });

  it("opens files of another task's /proc when that task is there", () => {
    const child = spawn("sleep", ["30"]);
    try {
      const fd = keep(openSync(`/proc/${child.pid}/limits`, "r"));
      readSync(fd, Buffer.alloc(5), 0, 5, null);
      using saved = new SavedFiles([fd], { tasks: [child.pid ?? 0] });
      const [copy = -1] = saved.restore();
      expect(target(copy)).toBe(`/proc/${child.pid}/limits`);
      expect(info(copy)).toEqual(info(fd));
    } finally {
      child.kill("SIGKILL");
    }
  });

  it("keeps the signal owner, the signal and O_ASYNC", () => {
    const ends = Buffer.alloc(8);
    syscall("pipe2", ends, 0);
    const [reader, writer] = [keep(ends.readInt32LE(0)), keep(ends.readInt32LE(4))];
    syscall("fcntl", reader, fcntl.F_SETSIG, 28);
    syscall("fcntl", reader, fcntl.F_SETOWN, process.pid);
    syscall("fcntl", reader, 4, O_ASYNC);
    using saved = new SavedFiles([reader, writer]);
    const [copy = -1] = saved.restore();
    const owner = Buffer.alloc(8);
    syscall("fcntl", copy, fcntl.F_GETOWN_EX, owner);
    expect([owner.readInt32LE(0), owner.readInt32LE(4)]).toEqual([1, process.pid]);
    expect(syscall("fcntl", copy, fcntl.F_GETSIG, 0)).toBe(28);
    expect(syscall("fcntl", copy, fcntl.F_GETFL, 0) & O_ASYNC).toBe(O_ASYNC);
  });

  it("stores the build id of an ELF file", () => {
    using saved = new SavedFiles([
      keep(openSync(process.execPath, "r")),
      keep(openSync("/bin/ls", "r")),
    ]);
    expect(saved.set.regularFiles.get(saved.ids[1] ?? 0)?.build_id.length).toBe(5);
  });

  it.each([
    ["size", () => writeFileSync(path("a"), "longer"), /size was 3 and is 6/],
    ["mode", () => chmodSync(path("a"), 0o600), /mode was 0100644 and is 0100600/],
    ["absence", () => unlinkSync(path("a")), /stat: ENOENT/],
  ])("refuses a file that changed: %s", (_, change, message) => {
    writeFileSync(path("a"), "abc", { mode: 0o644 });
    using saved = new SavedFiles([keep(openSync(path("a"), "r"))]);
    change();
    expect(codeOf(() => saved.restore())).toEqual({
      code: "FILE_CHANGED",
      message: expect.stringMatching(message) as string,
    });
  });
});

/** Major and minor number of the device that the test's directory is on, as mountinfo writes them. */
function mountOfTmp(): number[] {
  const { dev } = statSync(dir);
  return [Math.floor(dev / 256) & 0xfff, dev & 0xff];
}

describe("deleted files", () => {
  it("come back under their old name with content, mode and times", () => {
    writeFileSync(path("a"), "gone but open", { mode: 0o640 });
    utimesSync(path("a"), 1000, 2000);
    const reader = keep(openSync(path("a"), "r"));
    const writer = keep(openSync(path("a"), "a"));
    unlinkSync(path("a"));
    using saved = new SavedFiles([reader, writer]);
    expect(new Set(saved.set.remaps.map(({ remap_id }) => remap_id)).size).toBe(1);
    const { dev } = loadGhost(saved.set.reader, 1).value;
    expect([(dev ?? 0) >>> 20, (dev ?? 0) & 0xfffff]).toEqual(mountOfTmp());
    const [copy = -1, second = -1] = saved.restore();
    expect(target(copy)).toBe(`${path("a")} (deleted)`);
    expect(readdirSync(dir)).toEqual([]);
    const stat = fstatSync(copy);
    expect([stat.mode & 0o7777, stat.mtimeMs]).toEqual([0o640, 2_000_000]);
    expect(stat.ino).not.toBe(fstatSync(reader).ino);
    writeSync(second, "!");
    expect(content(copy)).toBe("gone but open!");
  });

  it("leave a new file of the same name alone", () => {
    writeFileSync(path("a"), "old");
    const fd = keep(openSync(path("a"), "r"));
    unlinkSync(path("a"));
    writeFileSync(path("a"), "new");
    using saved = new SavedFiles([fd]);
    expect(content(saved.restore()[0] ?? -1)).toBe("old");
    expect(readdirSync(dir)).toEqual(["a"]);
    expect(readFileSync(path("a"), "utf8")).toBe("new");
  });

  it("stay sparse", () => {
    const fd = keep(openSync(path("a"), "w+"));
    ftruncateSync(fd, 900_000);
    writeSync(fd, "start", 0);
    writeSync(fd, "middle", 500_000);
    unlinkSync(path("a"));
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(content(copy)).toBe(content(fd));
    expect(fstatSync(copy).blocks).toBe(fstatSync(fd).blocks);
  });

  it("come back with the directories that are gone, too", () => {
    mkdirSync(path("d/e"), { recursive: true });
    writeFileSync(path("d/e/f"), "deep");
    const file = keep(openSync(path("d/e/f"), "r"));
    const directory = keep(openSync(path("d/e"), "r"));
    rmSync(path("d"), { recursive: true });
    using saved = new SavedFiles([file, directory]);
    const [copy = -1, e = -1] = saved.restore();
    expect(content(copy)).toBe("deep");
    expect(fstatSync(e).isDirectory()).toBe(true);
    expect(readdirSync(dir)).toEqual([]);
  });

  it("can be symbolic links and FIFOs", () => {
    symlinkSync("to/where", path("link"));
    const link = keep(openSync(path("link"), fcntl.O_PATH | constants.O_NOFOLLOW));
    makeFifo("fifo");
    const fifo = keep(openSync(path("fifo"), "r+"));
    writeSync(fifo, "inside");
    unlinkSync(path("link"));
    unlinkSync(path("fifo"));
    using saved = new SavedFiles([link, fifo]);
    const [copy = -1, copiedFifo = -1] = saved.restore();
    const text = Buffer.alloc(64);
    const length = syscall("readlinkat", copy, Buffer.of(0), text, 64);
    expect(text.toString("utf8", 0, length)).toBe("to/where");
    expect(readNow(copiedFifo)).toBe("inside");
    expect(readdirSync(dir)).toEqual([]);
  });

  it("are refused beyond the limit", () => {
    writeFileSync(path("a"), Buffer.alloc(20_000, 1));
    const fd = keep(openSync(path("a"), "r"));
    unlinkSync(path("a"));
    const refused = codeOf(() => new SavedFiles([fd], { ghostLimit: 8192 }));
    expect(refused).toMatchObject({ code: "UNSUPPORTED" });
    expect(JSON.stringify(refused)).toContain(`fd ${fd}`);
  });

  it("need --link-remap when another name is left", () => {
    writeFileSync(path("a"), "two names");
    const fd = keep(openSync(path("a"), "r"));
    linkSync(path("a"), path("b"));
    unlinkSync(path("a"));
    expect(codeOf(() => new SavedFiles([fd]))).toMatchObject({ code: "UNSUPPORTED" });
    using saved = new SavedFiles([fd], { linkRemap: true });
    expect(readdirSync(dir).length).toBe(2);
    const [copy = -1] = saved.restore();
    expect(target(copy)).toBe(`${path("a")} (deleted)`);
    expect(fstatSync(copy).ino).toBe(fstatSync(fd).ino);
    expect(existsSync(path("a"))).toBe(false);
  });

  it("leave no hard link behind a dump that fails", () => {
    writeFileSync(path("a"), "two names");
    const fd = keep(openSync(path("a"), "r"));
    renameSync(path("a"), path("c"));
    linkSync(path("c"), path("b"));
    unlinkSync(path("c"));
    const refused = keep(syscall("memfd_create", Buffer.from("x\0"), 4));
    expect(codeOf(() => new SavedFiles([fd, refused], { linkRemap: true }))).toMatchObject({
      code: "UNSUPPORTED",
    });
    expect(readdirSync(dir)).toEqual(["b"]);
  });

  it("can be directories", () => {
    mkdirSync(path("d"), { mode: 0o750 });
    const fd = keep(openSync(path("d"), "r"));
    rmdirSync(path("d"));
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(target(copy)).toBe(`${path("d")} (deleted)`);
    expect(fstatSync(copy).mode & 0o777).toBe(0o750);
  });
});

function makeFifo(name: string): void {
  syscall("mknodat", -100, Buffer.from(`${path(name)}\0`), fcntl.S_IFIFO | 0o600, 0);
}

/** What can be read without waiting. */
function readNow(fd: number): string {
  const flags = syscall("fcntl", fd, fcntl.F_GETFL, 0);
  syscall("fcntl", fd, fcntl.F_SETFL, flags | fcntl.O_NONBLOCK);
  const bytes = Buffer.alloc(200_000);
  const count = trySyscall("read", fd, bytes, bytes.length);
  syscall("fcntl", fd, fcntl.F_SETFL, flags);
  return bytes.toString("utf8", 0, Math.max(count, 0));
}

function makePipe(flags = 0): [number, number] {
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, flags);
  return [keep(ends.readInt32LE(0)), keep(ends.readInt32LE(4))];
}

describe("pipes", () => {
  it("keep content, size and flags, and take nothing out", () => {
    const [reader, writer] = makePipe(fcntl.O_NONBLOCK);
    syscall("fcntl", writer, fcntl.F_SETPIPE_SZ, 131_072);
    writeSync(writer, "x".repeat(100_000));
    using saved = new SavedFiles([writer, reader]);
    const [copiedWriter = -1, copiedReader = -1] = saved.restore();
    expect(info(copiedReader).flags).toBe(info(reader).flags);
    expect(info(copiedWriter).flags).toBe(info(writer).flags);
    expect(syscall("fcntl", copiedReader, fcntl.F_GETPIPE_SZ, 0)).toBe(131_072);
    writeSync(copiedWriter, "yz");
    expect(readNow(copiedReader)).toBe(`${"x".repeat(100_000)}yz`);
    expect(readNow(reader)).toBe("x".repeat(100_000));
  });

  it("keep content that lies in many small pieces", () => {
    const [reader, writer] = makePipe();
    for (let i = 0; i < 10; i++) {
      writeSync(writer, "a".repeat(4096));
      readSync(reader, Buffer.alloc(4000), 0, 4000, null);
    }
    using saved = new SavedFiles([reader, writer]);
    expect(readNow(saved.restore()[0] ?? -1).length).toBe(960);
  });

  it("see their end when nobody writes any more", () => {
    const [reader, writer] = makePipe();
    writeSync(writer, "last");
    closeSync(writer);
    open.splice(open.indexOf(writer), 1);
    using saved = new SavedFiles([reader]);
    const [copy = -1] = saved.restore();
    const bytes = Buffer.alloc(10);
    expect(syscall("read", copy, bytes, 10)).toBe(4);
    expect(syscall("read", copy, bytes, 10)).toBe(0);
  });

  it("keep a second description of an end apart", () => {
    const [reader, writer] = makePipe();
    const second = keep(
      openSync(`/proc/self/fd/${reader}`, constants.O_RDONLY | constants.O_NONBLOCK),
    );
    using saved = new SavedFiles([reader, writer, second]);
    const copies = saved.restore();
    expect(new Set(copies).size).toBe(3);
    expect(copies.map(info)).toEqual([reader, writer, second].map(info));
    writeSync(copies[1] ?? -1, "through");
    expect(readNow(copies[2] ?? -1)).toBe("through");
  });

  it("are refused in packet mode", () => {
    const [, writer] = makePipe(fcntl.O_DIRECT);
    expect(codeOf(() => new SavedFiles([writer]))).toMatchObject({ code: "UNSUPPORTED" });
  });
});

describe("FIFOs", () => {
  it("keep ends, content and path", () => {
    makeFifo("f");
    const both = keep(openSync(path("f"), "r+"));
    const reader = keep(openSync(path("f"), constants.O_RDONLY | constants.O_NONBLOCK));
    const writer = keep(openSync(path("f"), "w"));
    writeSync(writer, "waiting");
    using saved = new SavedFiles([reader, writer, both]);
    expect(readNow(reader)).toBe("waiting");
    const copies = saved.restore();
    expect(copies.map(target)).toEqual([path("f"), path("f"), path("f")]);
    expect(copies.map(info)).toEqual([reader, writer, both].map(info));
    expect(readNow(copies[0] ?? -1)).toBe("waiting");
  });
});

const MFD_ALLOW_SEALING = 2;

function memfd(name: string, flags = 0): number {
  return keep(syscall("memfd_create", Buffer.from(`${name}\0`), flags));
}

describe("memfds", () => {
  it("keep name, content, holes, position and a second description", () => {
    const fd = memfd("some name");
    ftruncateSync(fd, 3_000_001);
    writeSync(fd, "start", 0);
    writeSync(fd, Buffer.alloc(8192), 0, 8192, 1_000_000);
    writeSync(fd, "end", 2_999_998);
    syscall("lseek", fd, 77, 0);
    const reader = keep(openSync(`/proc/self/fd/${fd}`, "r"));
    using saved = new SavedFiles([fd, reader]);
    const [copy = -1, second = -1] = saved.restore();
    expect(content(copy)).toBe(content(fd));
    expect(target(copy)).toBe("/memfd:some name (deleted)");
    expect(info(copy)).toEqual(info(fd));
    expect(info(second)).toEqual(info(reader));
    expect(fstatSync(second).ino).toBe(fstatSync(copy).ino);
    expect(fstatSync(copy).ino).not.toBe(fstatSync(fd).ino);
    // Pages of zeros are left out.
    expect(fstatSync(copy).blocks).toBe(16);
  });

  it("keep seals and mode", () => {
    const fd = memfd("sealed", MFD_ALLOW_SEALING);
    writeSync(fd, "fixed");
    syscall("fcntl", fd, fcntl.F_ADD_SEALS, 0x1f);
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(syscall("fcntl", copy, fcntl.F_GET_SEALS, 0)).toBe(0x1f);
    expect(content(copy)).toBe("fixed");
    expect(fstatSync(copy).mode).toBe(fstatSync(fd).mode);
  });

  it("can be empty, or nothing but zeros", () => {
    const empty = memfd("empty");
    const zeros = memfd("zeros");
    ftruncateSync(zeros, 10_000);
    using saved = new SavedFiles([empty, zeros]);
    expect(saved.restore().map((fd) => fstatSync(fd).size)).toEqual([0, 10_000]);
  });

  it("can be shared anonymous memory", () => {
    const at = syscall("mmap", 0, 8192, 3, 0x21, -1, 0);
    const range = `${at.toString(16)}-${(at + 8192).toString(16)}`;
    const fd = keep(openSync(`/proc/self/map_files/${range}`, "r+"));
    syscall("munmap", at, 8192);
    writeSync(fd, "anonymous");
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(target(copy)).toBe("/dev/zero (deleted)");
    expect(content(copy)).toBe(content(fd));
  });
});

describe("sets of criu", () => {
  const fixtures = join(import.meta.dirname, "../../../test/fixtures/criu-images");

  it("give their deleted files back", () => {
    const images = join(fixtures, "ghost/img");
    // 5: small, 6: sparse, 9: a directory.
    const ids = [...new FilesOfSet(images, []).set.remaps]
      .filter(({ remap_type }) => remap_type === 1)
      .map(({ orig_id }) => orig_id);
    const before = existsSync("/tmp/criu-fx");
    using files = new FilesOfSet(images, ids);
    const copies = files.restore();
    const stats = copies.map((fd) => fstatSync(fd));
    expect(stats.filter((stat) => stat.isDirectory()).length).toBe(1);
    expect(stats.map(({ nlink }) => nlink)).toEqual([0, 0, 0]);
    expect(stats.map(({ size }) => size)).toContain(200_004);
    const texts = copies.flatMap((fd, index) =>
      stats[index]?.isFile() === true ? [content(fd)] : [],
    );
    expect(texts).toContain("ghost content\n");
    expect(existsSync("/tmp/criu-fx")).toBe(before);
  });

  it("give their shared memory back", () => {
    const images = join(fixtures, "shmem/img");
    const { files } = new FilesOfSet(images, []).set;
    const memfds = [...files.values()].flatMap((file) => file.memfd ?? []);
    using opened = new FilesOfSet(
      images,
      memfds.map(({ id }) => id),
    );
    const copies = opened.restore();
    expect(new Set(copies.map(target))).toEqual(
      new Set(["/memfd:fx-memfd (deleted)", "/dev/zero (deleted)"]),
    );
    const named = copies.find((fd) => target(fd).startsWith("/memfd:")) ?? -1;
    expect(fstatSync(named).size).toBe(12_298);
    expect(syscall("fcntl", named, fcntl.F_GET_SEALS, 0)).toBe(6);
    expect(content(named).replaceAll("\0", "")).not.toBe("");
  });
});

describe("checkUnchanged()", () => {
  const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
  const lenient = { skipRwxCheck: true, fileValidation: "filesize" } as const;
  const strict = { skipRwxCheck: false, fileValidation: "buildid" } as const;
  const entry = { id: 1, flags: 0, pos: 0n, fown, name: "/bin/ls" };
  const mode = modeOf("/bin/ls");
  it.each([
    ["nothing is told", { build_id: [] }, strict, undefined],
    ["other permissions", { mode: mode ^ 0o100, build_id: [] }, strict, /mode/],
    ["other permissions, not checked", { mode: mode ^ 0o100, build_id: [] }, lenient, undefined],
    ["another kind", { mode: (mode & 0o777) | 0o40000, build_id: [] }, lenient, /mode/],
    ["another build", { build_id: [1, 2, 3, 4, 5] }, strict, /another build/],
    ["another build, not checked", { build_id: [1, 2, 3, 4, 5] }, lenient, undefined],
  ])("compares: %s", (_, told, options, message) => {
    const result = codeOf(() => checkUnchanged({ ...entry, ...told }, options));
    if (message === undefined) expect(result).toBe("no error");
    else expect(result).toMatchObject({ message: expect.stringMatching(message) as string });
  });
});

function modeOf(name: string): number {
  return statSync(name).mode;
}

describe("files that cannot be saved", () => {
  it("are refused by name", () => {
    const refused = codeOf(() => new SavedFiles([keep(openSync("/proc/self/ns/mnt", "r"))]));
    expect(refused).toMatchObject({ code: "UNSUPPORTED" });
    expect(JSON.stringify(refused)).toMatch(/fd \d+ of pid \d+ \(mnt:\[\d+\]\)/);
  });
});
