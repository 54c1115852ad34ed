// Side by side with CRIU: frozen time, whole dump command and whole restore command, one row a workload. Medians of several
// runs in turn (ours, CRIU's, ours, …), since machines are noisy and only ratios within one run mean something.
//
//   npm run bench                                   all rows, ours alone: with engines that stand by, and without
//   REPRISE_REAL_CRIU=/path/to/criu npm run bench   with CRIU beside
//   npm run bench -- --rows looper,heap --runs 7
//   npm run bench -- --rows heap --cold             images are read from the disk, as after a reboot or on another machine

import { spawn, spawnSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { decode } from "../src/images/codec.ts";
import { readChildrenIfAlive } from "../src/proc/children.ts";
import { readTasksIfAlive } from "../src/proc/tasks.ts";
import { readPidUsage } from "../src/proc/pid-usage.ts";
import { attachProgram, killProgram, startProgram } from "../test/live/programs.ts";

/** A program of test/programs, or a script for the shell that prints lines for ever. */
type Workload =
  | { readonly program: string; readonly args: readonly string[] }
  | { readonly script: string };

const LOOPER = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done";

const WORKLOADS: Readonly<Record<string, Workload>> = {
  looper: { script: LOOPER },
  counter: { program: "counter", args: [] },
  tasks: { program: "many_tasks", args: ["200"] },
  threads: { program: "threads", args: ["500"] },
  descriptors: { program: "many_fds", args: ["4000"] },
  sockets: { program: "many_fds", args: ["4000", "sockets"] },
  heap: { program: "big_heap", args: ["1024"] },
  busy: { program: "heap_at_work", args: ["1024"] },
};

/** Milliseconds of one cycle. */
interface Times {
  readonly frozen: number;
  readonly dump: number;
  readonly restore: number;
}

const OURS = fileURLToPath(new URL("../bin/criu", import.meta.url));
/** Longest that a program may take to get ready, and to answer. */
const PATIENCE_MS = 60_000;
/** Magic words and length before the message in stats-dump. */
const STATS_HEAD = 12;

const { values } = parseArgs({
  options: {
    rows: { type: "string" },
    runs: { type: "string", default: "5" },
    cold: { type: "boolean", default: false },
  },
});
/** Where engines stand by, and where none do. */
const STANDBY = mkdtempSync(join(tmpdir(), "reprise-bench-standby-"));
const NOWHERE = join(STANDBY, "nowhere");
const engines = [
  { name: "reprise", criu: OURS, standby: NOWHERE },
  { name: "standby", criu: OURS, standby: STANDBY },
  ...(process.env["REPRISE_REAL_CRIU"] === undefined
    ? []
    : [{ name: "criu", criu: process.env["REPRISE_REAL_CRIU"], standby: NOWHERE }]),
];
reprise("standby", "--detach");
try {
  for (const row of values.rows?.split(",") ?? Object.keys(WORKLOADS)) {
    const workload = WORKLOADS[row];
    if (workload === undefined)
      throw new Error(`no row ${row}: ${Object.keys(WORKLOADS).join(", ")}`);
    await benchRow(row, workload, Number(values.runs));
  }
} finally {
  reprise("standby", "--stop");
  rmSync(STANDBY, { recursive: true });
}

function reprise(...words: readonly string[]): void {
  const env = { ...process.env, REPRISE_STANDBY: STANDBY };
  const { status } = spawnSync(join(OURS, "../reprise"), words, { env, stdio: "ignore" });
  if (status !== 0) throw new Error(`reprise ${words.join(" ")}: exit code ${status}`);
}

async function benchRow(row: string, workload: Workload, runs: number): Promise<void> {
  const times = new Map<string, Times[]>(engines.map(({ name }) => [name, []]));
  for (let run = 0; run <= runs; run += 1) {
    for (const { name, criu, standby } of engines) {
      process.env["REPRISE_STANDBY"] = standby;
      const cycle = await benchCycle(workload, criu);
      if (run > 0) times.get(name)?.push(cycle); // the first warms caches up
    }
  }
  const medians = new Map(
    [...times].map(([name, list]) => [
      name,
      (key: keyof Times) => median(list.map((one) => one[key])),
    ]),
  );
  for (const [name, of] of medians) {
    const best = (key: keyof Times): string =>
      Math.min(...(times.get(name) ?? []).map((one) => one[key])).toFixed(1);
    const show = (key: keyof Times): string =>
      `${key} ${of(key).toFixed(1).padStart(7)} (${best(key).padStart(6)})`;
    console.log(
      `${row.padEnd(12)} ${name.padEnd(8)} ${show("frozen")}  ${show("dump")}  ${show("restore")}  ms, median (best) of ${runs}`,
    );
  }
  const theirs = medians.get("criu");
  if (theirs === undefined) return;
  for (const [name, ours] of medians) {
    const ratio = (key: keyof Times): string => `${key} ${(ours(key) / theirs(key)).toFixed(2)}`;
    if (name !== "criu")
      console.log(
        `${" ".repeat(12)} ${name} / criu: ${ratio("frozen")}, ${ratio("dump")}, ${ratio("restore")}`,
      );
  }
}

async function benchCycle(workload: Workload, criu: string): Promise<Times> {
  const dir = mkdtempSync(join(tmpdir(), "reprise-bench-"));
  const images = join(dir, "images");
  mkdirSync(images);
  const subject = await startSubject(workload, dir);
  try {
    const numbers = numbersOf(subject.pid);
    const dump = timed(criu, ["dump", "-t", `${subject.pid}`, "-D", images, "-o", "dump.log"]);
    await freed(numbers);
    if (values.cold) forget();
    const restore = timed(criu, ["restore", "-d", "-D", images, "-o", "restore.log"]);
    await subject.check();
    return { frozen: frozenTime(images), dump, restore };
  } finally {
    await subject.end();
    rmSync(dir, { recursive: true });
  }
}

/** What is saved and brought back. */
interface Subject {
  readonly pid: number;
  /** Throws when it does not work any more. */
  check(): Promise<void>;
  end(): Promise<void>;
}

async function startSubject(workload: Workload, dir: string): Promise<Subject> {
  if ("script" in workload) return startScript(workload.script, dir);
  const program = await startProgram(workload.program, workload.args, { dir });
  await program.waitReady(PATIENCE_MS);
  return {
    pid: program.pid,
    check: async () => void (await attachProgram(program.name, program.pid, dir).ask(PATIENCE_MS)),
    end: () => killProgram(program),
  };
}

async function startScript(script: string, dir: string): Promise<Subject> {
  const file = join(dir, "out");
  const out = openSync(file, "a");
  const child = spawn("sh", ["-c", script], {
    detached: true,
    stdio: ["ignore", out, out],
    cwd: dir,
  });
  child.unref();
  closeSync(out);
  const pid = child.pid ?? 0;
  const moreThan = async (size: number): Promise<void> => {
    for (const end = Date.now() + PATIENCE_MS; statSync(file).size <= size;) {
      if (Date.now() > end) throw new Error(`${file} does not grow`);
      await sleep(20);
    }
  };
  await moreThan(0);
  return {
    pid,
    check: () => moreThan(statSync(file).size),
    end: () => killProgram(attachProgram("looper", pid, dir)),
  };
}

function timed(command: string, args: readonly string[]): number {
  const begun = performance.now();
  const { status } = spawnSync(command, args, { stdio: "ignore" });
  const ms = performance.now() - begun;
  if (status !== 0)
    throw new Error(`${command} ${args.join(" ")}: exit code ${status}\n${readLog(args)}`);
  return ms;
}

/** All numbers of a tree: processes and threads. A child of the shell may end meanwhile. */
function numbersOf(pid: number): number[] {
  const children = readChildrenIfAlive(pid) ?? [];
  return [...(readTasksIfAlive(pid) ?? []), ...children.flatMap(numbersOf)];
}

/** Waits until init has reaped the dead: their numbers are taken until then. */
async function freed(numbers: readonly number[]): Promise<void> {
  while (readPidUsage(numbers).size > 0) await sleep(20);
}

/** Writes everything to the disk, and empties the page cache. */
function forget(): void {
  spawnSync("sync");
  writeFileSync("/proc/sys/vm/drop_caches", "3");
}

function frozenTime(images: string): number {
  const stats = decode(
    "stats_entry",
    readFileSync(join(images, "stats-dump")).subarray(STATS_HEAD),
  );
  return (stats.dump?.frozen_time ?? 0) / 1000;
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

/** The errors in a command's log. */
function readLog(args: readonly string[]): string {
  const dir = args[args.indexOf("-D") + 1] ?? "";
  const log = args[args.indexOf("-o") + 1] ?? "";
  const lines = readFileSync(join(dir, log), "utf8").split("\n");
  return lines.filter((line) => line.includes("Error")).join("\n");
}
