// Files that are open by a lost name and have another (test/programs/hardlink_only.c): what dumps leave in their directory.

import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore, type RestoreResult } from "../../src/engine/restore.ts";
import { RepriseError } from "../../src/errors.ts";
import { runEngine, useEngineBundle } from "./engine-death.ts";
import { attachProgram, killProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const KILLS = 12;

useEngineBundle();

const namesIn = (program: RunningProgram): string[] =>
  readdirSync(program.dir).filter((name) => !name.startsWith("images-"));

test("dumps of a program that goes on leave no name, and each can be restored", async () => {
  const program = await start("hardlink_only");
  const before = namesIn(program);
  const sets: string[] = [];
  for (let count = 0; count < 3; count++) {
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
    sets.push(imagesDir);
    expect(namesIn(program)).toEqual(before);
    expect(await program.ask()).toBe(`ok ${count + 1}`);
  }
  // Beside the original, and saved again there.
  const { pid } = await restore({ imagesDir: sets[2] ?? "", newPidNamespace: true });
  const clone = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await clone.ask()).toBe("ok 3");
  await checkpoint({ pid, imagesDir: imagesDirOf(program), leave: "running" });
  expect(await clone.ask()).toBe("ok 4");
  expect(await clone.finish()).toBe("pass");
  await killProgram(program);
  for (const imagesDir of sets.slice(0, 2)) {
    const made = await restore({ imagesDir });
    const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
    expect(await restored.ask()).toMatch(/^ok/);
    expect(await restored.finish()).toBe("pass");
    await made.wait();
    expect(namesIn(program)).toEqual(before);
  }
});

test("a file that has lost all its names since is made again, if it was small enough", async () => {
  const program = await start("hardlink_only");
  const [small, large] = [imagesDirOf(program), imagesDirOf(program)];
  await checkpoint({ pid: program.pid, imagesDir: small, leave: "running" });
  await checkpoint({ pid: program.pid, imagesDir: large, leave: "running", ghostLimit: 0 });
  await killProgram(program);
  unlinkSync(join(program.dir, "other"));
  const before = namesIn(program);
  await expect(restore({ imagesDir: large })).rejects.toMatchObject({
    code: "FILE_CHANGED",
    message: `cannot restore file ${program.dir}/first: it had lost this name at the dump, and cannot be found by another one`,
  });
  expect(namesIn(program)).toEqual(before);
  const { pid } = await restore({ imagesDir: small });
  endWithTest(attachProgram(program.name, pid, program.dir));
  expect(execFileSync("cat", [`/proc/${pid}/fd/3`], { encoding: "utf8" })).toBe("content");
  expect(namesIn(program)).toEqual(before);
});

test("a restore that fails late leaves no name", async () => {
  const program = await start("hardlink_only");
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
  await killProgram(program);
  const before = namesIn(program);
  const script = (action: string): void => {
    if (action === "post-restore") throw new RepriseError("INTERNAL", "no");
  };
  await expect(restore({ imagesDir, hooks: { script } })).rejects.toThrow("no");
  expect(namesIn(program)).toEqual(before);
});

test("the hard link of one dump is not taken for that of another", async () => {
  const [one, two] = [await start("hardlink_only"), await start("hardlink_only")];
  const imagesDir = imagesDirOf(one);
  await checkpoint({ pid: one.pid, imagesDir, linkRemap: true });
  const [link = ""] = namesIn(one).filter((name) => name.startsWith("link_remap."));
  unlinkSync(join(one.dir, link));
  writeFileSync(join(one.dir, link), "theirs");
  const restored = endWithTest(
    attachProgram(one.name, (await restore({ imagesDir })).pid, one.dir),
  );
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
  expect(await two.ask()).toBe("ok 1");
});

test("a dump that is killed leaves no hard link but in a whole set", async () => {
  const program = await start("hardlink_only");
  const linksOf = (): string[] => namesIn(program).filter((name) => name.startsWith("link_remap."));
  const order = { action: "dump", linkRemap: true } as const;
  const bring = async (imagesDir: string): Promise<RestoreResult> => {
    const made = await restore({ imagesDir, removeLinks: true });
    endWithTest(attachProgram(program.name, made.pid, program.dir));
    return made;
  };
  const first = imagesDirOf(program);
  const { ms } = await runEngine({ ...order, pid: program.pid, imagesDir: first });
  expect(linksOf()).toHaveLength(1);
  let running = await bring(first);
  let broken = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const imagesDir = imagesDirOf(program);
    const afterMs = (ms * (kill + 1)) / (KILLS + 1);
    await runEngine({ ...order, pid: running.pid, imagesDir }, { afterMs });
    const now = attachProgram(program.name, running.pid, program.dir);
    if (existsSync(join(imagesDir, "inventory.img"))) {
      expect(linksOf()).toHaveLength(1);
      await killProgram(now);
      await running.wait();
      running = await bring(imagesDir);
    } else {
      broken++;
      expect(linksOf()).toEqual([]);
      process.kill(running.pid, "SIGCONT");
    }
    const next = attachProgram(program.name, running.pid, program.dir);
    expect(await next.ask()).toMatch(/^ok/);
  }
  expect(broken).toBeGreaterThan(KILLS / 4);
});
