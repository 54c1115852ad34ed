import { spawnSync } from "node:child_process";
import { expect, test } from "vitest";
import { readStatus } from "../../proc/status.ts";
import { LandlockWatch } from "./landlock.ts";

test("a process that ended while helpers are made is none to be asked", () => {
  const { pid } = spawnSync("true");
  const gone = { ...readStatus(process.pid), pid, tgid: pid };
  using landlock = new LandlockWatch();
  expect(() => landlock.prepare([gone, readStatus(process.pid)])).not.toThrow();
});
