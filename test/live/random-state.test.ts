// Random combinations of kernel state, with some fixed seeds. For more: random-state-run.ts.

import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { compileProgram } from "./programs.ts";

/** In namespaces of its own, where nobody else takes pids, ports and terminals, and whose first process reaps at once. */
const SPACES = ["--pid", "--fork", "--net", "--ipc", "--mount", "--mount-proc"];
const PREPARE =
  "ip link set lo up; echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets; mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts /dev/pts && mount --bind /dev/pts/ptmx /dev/ptmx";
const RUNNER = fileURLToPath(new URL("random-state-run.ts", import.meta.url));

test("what was lost once comes back", { timeout: 60_000 }, async () => {
  expect(await run("--named")).toMatch(/^\d+ scripts, 0 failed\n$/);
});

test("whatever there is comes back", { timeout: 120_000 }, async () => {
  expect(await run("--no-shrink", "13", "32")).toMatch(
    /^(seed \d+: refused: .*\n)*20 seeds, 0 failed, \d refused\n$/,
  );
});

async function run(...args: readonly string[]): Promise<string> {
  compileProgram("random_state");
  const script = `${PREPARE}; "$0" --import tsx "$@"; exit $?`;
  const { stdout } = await promisify(execFile)(
    "unshare",
    [...SPACES, "--", "sh", "-c", script, process.execPath, RUNNER, ...args],
    { maxBuffer: 1 << 24 },
  );
  return stdout;
}
