// The content of a tmpfs: what saveTmpfs writes GNU tar reads, what GNU tar writes unpackTmpfs reads, and nothing gets lost.

import { execFileSync } from "node:child_process";
import {
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { syscall } from "../../sys/ffi.ts";
import { unpackTmpfs } from "./tmpfs-restore.ts";
import { saveTmpfs } from "./tmpfs-save.ts";

const ATTRIBUTE = Buffer.from("trusted.colour\0");
const LONG = "n".repeat(180);
const same = (_kind: "uid" | "gid", id: number): number => id;
let dir = "";

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "reprise-tmpfs-"));
  for (const name of ["from", "to"]) {
    mkdirSync(join(dir, name));
    execFileSync("mount", ["-t", "tmpfs", "none", join(dir, name)]);
  }
  fill(join(dir, "from"));
});

afterEach(() => {
  for (const name of ["from", "to"]) execFileSync("umount", [join(dir, name)]);
  rmSync(dir, { recursive: true });
});

describe("saveTmpfs()", { timeout: 20_000 }, () => {
  it("keeps everything for unpackTmpfs()", () => {
    save();
    unpack();
    check({ precise: true });
  });

  it("writes what GNU tar reads", () => {
    save();
    execFileSync("tar", [
      "-xzf",
      join(dir, "archive"),
      "--xattrs",
      "--xattrs-include=*",
      "-C",
      join(dir, "to"),
    ]);
    check({ precise: true });
  });
});

describe("unpackTmpfs()", { timeout: 20_000 }, () => {
  it("reads what GNU tar writes as criu calls it", () => {
    const options = ["--one-file-system", "--check-links", "--preserve-permissions", "--sparse"];
    const args = [
      "--create",
      "--gzip",
      ...options,
      "--numeric-owner",
      "-C",
      join(dir, "from"),
      ".",
    ];
    writeFileSync(join(dir, "archive"), execFileSync("tar", args));
    unpack();
    check({ precise: false });
  });

  it("refuses what is no archive", () => {
    writeFileSync(join(dir, "archive"), "nothing");
    expect(unpack).toThrow(/no whole gzip file/);
  });
});

function save(): void {
  const root = openSync(join(dir, "from"), "r");
  const to = openSync(join(dir, "archive"), "w");
  saveTmpfs({ root, to, innerId: same });
  closeSync(root);
  closeSync(to);
}

function unpack(): void {
  unpackTmpfs({ archive: join(dir, "archive"), root: join(dir, "to"), outerId: same });
}

function fill(root: string): void {
  writeFileSync(join(root, "plain"), "some text\n", { mode: 0o641 });
  mkdirSync(join(root, "sub"), { mode: 0o751 });
  writeFileSync(join(root, "sub", LONG), LONG);
  linkSync(join(root, "plain"), join(root, "sub", "hard"));
  symlinkSync(`../${LONG}`, join(root, "sub", "soft"));
  execFileSync("mknod", [join(root, "null"), "c", "1", "3"]);
  execFileSync("mkfifo", [join(root, "fifo")]);
  writeFileSync(join(root, "holes"), "start");
  truncateSync(join(root, "holes"), 10 * 1024 * 1024);
  execFileSync("sh", [
    "-c",
    `printf end | dd of=${root}/holes bs=1 seek=5000000 conv=notrunc 2>&1`,
  ]);
  writeFileSync(join(root, "big"), Buffer.alloc(3 * 1024 * 1024, "x"));
  execFileSync("chown", ["1234:5678", join(root, "big")]);
  const value = Buffer.from("blue");
  syscall("lsetxattr", Buffer.from(`${join(root, "plain")}\0`), ATTRIBUTE, value, 4, 0);
  utimesSync(join(root, "sub"), 1_000_000_000.25, 1_000_000_000.25);
}

function check({ precise }: { precise: boolean }): void {
  const [from, to] = [join(dir, "from"), join(dir, "to")];
  for (const name of ["plain", "sub", `sub/${LONG}`, "sub/hard", "null", "fifo", "holes", "big"]) {
    expect(facts(join(to, name)), name).toEqual(facts(join(from, name)));
  }
  for (const name of ["plain", "holes", "big", `sub/${LONG}`])
    expect(readFileSync(join(to, name)).equals(readFileSync(join(from, name))), name).toBe(true);
  expect(lstatSync(join(to, "holes")).blocks).toBeLessThan(64);
  expect(lstatSync(join(to, "sub/hard")).ino).toBe(lstatSync(join(to, "plain")).ino);
  expect(readlinkSync(join(to, "sub/soft"))).toBe(`../${LONG}`);
  if (!precise) return;
  expect(lstatSync(join(to, "sub")).mtimeMs).toBe(1_000_000_000_250);
  const value = Buffer.alloc(16);
  syscall("lgetxattr", Buffer.from(`${join(to, "plain")}\0`), ATTRIBUTE, value, value.length);
  expect(value.toString("utf8", 0, 4)).toBe("blue");
}

function facts(path: string): unknown {
  const { mode, uid, gid, rdev, nlink, size, mtimeMs } = lstatSync(path);
  const seconds = Math.floor(mtimeMs / 1000);
  return { mode, uid, gid, rdev, nlink, seconds, size: path.endsWith("/sub") ? 0 : size };
}
