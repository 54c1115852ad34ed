// Labels of security modules at restore. Where no module has labels in use, it is seen how far a restore goes: a saved label is refused
// before any task is made, and with a module pretended, the kernel is asked for the label by every thread, and says no.

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { entryBytes, headBytes } from "../../src/images/image-file.ts";
import { ImageSetReader } from "../../src/images/image-set.ts";
import { imageName } from "../../src/images/names.ts";
import { MANIFEST_NAME } from "../../src/images/manifest.ts";
import { loadImageSet } from "../../src/images/check-set.ts";
import {
  Lsmtype,
  type CredsEntry,
  type ThreadCoreEntry,
} from "../../src/images/schema/messages.generated.ts";
import type * as LsmRoom from "../../src/objects/task/lsm.ts";
import { hostLsm, type Lsm } from "../../src/objects/task/lsm.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const pretended = vi.hoisted<{ lsm: Lsm | undefined }>(() => ({ lsm: undefined }));

vi.mock("../../src/objects/task/lsm.ts", async (original) => {
  const real = await original<typeof LsmRoom>();
  return { ...real, hostLsm: () => pretended.lsm ?? real.hostLsm() };
});

describe.skipIf(hostLsm() !== "none")("a tree with a label of a security module", () => {
  test("is refused by name, and comes back without one when the caller says so", async () => {
    const { program, imagesDir } = await saved("counter", "apparmor");
    await expect(restore({ imagesDir })).rejects.toThrow(
      /^cannot restore pid \d+ with its apparmor label docker-default: this kernel has no security module/,
    );
    await expect(restore({ imagesDir, lsmProfile: "apparmor:mine" })).rejects.toThrow(
      "cannot give tasks the apparmor profile mine",
    );
    const { pid } = await restore({ imagesDir, lsmProfile: "none:" });
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test.each([
    ["counter", "apparmor", 'set the security label "changeprofile docker-default"'],
    ["threads", "apparmor", 'set the security label "changeprofile docker-default"'],
    ["counter", "selinux", 'set the security label "docker-default"'],
    ["threads", "selinux", 'set the security label "docker-default"'],
  ] as const)("%s asks the kernel for the label, with %s", async (name, module, asked) => {
    const { program, imagesDir } = await saved(name, module);
    pretended.lsm = module;
    await expect(restore({ imagesDir })).rejects.toThrow(asked);
    pretended.lsm = undefined;
    const { pid } = await restore({ imagesDir, lsmProfile: "none:" });
    const restored = endWithTest(attachProgram(program.name, pid, program.dir));
    expect(await restored.finish()).toBe("pass");
  });
});

/** Dumps a program and puts a label into its images. */
async function saved(
  name: string,
  module: "apparmor" | "selinux",
): Promise<{ program: RunningProgram; imagesDir: string }> {
  const program = await start(name);
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  rmSync(join(imagesDir, MANIFEST_NAME));
  const set = loadImageSet(new ImageSetReader(imagesDir));
  const lsmtype = module === "apparmor" ? Lsmtype.APPARMOR : Lsmtype.SELINUX;
  const inventory = entryBytes("inventory_entry", { ...set.inventory, lsmtype });
  writeFileSync(
    join(imagesDir, imageName("inventory")),
    Buffer.concat([headBytes("inventory"), inventory]),
  );
  for (const [tid, core] of set.tasks.get(set.rootPid)?.threads ?? []) {
    const thread = core.thread_core as ThreadCoreEntry;
    const creds = { ...(thread.creds as CredsEntry), lsm_profile: "docker-default" };
    const bytes = entryBytes("core_entry", { ...core, thread_core: { ...thread, creds } });
    writeFileSync(
      join(imagesDir, imageName("core", tid)),
      Buffer.concat([headBytes("core"), bytes]),
    );
  }
  return { program, imagesDir };
}
