// reprise standby: engines that are loaded and warm, for `criu` to hand its work to (src/criu/standby).

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { RepriseError } from "../../errors.ts";
import { takeLock } from "../../store/lock.ts";

export interface StandbyOptions {
  readonly engines?: number;
  readonly detach?: boolean;
  readonly stop?: boolean;
  readonly status?: boolean;
}

const DEFAULT_DIRECTORY = "/run/reprise/standby";
const DEFAULT_ENGINES = 2;
const LARGEST_POOL = 16;
/** As bin/criu starts it. */
const NODE_SETTINGS = [
  "--max-semi-space-size=64",
  "--min-semi-space-size=64",
  "--initial-old-space-size=64",
];

/** Returns the exit code: of --status, 1 when no engine stands by. */
export async function standby(options: StandbyOptions): Promise<number> {
  if (options.stop === true) return stop();
  if (options.status === true) return status();
  const engines = options.engines ?? DEFAULT_ENGINES;
  if (engines < 1 || engines > LARGEST_POOL) {
    throw new RepriseError("BAD_ARGUMENT", `${engines} is not a number of engines`, {
      hint: `--engines takes 1 to ${LARGEST_POOL}.`,
    });
  }
  const words = ["standby-keeper", standbyDirectory(), String(engines)];
  const program = join(import.meta.dirname, "criu.cjs");
  const keeper = spawn(process.execPath, [...NODE_SETTINGS, program, ...words], {
    detached: options.detach === true,
    cwd: "/",
    stdio: ["ignore", "pipe", options.detach === true ? "ignore" : "inherit"],
  });
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const)
    process.on(signal, () => keeper.kill(signal));
  const ended = once(keeper, "exit").then(([code]) => (code as number | null) ?? 1);
  const ready = once(keeper.stdout, "data").then(() => undefined);
  const early = await Promise.race([ready, ended]);
  if (early !== undefined) {
    throw new RepriseError("BUSY", "no engine stands by: the keeper ended at once", {
      hint: "Is there one already (reprise standby --status)? In the foreground it says why.",
    });
  }
  process.stdout.write("engines stand by\n");
  if (options.detach !== true) return ended;
  keeper.stdout.destroy();
  keeper.unref();
  return 0;
}

/** Where the slots are: bin/criu looks there, too. */
function standbyDirectory(): string {
  return process.env["REPRISE_STANDBY"] ?? DEFAULT_DIRECTORY;
}

/** The keeper that runs; undefined when there is none. */
async function findKeeper(): Promise<number | undefined> {
  const path = join(standbyDirectory(), "keeper");
  if (!existsSync(path)) return undefined;
  try {
    (await takeLock(path, { what: "standby", patienceMs: 0 }))?.[Symbol.dispose]();
    return undefined;
  } catch (error) {
    if (!(error instanceof RepriseError) || error.code !== "BUSY") throw error;
    return Number.parseInt(readFileSync(path, "utf8"), 10);
  }
}

const POLL_MS = 20;

async function stop(): Promise<number> {
  const keeper = await findKeeper();
  if (keeper === undefined) process.stdout.write("no engine stands by\n");
  else {
    process.kill(keeper, "SIGTERM");
    while ((await findKeeper()) === keeper) await setTimeout(POLL_MS);
  }
  return 0;
}

async function status(): Promise<number> {
  const keeper = await findKeeper();
  process.stdout.write(
    keeper === undefined ? "no engine stands by\n" : `engines stand by (keeper: pid ${keeper})\n`,
  );
  return keeper === undefined ? 1 : 0;
}
