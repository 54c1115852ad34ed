// Every image that Reprise writes is read by CRIU's own tool. crit comes with CRIU (Debian's package criu, or python3-pycriu);
// where it is missing the suite is skipped. REPRISE_CRIT names another executable.

import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { killProgram, makeDir, programNames, removeDir, startProgram } from "./programs.ts";
import { hasCrit, notDecoded } from "./real-criu.ts";

/** Programs that have every kind of object between them; all others only with REPRISE_CRIT_ALL=1, for they take long. */
const SOME = new Set([
  "creds",
  "deleted_files",
  "epolls",
  "eventfds",
  "fifos",
  "file_locks",
  "file_maps",
  "hardlink_only",
  "limits",
  "memfd_maps",
  "pipes",
  "posix_timers",
  "sched",
  "sessions",
  "shared_memory",
  "signalfds",
  "sigpending",
  "stopped_child",
  "threads",
  "timerfds",
  "unix_pairs",
  "zombies",
]);
const names = programNames().filter(
  (name) => SOME.has(name) || process.env["REPRISE_CRIT_ALL"] !== undefined,
);

describe.skipIf(!hasCrit())("crit decodes every image", () => {
  test.each(names)("%s", async (name) => {
    const dir = makeDir(name);
    const program = await startProgram(name, [], { dir });
    onTestFinished(async () => {
      await killProgram(program);
      removeDir(dir);
    });
    await program.waitReady();
    const images = join(dir, "images");
    mkdirSync(images);
    const options = { linkRemap: true, fileLocks: true, leave: "running" } as const;
    const tcp = { established: true };
    await checkpoint({ pid: program.pid, imagesDir: images, ...options, tcp });
    const some = ["inventory.img", "pstree.img", "files.img"];
    expect(readdirSync(images)).toEqual(expect.arrayContaining(some));
    expect(await notDecoded(images)).toEqual([]);
  });
});
