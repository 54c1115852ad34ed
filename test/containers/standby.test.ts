// runc with an engine that stands by: the container is in the hands of another process than the one that runc started, and runc
// sees no difference.

import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { bundleWithFile } from "./bundle.ts";
import { counted, expectNoGap, numbers } from "./counting.ts";
import { canHost, hasProgram, startHost, type CgroupVersion } from "./host.ts";

describe.each(["v1", "v2"] as const)("on cgroup %s", (version: CgroupVersion) => {
  test.runIf(canHost(version) && hasProgram("runc"))(
    "runc saves and restores a container with limits, twice",
    { timeout: 90_000 },
    async () => {
      const host = await startHost(version, undefined, true);
      onTestFinished(() => host.stop(), 30_000);
      const bundle = bundleWithFile(host, "held", ({ linux }) => {
        if (version === "v1") linux.resources = { ...linux.resources, pids: { limit: 5 } };
      });
      const images = join(host.dir, "images");
      const count = join(bundle, "rootfs/root/count");
      const runc = (...words: readonly string[]): string =>
        host.run(
          "sh",
          "-c",
          'exec "$@" </dev/null >/dev/null 2>&1',
          "sh",
          "runc",
          "--root",
          join(host.dir, "runc"),
          ...words,
        );
      runc("run", "--detach", "--bundle", bundle, "held");
      onTestFinished(() => void runc("delete", "--force", "held"));
      for (let round = 0; round < 2; round += 1) {
        await counted(count, numbers(count).length + 3);
        rmSync(images, { recursive: true, force: true });
        await engine(host.dir);
        runc("checkpoint", "--image-path", images, "--work-path", images, "held");
        expect(readFileSync(join(images, "dump.log"), "utf8")).toContain("an engine that stood by");
        await engine(host.dir);
        const where = ["--image-path", images, "--work-path", images, "--bundle", bundle] as const;
        runc("restore", "--detach", ...where, "held");
        expect(readFileSync(join(images, "restore.log"), "utf8")).toContain(
          "an engine that stood by",
        );
        const { init_process_pid: pid } = JSON.parse(
          readFileSync(join(host.dir, "runc/held/state.json"), "utf8"),
        ) as { init_process_pid: number };
        expect(readFileSync(`/proc/${pid}/cgroup`, "utf8")).toMatch(
          new RegExp(`${host.cgroup}/held$`, "m"),
        );
      }
      await counted(count, numbers(count).length + 3);
      expectNoGap(numbers(count));
    },
  );
});

/** Waits for one that is free. */
async function engine(host: string): Promise<void> {
  const slot = join(host, "standby/0");
  for (const end = Date.now() + 30_000; !existsSync(slot) || existsSync(join(slot, "busy"));) {
    if (Date.now() > end) throw new Error("no engine stands by");
    await sleep(10);
  }
}
