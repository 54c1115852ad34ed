// Mount namespaces: see test/programs/mount_namespaces.c.

import { execFileSync } from "node:child_process";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { attachProgram, killProgram, makeDir, removeDir, startProgram } from "./programs.ts";
import { imagesDirOf, reapOrphansHere, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("mounts");

test.each(["directory", "file"])(
  "a mounted %s of outside is asked for, and may be another one",
  async (what) => {
    const dir = makeDir("mount_namespaces");
    onTestFinished(() => removeDir(dir));
    const isFile = what === "file";
    const fileOf = (name: string): string => (isFile ? join(dir, name) : join(dir, name, "file"));
    for (const name of ["outside", "other"]) {
      if (!isFile) mkdirSync(join(dir, name));
      writeFileSync(fileOf(name), "");
    }
    const outside = join(dir, "outside");
    const [from, ...how] = isFile ? [join(dir, "other"), "--bind"] : ["outside", "-t", "tmpfs"];
    execFileSync("mount", [...how, from ?? "", outside]);
    onTestFinished(() => void execFileSync("umount", [outside]));
    for (const name of ["outside", "other"]) writeFileSync(fileOf(name), "theirs\n");
    const program = await startProgram("mount_namespaces", isFile ? ["alone"] : [], { dir });
    onTestFinished(() => killProgram(program));
    await program.waitReady();
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, external: [`mnt[${outside}]:volume`] });

    const refused = restore({ imagesDir });
    await expect(refused).rejects.toMatchObject({ code: "BAD_ARGUMENT" });

    const external = [`mnt[volume]:${join(dir, "other")}`];
    const { pid } = await restore({ imagesDir, external });
    const restored = attachProgram("mount_namespaces", pid, dir);
    onTestFinished(() => killProgram(restored));
    expect(await restored.ask()).toBe("ok 1");
    const seen = statSync(`/proc/${pid}/root${isFile ? outside : join(outside, "file")}`);
    expect(seen.ino).toBe(statSync(fileOf("other")).ino);
    expect(await restored.finish()).toBe("pass");
  },
);
