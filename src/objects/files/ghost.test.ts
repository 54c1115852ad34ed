// Deleted files: there and back in this process, and those of a set that criu made.
import {
  constants,
  existsSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
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
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadGhost } from "../../images/check-set.ts";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { FilesOfSet, SavedFiles } from "./round-trip.fixture.ts";
import { codeOf, content, readNow, target, Scratch } from "./scratch.fixture.ts";

let scratch: Scratch;

beforeEach(() => {
  scratch = new Scratch();
});

afterEach(() => {
  scratch[Symbol.dispose]();
});

/** Major and minor number of the device that the test's directory is on, as mountinfo writes them. */
function mountOfTmp(): number[] {
  const { dev } = statSync(scratch.dir);
  return [Math.floor(dev / 256) & 0xfff, dev & 0xff];
}

describe("deleted files", () => {
  it("come back under their old name with content, mode and times", () => {
    writeFileSync(scratch.path("a"), "gone but open", { mode: 0o640 });
    utimesSync(scratch.path("a"), 1000, 2000);
    const reader = scratch.keep(openSync(scratch.path("a"), "r"));
    const writer = scratch.keep(openSync(scratch.path("a"), "a"));
    unlinkSync(scratch.path("a"));
    using saved = new SavedFiles([reader, writer]);
    expect(new Set(saved.set.remaps.map(({ remap_id }) => remap_id)).size).toBe(1);
    const { dev } = loadGhost(saved.set.reader, 1).value;
    expect([(dev ?? 0) >>> 20, (dev ?? 0) & 0xfffff]).toEqual(mountOfTmp());
    const [copy = -1, second = -1] = saved.restore();
    expect(target(copy)).toBe(`${scratch.path("a")} (deleted)`);
    expect(readdirSync(scratch.dir)).toEqual([]);
    const stat = fstatSync(copy);
    expect([stat.mode & 0o7777, stat.mtimeMs]).toEqual([0o640, 2_000_000]);
    expect(stat.ino).not.toBe(fstatSync(reader).ino);
    writeSync(second, "!");
    expect(content(copy)).toBe("gone but open!");
  });

  it("leave a new file of the same name alone", () => {
    writeFileSync(scratch.path("a"), "old");
    const fd = scratch.keep(openSync(scratch.path("a"), "r"));
    unlinkSync(scratch.path("a"));
    writeFileSync(scratch.path("a"), "new");
    using saved = new SavedFiles([fd]);
    expect(content(saved.restore()[0] ?? -1)).toBe("old");
    expect(readdirSync(scratch.dir)).toEqual(["a"]);
    expect(readFileSync(scratch.path("a"), "utf8")).toBe("new");
  });

  it("stay sparse", () => {
    const fd = scratch.keep(openSync(scratch.path("a"), "w+"));
    ftruncateSync(fd, 900_000);
    writeSync(fd, "start", 0);
    writeSync(fd, "middle", 500_000);
    unlinkSync(scratch.path("a"));
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(content(copy)).toBe(content(fd));
    expect(fstatSync(copy).blocks).toBe(fstatSync(fd).blocks);
  });

  it("come back with the directories that are gone, too", () => {
    mkdirSync(scratch.path("d/e"), { recursive: true });
    writeFileSync(scratch.path("d/e/f"), "deep");
    const file = scratch.keep(openSync(scratch.path("d/e/f"), "r"));
    const directory = scratch.keep(openSync(scratch.path("d/e"), "r"));
    rmSync(scratch.path("d"), { recursive: true });
    using saved = new SavedFiles([file, directory]);
    const [copy = -1, e = -1] = saved.restore();
    expect(content(copy)).toBe("deep");
    expect(fstatSync(e).isDirectory()).toBe(true);
    expect(readdirSync(scratch.dir)).toEqual([]);
  });

  it("can be symbolic links and FIFOs", () => {
    symlinkSync("to/where", scratch.path("link"));
    const link = scratch.keep(openSync(scratch.path("link"), fcntl.O_PATH | constants.O_NOFOLLOW));
    scratch.makeFifo("fifo");
    const fifo = scratch.keep(openSync(scratch.path("fifo"), "r+"));
    writeSync(fifo, "inside");
    unlinkSync(scratch.path("link"));
    unlinkSync(scratch.path("fifo"));
    using saved = new SavedFiles([link, fifo]);
    const [copy = -1, copiedFifo = -1] = saved.restore();
    const text = Buffer.alloc(64);
    const length = syscall("readlinkat", copy, Buffer.of(0), text, 64);
    expect(text.toString("utf8", 0, length)).toBe("to/where");
    expect(readNow(copiedFifo)).toBe("inside");
    expect(readdirSync(scratch.dir)).toEqual([]);
  });

  it("are refused beyond the limit", () => {
    writeFileSync(scratch.path("a"), Buffer.alloc(20_000, 1));
    const fd = scratch.keep(openSync(scratch.path("a"), "r"));
    unlinkSync(scratch.path("a"));
    const refused = codeOf(() => new SavedFiles([fd], { ghostLimit: 8192 }));
    expect(refused).toMatchObject({ code: "UNSUPPORTED" });
    expect(JSON.stringify(refused)).toContain(`fd ${fd}`);
  });

  it("need --link-remap when another name is left", () => {
    writeFileSync(scratch.path("a"), "two names");
    const fd = scratch.keep(openSync(scratch.path("a"), "r"));
    linkSync(scratch.path("a"), scratch.path("b"));
    unlinkSync(scratch.path("a"));
    expect(codeOf(() => new SavedFiles([fd]))).toMatchObject({ code: "UNSUPPORTED" });
    using saved = new SavedFiles([fd], { linkRemap: true });
    expect(readdirSync(scratch.dir).length).toBe(2);
    const [copy = -1] = saved.restore();
    expect(target(copy)).toBe(`${scratch.path("a")} (deleted)`);
    expect(fstatSync(copy).ino).toBe(fstatSync(fd).ino);
    expect(existsSync(scratch.path("a"))).toBe(false);
  });

  it("leave no hard link behind a dump that fails", () => {
    writeFileSync(scratch.path("a"), "two names");
    const fd = scratch.keep(openSync(scratch.path("a"), "r"));
    renameSync(scratch.path("a"), scratch.path("c"));
    linkSync(scratch.path("c"), scratch.path("b"));
    unlinkSync(scratch.path("c"));
    writeFileSync(scratch.path("big"), Buffer.alloc(2 * 1024 * 1024));
    const refused = scratch.keep(openSync(scratch.path("big"), "r"));
    unlinkSync(scratch.path("big"));
    expect(codeOf(() => new SavedFiles([fd, refused], { linkRemap: true }))).toMatchObject({
      code: "UNSUPPORTED",
    });
    expect(readdirSync(scratch.dir)).toEqual(["b"]);
  });

  it("can be directories", () => {
    mkdirSync(scratch.path("d"), { mode: 0o750 });
    const fd = scratch.keep(openSync(scratch.path("d"), "r"));
    rmdirSync(scratch.path("d"));
    using saved = new SavedFiles([fd]);
    const [copy = -1] = saved.restore();
    expect(target(copy)).toBe(`${scratch.path("d")} (deleted)`);
    expect(fstatSync(copy).mode & 0o777).toBe(0o750);
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
});
