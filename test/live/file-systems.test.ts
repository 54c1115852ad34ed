// Programs whose files are in other file systems than that of /tmp: Btrfs, with subvolumes that have devices of their own, XFS, and
// overlays. They are mounted in a mount namespace of this test, and go away with it. A machine that lacks one has its tests skipped.

import { execFileSync } from "node:child_process";
import {
  accessSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmdirSync,
  unlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { CLONE_NEWNS } from "../../src/sys/abi/sched.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { attachProgram, killProgram, type RunningProgram } from "./programs.ts";
import { ROOMS, type Subject } from "./rooms.ts";
import {
  comesBackTwice,
  endWithTest,
  goesOnBesideClone,
  imagesDirOf,
  reapOrphansHere,
  start,
} from "./suite.ts";

reapOrphansHere();

/** Programs that are about files with names, or without. */
const NAMES = [
  "deleted_attributes",
  "deleted_files",
  "directories",
  "fifos",
  "file_locks",
  "file_maps",
  "hardlink_only",
  "notify_marks",
  "odd_names",
  "regular_files",
  "umask_cwd_root",
  "unix_named",
];
const SUBJECTS: readonly Subject[] = Object.values(ROOMS)
  .flat()
  .filter(({ name, args }) => NAMES.includes(name) && args === undefined);

/** In the mount namespace of this test everything is below here. */
const BASE = mkdtempSync(join(tmpdir(), "rfs-"));

interface FileSystem {
  readonly name: string;
  /** Where the programs are started. */
  readonly dir: string;
  /** What a machine must have. */
  readonly needs: { readonly type: string; readonly program?: string };
  readonly make: () => void;
}

const FILE_SYSTEMS: readonly FileSystem[] = [
  {
    name: "Btrfs",
    dir: `${BASE}/btrfs/volume`,
    needs: { type: "btrfs", program: "mkfs.btrfs" },
    make: () => {
      mountImage("btrfs", { size: "256M" });
      run("btrfs", "subvolume", "create", `${BASE}/btrfs/volume`);
    },
  },
  {
    name: "XFS",
    dir: `${BASE}/xfs`,
    needs: { type: "xfs", program: "mkfs.xfs" },
    make: () => mountImage("xfs", { size: "320M" }),
  },
  {
    name: "an overlay",
    dir: `${BASE}/overlay/merged`,
    needs: { type: "overlay" },
    make: () => mountOverlay("overlay", []),
  },
  {
    name: "an overlay with nfs_export",
    dir: `${BASE}/exported/merged`,
    needs: { type: "overlay" },
    make: () => mountOverlay("exported", ["index=on", "nfs_export=on"]),
  },
];

const TMPDIR = process.env["TMPDIR"];

beforeAll(() => {
  syscall("unshare", CLONE_NEWNS);
  run("mount", "--make-rprivate", "/");
  run("mount", "-t", "tmpfs", "tests", BASE);
});

afterAll(() => {
  if (TMPDIR === undefined) delete process.env["TMPDIR"];
  else process.env["TMPDIR"] = TMPDIR;
  run("umount", "--recursive", "--lazy", BASE);
  rmdirSync(BASE);
});

for (const fileSystem of FILE_SYSTEMS) {
  const lack = whatLacks(fileSystem);
  if (lack !== undefined)
    console.log(`the tests in ${fileSystem.name} are skipped: this machine has no ${lack}`);
  describe.skipIf(lack !== undefined)(`in ${fileSystem.name}`, () => {
    beforeAll(() => {
      fileSystem.make();
      process.env["TMPDIR"] = fileSystem.dir;
    });

    test.each(SUBJECTS)("$name comes back twice", (subject) => comesBackTwice(subject));

    testLostNames(fileSystem);
  });
}

/** Files that have lost their names: where they are found by handles no link stays, and else one. */
function testLostNames({ name }: FileSystem): void {
  if (name !== "an overlay") {
    test("a file that has lost its name is shared with a clone", () =>
      goesOnBesideClone({ name: "hardlink_only" }));
    return;
  }
  test("a file that has lost its name has one link for all dumps, and needs --link-remap", async () => {
    const program = await start("hardlink_only");
    const options = { pid: program.pid, leave: "running" } as const;
    const refused = checkpoint({ ...options, imagesDir: imagesDirOf(program) });
    await expect(refused).rejects.toMatchObject({ code: "UNSUPPORTED" });
    expect(linksIn(program)).toEqual([]);
    const sets = [imagesDirOf(program), imagesDirOf(program)];
    for (const imagesDir of sets) {
      await checkpoint({ ...options, imagesDir, linkRemap: true });
      expect(linksIn(program)).toHaveLength(1);
    }
    await killProgram(program);
    const made = await restore({ imagesDir: sets[0] ?? "", removeLinks: true });
    const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
    const [link = ""] = linksIn(program);
    expect(link).toMatch(/^link_remap/);
    // The program would count this name, too.
    unlinkSync(join(program.dir, link));
    expect(await restored.ask()).toBe("ok 1");
  });
}

function linksIn({ dir }: RunningProgram): string[] {
  return readdirSync(dir).filter((name) => name.startsWith("link_remap."));
}

/** What a machine lacks for a file system. */
function whatLacks({ needs: { type, program } }: FileSystem): string | undefined {
  if (!new RegExp(`\\t${type}$`, "m").test(readFileSync("/proc/filesystems", "latin1")))
    return `${type} in its kernel`;
  if (program === undefined) return undefined;
  if (!isThere(`/usr/sbin/${program}`) && !isThere(`/sbin/${program}`)) return program;
  return isThere("/dev/loop-control") ? undefined : "loop devices";
}

function isThere(path: string): boolean {
  try {
    accessSync(path);
    return true;
  } catch {
    return false;
  }
}

function mountImage(type: string, { size }: { readonly size: string }): void {
  const [image, dir] = [`${BASE}/${type}.img`, `${BASE}/${type}`];
  mkdirSync(dir);
  run("truncate", "-s", size, image);
  run(`mkfs.${type}`, "-q", image);
  run("mount", "-o", "loop", image, dir);
}

function mountOverlay(name: string, options: readonly string[]): void {
  const dir = `${BASE}/${name}`;
  for (const layer of ["lower", "upper", "work", "merged"])
    mkdirSync(`${dir}/${layer}`, { recursive: true });
  const layers = ["lower", "upper", "work"].map((layer) => `${layer}dir=${dir}/${layer}`);
  run("mount", "-t", "overlay", "-o", [...layers, ...options].join(), "overlay", `${dir}/merged`);
}

function run(command: string, ...args: readonly string[]): void {
  execFileSync(command, args, { stdio: "pipe" });
}
