// Regular files, directories, devices and paths: there and back in this process; and the check before a restore.
import { spawn } from "node:child_process";
import {
  chmodSync,
  constants,
  fstatSync,
  openSync,
  readSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { O_ASYNC } from "./owner.ts";
import { SavedFiles } from "./round-trip.fixture.ts";
import { codeOf, content, info, target, Scratch } from "./scratch.fixture.ts";
import { checkUnchanged } from "./unchanged.ts";

let scratch: Scratch;

beforeEach(() => {
  scratch = new Scratch();
});

afterEach(() => {
  scratch[Symbol.dispose]();
});

describe("regular files", () => {
  it.each([
    ["reading", constants.O_RDONLY],
    ["appending", constants.O_WRONLY | constants.O_APPEND],
    ["both, synchronously", constants.O_RDWR | constants.O_SYNC],
  ])("come back with flags and position: %s", (_, flags) => {
    writeFileSync(scratch.path("a"), "0123456789");
    const fd = scratch.keep(openSync(scratch.path("a"), flags));
    syscall("lseek", fd, 4, 0);
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(copy).not.toBe(fd);
    expect(info(copy)).toEqual(info(fd));
    expect(info(copy).pos).toBe(4n);
    expect(target(copy)).toBe(scratch.path("a"));
  });

  it("does not make, empty or insist on a new file", () => {
    writeFileSync(scratch.path("a"), "kept");
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC;
    const fd = scratch.keep(openSync(scratch.path("a"), flags));
    writeFileSync(scratch.path("a"), "kept");
    using saved = new SavedFiles([fd]);
    expect(content(saved.restore()[0] ?? -1)).toBe("kept");
  });

  it("keeps two descriptors of one description one, and two opens two", () => {
    writeFileSync(scratch.path("a"), "0123456789");
    const one = scratch.keep(openSync(scratch.path("a"), "r"));
    const same = scratch.keep(syscall("fcntl", one, fcntl.F_DUPFD, 0));
    const other = scratch.keep(openSync(scratch.path("a"), "r"));
    using saved = new SavedFiles([one, same, other]);
    expect(saved.ids[1]).toBe(saved.ids[0]);
    expect(saved.ids[2]).not.toBe(saved.ids[0]);
  });

  it("opens directories, devices, symbolic links and paths", () => {
    symlinkSync("nowhere", scratch.path("link"));
    const fds = [
      openSync(scratch.dir, constants.O_RDONLY | constants.O_DIRECTORY),
      openSync("/dev/null", "r+"),
      openSync("/dev/urandom", "r"),
      openSync(scratch.path("link"), fcntl.O_PATH | constants.O_NOFOLLOW),
      openSync(scratch.dir, fcntl.O_PATH),
    ].map((fd) => scratch.keep(fd));
    using saved = new SavedFiles(fds);
    const copies = saved.restore();
    expect(copies.map(target)).toEqual(fds.map(target));
    expect(copies.map(info)).toEqual(fds.map(info));
    expect(fstatSync(copies[3] ?? -1).isSymbolicLink()).toBe(true);
  });

  it("finds a living file whose name ends like a deleted one's", () => {
    writeFileSync(scratch.path("x (deleted)"), "alive");
    const fd = scratch.keep(openSync(scratch.path("x (deleted)"), "r"));
    using saved = new SavedFiles([fd]);
    expect(saved.set.remaps).toEqual([]);
    expect(target(saved.restore()[0] ?? -1)).toBe(scratch.path("x (deleted)"));
  });

  it("opens files of another task's /proc when that task is there", () => {
    const child = spawn("sleep", ["30"]);
    try {
      const fd = scratch.keep(openSync(`/proc/${child.pid}/limits`, "r"));
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
    const [reader, writer] = [scratch.keep(ends.readInt32LE(0)), scratch.keep(ends.readInt32LE(4))];
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
      scratch.keep(openSync(process.execPath, "r")),
      scratch.keep(openSync("/bin/ls", "r")),
    ]);
    expect(saved.set.regularFiles.get(saved.ids[1] ?? 0)?.build_id.length).toBe(5);
  });

  it.each([
    ["size", () => writeFileSync(scratch.path("a"), "longer"), /size was 3 and is 6/],
    ["mode", () => chmodSync(scratch.path("a"), 0o600), /mode was 0100644 and is 0100600/],
    ["absence", () => unlinkSync(scratch.path("a")), /stat: ENOENT/],
  ])("refuses a file that changed: %s", (_, change, message) => {
    writeFileSync(scratch.path("a"), "abc", { mode: 0o644 });
    using saved = new SavedFiles([scratch.keep(openSync(scratch.path("a"), "r"))]);
    change();
    expect(codeOf(() => saved.restore())).toEqual({
      code: "FILE_CHANGED",
      message: expect.stringMatching(message) as string,
    });
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
    const refused = codeOf(
      () => new SavedFiles([scratch.keep(openSync("/proc/self/ns/mnt", "r"))]),
    );
    expect(refused).toMatchObject({ code: "UNSUPPORTED" });
    expect(JSON.stringify(refused)).toMatch(/fd \d+ of pid \d+ \(mnt:\[\d+\]\)/);
  });
});
