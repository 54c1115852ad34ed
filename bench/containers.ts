// Docker's and runc's whole commands with Reprise and with CRIU as their `criu`, side by side: `checkpoint`, the start from it, and
// how long the container stood still. Medians of several runs in turn.
//
//   REPRISE_REAL_CRIU=/path/to/criu npm run bench:containers -- --runs 7 --cgroup v1

import { readFileSync, rmSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { decode } from "../src/images/codec.ts";
import { makeBundle } from "../test/containers/bundle.ts";
import { checkpointsDir, startDocker, type Docker } from "../test/containers/dockerd.ts";
import type { CgroupVersion } from "../test/containers/host.ts";

const LOOPER = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done";
const OURS = fileURLToPath(new URL("../bin/criu", import.meta.url));
/** Magic words and length before the message in stats-dump. */
const STATS_HEAD = 12;

const { values } = parseArgs({
  options: { runs: { type: "string", default: "5" }, cgroup: { type: "string", default: "v1" } },
});
const real = process.env["REPRISE_REAL_CRIU"];
const engines = [
  { name: "reprise", criu: OURS, hasStandby: false },
  { name: "standby", criu: OURS, hasStandby: true },
  ...(real === undefined ? [] : [{ name: "criu", criu: real, hasStandby: false }]),
];

interface Times {
  readonly checkpoint: number;
  readonly start: number;
  readonly frozen?: number;
}

const hosts: { readonly name: string; readonly docker: Docker }[] = [];
try {
  for (const { name, criu, hasStandby } of engines) {
    const docker = await startDocker(values.cgroup as CgroupVersion, criu, hasStandby);
    hosts.push({ name, docker });
  }
  await benchRow("docker", dockerCycle);
  await benchRow("runc", runcCycle);
} finally {
  for (const { docker } of hosts) await docker.stop();
}

async function benchRow(
  row: string,
  cycle: (docker: Docker, run: number) => Promise<Times>,
): Promise<void> {
  const times = new Map<string, Times[]>(hosts.map(({ name }) => [name, []]));
  for (let run = 0; run <= Number(values.runs); run += 1) {
    for (const { name, docker } of hosts) {
      const measured = await cycle(docker, run);
      if (run > 0) times.get(name)?.push(measured); // the first warms caches up
    }
  }
  for (const [name, list] of times) {
    const show = (key: keyof Times): string => {
      const known = list.map((one) => one[key]).filter((ms) => ms !== undefined);
      return known.length === 0 ? "-" : median(known).toFixed(1);
    };
    console.log(
      `${row.padEnd(8)} ${name.padEnd(8)} checkpoint ${show("checkpoint").padStart(7)}  start ${show("start").padStart(7)}  frozen ${show("frozen").padStart(7)}  ms, median of ${list.length}`,
    );
  }
}

async function dockerCycle(docker: Docker, run: number): Promise<Times> {
  const container = `bench-${run}`;
  docker.run("run", "-d", "--name", container, "busybox", "sh", "-c", LOOPER);
  try {
    await sleep(300);
    const checkpoint = timed(() => docker.run("checkpoint", "create", container, "c1"));
    await sleep(1100); // see test/containers/docker.test.ts
    execFileSync("find", [
      join(checkpointsDir(docker, container), "c1"),
      "-exec",
      "touch",
      "{}",
      "+",
    ]);
    const start = timed(() => docker.run("start", "--checkpoint", "c1", container));
    return { checkpoint, start };
  } finally {
    docker.run("rm", "-f", container);
  }
}

async function runcCycle({ host }: Docker, run: number): Promise<Times> {
  const id = `bench-${run}`;
  const bundle = makeBundle(host, id, ({ process }) => {
    process.args = ["sh", "-c", LOOPER];
  });
  const images = join(host.dir, "bench-images");
  rmSync(images, { recursive: true, force: true });
  const quiet = (...words: readonly string[]): string =>
    host.run("sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", "runc", ...words);
  quiet("run", "--detach", "--bundle", bundle, id);
  try {
    await sleep(300);
    const where = ["--image-path", images, "--work-path", images] as const;
    const checkpoint = timed(() => quiet("checkpoint", ...where, id));
    const frozen = frozenTime(images);
    const start = timed(() => quiet("restore", "--detach", ...where, "--bundle", bundle, id));
    return { checkpoint, start, frozen };
  } finally {
    quiet("delete", "--force", id);
  }
}

function frozenTime(images: string): number {
  const bytes = readFileSync(join(images, "stats-dump")).subarray(STATS_HEAD);
  return (decode("stats_entry", bytes).dump?.frozen_time ?? 0) / 1000;
}

function timed(action: () => unknown): number {
  const begun = performance.now();
  action();
  return performance.now() - begun;
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}
