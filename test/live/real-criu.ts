// CRIU's own executables for tests of interchange: REPRISE_REAL_CRIU names criu (without it such tests are skipped), and crit, which
// decodes images, is looked for in PATH (REPRISE_CRIT names another one).

import { execFile, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

/** CRIU's executable; undefined where there is none to exchange images with. */
export const CRIU = process.env["REPRISE_REAL_CRIU"];
const CRIT = process.env["REPRISE_CRIT"] ?? "crit";
const FREE_PIDS_MS = 5000;

/** Raw content, without the frame of an image: pages, and what programs (ip, iptables, conntrack) save and load with CRIU. */
const RAW = /^(pages|ifaddr|route6?|rule|ip6?tables|nftables|netns-ct|netns-exp)-\d+\.img$/;

/** Runs CRIU. Throws with the errors of its log. */
export function criu(action: "dump" | "restore", images: string, args: readonly string[]): void {
  const options = [
    "-D",
    images,
    "-v4",
    "-o",
    "criu.log",
    "--link-remap",
    "--file-locks",
    "--tcp-established",
    "--allow-uprobes",
  ];
  const { status } = spawnSync(CRIU ?? "", [action, ...options, ...args], { timeout: 20_000 });
  if (status === 0) return;
  const lines = readFileSync(join(images, "criu.log"), "utf8").split("\n");
  const errors = lines.filter((line) => line.includes("Error"));
  throw new Error(`criu ${action} ended with ${status}: ${errors.join("; ")}`);
}

/** Restores a set of Reprise with CRIU, which does not wait until those who reap the dead tasks have done so. */
export async function restoreWithCriu(images: string): Promise<void> {
  const names = readdirSync(images);
  const pids = names.flatMap((name) => /^core-(\d+)\.img$/.exec(name)?.[1] ?? []);
  const end = Date.now() + FREE_PIDS_MS;
  while (pids.some((pid) => existsSync(`/proc/${pid}`)) && Date.now() < end) await sleep(20);
  // CRIU wants to be told where the mounts of a namespace begin.
  const hasMounts = names.some((name) => name.startsWith("mountpoints-"));
  criu("restore", images, ["-d", ...(hasMounts ? ["--root", "/"] : [])]);
}

/** Whether there is a crit. */
export function hasCrit(): boolean {
  const found = spawnSync(CRIT, ["--help"], { stdio: "ignore" }).status === 0;
  if (!found) console.log(`images are not shown to crit: there is no ${CRIT} here`);
  return found;
}

/** The names of a set's images that crit does not understand, or finds no entries in. */
export async function notDecoded(images: string): Promise<string[]> {
  const names = readdirSync(images).filter((name) => name.endsWith(".img") && !RAW.test(name));
  const wrong: string[] = [];
  const next = names.values();
  // Two at a time: most of it is the start of Python.
  const work = async (): Promise<void> => {
    for (const name of next) if (!(await isDecoded(join(images, name)))) wrong.push(name);
  };
  await Promise.all([work(), work()]);
  return wrong;
}

async function isDecoded(path: string): Promise<boolean> {
  try {
    const { stdout } = await promisify(execFile)(CRIT, ["decode", "-i", path], {
      maxBuffer: 1 << 28,
    });
    const image = JSON.parse(stdout) as { magic?: unknown; entries?: unknown };
    return typeof image.magic === "string" && Array.isArray(image.entries);
  } catch {
    return false;
  }
}
