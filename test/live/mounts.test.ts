// Mount namespaces: see test/programs/mount_namespaces.c.

import { execFileSync } from "node:child_process";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { attachProgram, killProgram, makeDir, removeDir, startProgram } from "./programs.ts";
import { imagesDirOf, testRoom } from "./suite.ts";

testRoom("mounts");

test("a mount of outside is asked for, and may be another one", async () => {
  const dir = makeDir("mount_namespaces");
  onTestFinished(() => removeDir(dir));
  for (const name of ["outside", "other"]) mkdirSync(join(dir, name));
  const outside = join(dir, "outside");
  execFileSync("mount", ["-t", "tmpfs", "outside", outside]);
  onTestFinished(() => void execFileSync("umount", [outside]));
  for (const name of ["outside", "other"]) writeFileSync(join(dir, name, "file"), "theirs\n");
  const program = await startProgram("mount_namespaces", [], { dir });
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
  const seen = statSync(`/proc/${pid}/root${outside}/file`);
  expect(seen.ino).toBe(statSync(join(dir, "other", "file")).ino);
  expect(await restored.finish()).toBe("pass");
});
