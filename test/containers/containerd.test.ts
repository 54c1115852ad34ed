// containerd by its own command: checkpoints into its store and into a directory, containers restored from the store, saved again.
// Its client pauses a container for the while: runc gets one that is frozen already. A restored one is started by the shim, which
// must be its parent. It has the cgroup of the first, which is in the checkpoint, so the two are not there at once; and nobody
// reads its output, since `ctr` takes it for ended before it starts. So it counts into a file.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { canRunContainerd, IMAGE, startContainerd, type Containerd } from "./containerd.ts";
import { COUNT, counted, expectNoGap, numbers } from "./counting.ts";
import type { CgroupVersion } from "./host.ts";

describe.each(["v1", "v2"] as const)("containerd on cgroup %s", (version: CgroupVersion) => {
  const can = canRunContainerd(version);
  let containerd: Containerd;
  beforeAll(async () => {
    if (can) containerd = await startContainerd(version);
  }, 60_000);
  afterAll(async () => {
    if (can) await containerd.stop();
  }, 60_000);

  test(
    "a container, one restored from its checkpoint, and that one again",
    { timeout: 60_000 },
    async (context) => {
      if (!can) context.skip("no containerd, or no such cgroups");
      const { host, ctr } = containerd;
      // Without cpu shares: not every machine has that controller on v2.
      const options = ["--null-io", "--cpu-shares", "0", "--cgroup", `/${host.cgroup}/looper`];
      ctr("run", "-d", ...options, IMAGE, "looper", "sh", "-c", `${COUNT} > /root/count`);
      await counted(countOf("looper"), 3);

      const images = join(host.dir, "images");
      ctr("task", "checkpoint", "--image-path", images, "--work-path", images, "looper");
      expect(existsSync(join(images, "inventory.img"))).toBe(true);
      await counted(countOf("looper"), numbers(countOf("looper")).length + 2);

      ctr("container", "checkpoint", "--rw", "--image", "--task", "looper", "saved");
      const saved = numbers(countOf("looper")).length;
      await counted(countOf("looper"), saved + 2);
      remove("looper");

      ctr("container", "restore", "--rw", "--live", "twin", "saved");
      const first = numbers(countOf("twin")).length;
      expect(first).toBeLessThanOrEqual(saved + 3);
      await counted(countOf("twin"), first + 2);
      expect(readFileSync(`/proc/${pidOf("twin")}/cgroup`, "utf8")).toContain(
        `:/${host.cgroup}/looper\n`,
      );

      // The configuration is in the store by its content, and is the same again: a checkpoint beside the first one would lack it.
      ctr("image", "rm", "--sync", "saved");
      ctr("container", "checkpoint", "--rw", "--image", "--task", "twin", "saved-again");
      remove("twin");
      ctr("container", "restore", "--rw", "--live", "third", "saved-again");
      const again = numbers(countOf("third")).length;
      expect(again).toBeGreaterThanOrEqual(first + 2);
      await counted(countOf("third"), again + 2);
      expectNoGap(numbers(countOf("third")));
      expect(ctr("task", "exec", "--exec-id", "hello", "third", "echo", "hello")).toBe("hello");
    },
  );

  function pidOf(id: string): string {
    const line = containerd
      .ctr("task", "ls")
      .split("\n")
      .find((one) => one.startsWith(`${id} `));
    return line?.split(/\s+/)[1] ?? "";
  }

  function countOf(id: string): string {
    return `/proc/${pidOf(id)}/root/root/count`;
  }

  function remove(id: string): void {
    containerd.ctr("task", "rm", "-f", id);
    containerd.ctr("container", "rm", id);
  }
});
