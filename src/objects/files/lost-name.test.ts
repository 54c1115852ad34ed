// Open files that have lost their name but have another: there and back in this process.
import {
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { fileSystemId, openFileHandle, readFileHandle } from "../../proc/file-handle.ts";
import { linksToRemove } from "./path-for-opening.ts";
import { SavedFiles } from "./round-trip.fixture.ts";
import { codeOf, content, Scratch, target } from "./scratch.fixture.ts";

let scratch: Scratch;

beforeEach(() => {
  scratch = new Scratch();
});

afterEach(() => {
  scratch[Symbol.dispose]();
});

/** A file that is open by the lost name `a`, and has the name `b`. */
function openLost(text = "two names"): number {
  mkdirSync(scratch.path("d"), { recursive: true });
  writeFileSync(scratch.path("d/a"), text);
  const fd = scratch.keep(openSync(scratch.path("d/a"), "r+"));
  linkSync(scratch.path("d/a"), scratch.path("b"));
  unlinkSync(scratch.path("d/a"));
  return fd;
}

const names = (): string[] => readdirSync(scratch.path("d"));
const changed = (pattern: RegExp): unknown => ({
  code: "FILE_CHANGED",
  message: expect.stringMatching(pattern) as string,
});

describe("of tasks that go on", () => {
  const options = { noLink: true };

  it("they leave no trace, and are the same files again, as often as wanted", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    for (let count = 0; count < 2; count++) {
      expect(names()).toEqual([]);
      const [copy = -1] = saved.restore();
      expect(target(copy)).toBe(`${scratch.path("d/a")} (deleted)`);
      expect(fstatSync(copy)).toMatchObject({ ino: fstatSync(fd).ino, nlink: 1 });
      using again = new SavedFiles([copy], options);
      expect(fstatSync(again.restore()[0] ?? -1).ino).toBe(fstatSync(fd).ino);
    }
    expect(names()).toEqual([]);
    expect(linksToRemove(saved.set, { isSpent: true, isSaved: () => true })).toEqual([]);
  });

  it("they come back into a directory that was gone at the dump", () => {
    const fd = openLost();
    renameSync(scratch.path("d"), scratch.path("e"));
    using saved = new SavedFiles([fd], options);
    const [copy = -1] = saved.restore();
    expect(fstatSync(copy).ino).toBe(fstatSync(fd).ino);
    expect(readdirSync(scratch.dir).sort()).toEqual(["b", "e"]);
  });

  it("are made again when all names are gone, even when somebody has them open", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    unlinkSync(scratch.path("b"));
    const [copy = -1] = saved.restore();
    expect(content(copy)).toBe("two names");
    expect(fstatSync(copy).ino).not.toBe(fstatSync(fd).ino);
    scratch.close(fd);
    expect(content(saved.restore()[0] ?? -1)).toBe("two names");
    expect(names()).toEqual([]);
  });

  it("by two lost names they are one file, also when they are made again", () => {
    const fd = openLost();
    linkSync(scratch.path("b"), scratch.path("d/c"));
    const other = scratch.keep(openSync(scratch.path("d/c"), "r"));
    unlinkSync(scratch.path("d/c"));
    using saved = new SavedFiles([fd, other], options);
    const [a = -1, c = -1] = saved.restore();
    expect(fstatSync(a).ino).toBe(fstatSync(c).ino);
    expect(target(a)).toBe(`${scratch.path("d/a")} (deleted)`);
    expect(target(c)).toBe(`${scratch.path("d/c")} (deleted)`);
    unlinkSync(scratch.path("b"));
    const inodes = saved.restore().map((copy) => fstatSync(copy).ino);
    expect(new Set(inodes).size).toBe(1);
    expect(inodes[0]).not.toBe(fstatSync(fd).ino);
  });

  it("are missed when all names are gone and they were too large to be saved", () => {
    const fd = openLost("x".repeat(20_000));
    using saved = new SavedFiles([fd], { ...options, ghostLimit: 8192 });
    expect(content(saved.restore()[0] ?? -1)).toBe(content(fd));
    unlinkSync(scratch.path("b"));
    scratch.close(fd);
    expect(codeOf(() => saved.restore())).toEqual(changed(/restore file .*d\/a: it had lost this/));
  });

  it("are not those of another directory that has the place now", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    renameSync(scratch.path("d"), scratch.path("old"));
    mkdirSync(scratch.path("d"));
    const [copy = -1] = saved.restore();
    expect(content(copy)).toBe("two names");
    expect(fstatSync(copy).ino).not.toBe(fstatSync(fd).ino);
  });

  it("must be what they were", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    writeFileSync(scratch.path("b"), "more than two names");
    expect(codeOf(() => saved.restore())).toEqual(changed(/size was 9 and is 19/));
    expect(names()).toEqual([]);
  });
});

describe("of tasks that end", () => {
  const options = { linkRemap: true };

  it("they have a hard link, and are found without it, too", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    const [link = ""] = names();
    expect(link).toMatch(/^link_remap\.\d+$/);
    const [{ name } = { name: "" }] = linksToRemove(saved.set, {
      isSpent: true,
      isSaved: () => false,
    });
    expect(name).toBe(scratch.path(`d/${link}`));
    expect(fstatSync(saved.restore()[0] ?? -1)).toMatchObject({ nlink: 2, ino: fstatSync(fd).ino });
    unlinkSync(name);
    expect(fstatSync(saved.restore()[0] ?? -1)).toMatchObject({ nlink: 1, ino: fstatSync(fd).ino });
    expect(names()).toEqual([]);
  });

  it("a link of the same name to another file is not theirs", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    const [link = ""] = names();
    unlinkSync(scratch.path(`d/${link}`));
    writeFileSync(scratch.path(`d/${link}`), "no names");
    expect(fstatSync(saved.restore()[0] ?? -1).ino).toBe(fstatSync(fd).ino);
    expect(names()).toEqual([link]);
  });

  it("are missed when link and names are gone", () => {
    const fd = openLost();
    using saved = new SavedFiles([fd], options);
    names().forEach((link) => unlinkSync(scratch.path(`d/${link}`)));
    unlinkSync(scratch.path("b"));
    scratch.close(fd);
    expect(codeOf(() => saved.restore())).toEqual(changed(/restore file .*d\/a: it had lost this/));
  });
});

describe("file handles", () => {
  it("lead to a file by none of its names, for as long as it has one", () => {
    const fd = openLost();
    const path = `/proc/self/fd/${fd}`;
    const handle = readFileHandle(path, { follow: true }) ?? { type: 0, bytes: Buffer.of() };
    const opened = scratch.keep(openFileHandle(scratch.dir, handle) ?? -1);
    expect(fstatSync(opened).ino).toBe(fstatSync(fd).ino);
    scratch.close(opened);
    unlinkSync(scratch.path("b"));
    scratch.close(fd);
    expect(openFileHandle(scratch.dir, handle)).toBeUndefined();
  });

  it("are none in /proc; each file system has a number of its own", () => {
    expect(readFileHandle("/proc/self/status", { follow: true })).toBeUndefined();
    expect(fileSystemId(scratch.dir)).toBe(fileSystemId(scratch.path(".")));
    expect(fileSystemId("/proc")).not.toBe(fileSystemId(scratch.dir));
    expect(fileSystemId("/proc")).not.toBe(fileSystemId("/sys"));
  });
});
