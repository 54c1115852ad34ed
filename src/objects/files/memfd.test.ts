// memfds and shared anonymous memory: there and back in this process, and those of a set that criu made.
import { fstatSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { FilesOfSet, SavedFiles } from "./round-trip.fixture.ts";
import { content, info, target, Scratch } from "./scratch.fixture.ts";

let scratch: Scratch;

beforeEach(() => {
  scratch = new Scratch();
});

afterEach(() => {
  scratch[Symbol.dispose]();
});

const MFD_ALLOW_SEALING = 2;

function memfd(name: string, flags = 0): number {
  return scratch.keep(syscall("memfd_create", Buffer.from(`${name}\0`), flags));
}

describe("memfds", () => {
  it("keep name, content, holes, position and a second description", () => {
    const fd = memfd("some name");
    ftruncateSync(fd, 3_000_001);
    writeSync(fd, "start", 0);
    writeSync(fd, Buffer.alloc(8192), 0, 8192, 1_000_000);
    writeSync(fd, "end", 2_999_998);
    syscall("lseek", fd, 77, 0);
    const reader = scratch.keep(openSync(`/proc/self/fd/${fd}`, "r"));
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
    const fd = scratch.keep(openSync(`/proc/self/map_files/${range}`, "r+"));
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
