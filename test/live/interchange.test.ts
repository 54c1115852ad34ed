// Image sets are exchanged with CRIU: every program is dumped by Reprise and restored by CRIU, and the other way round.
// REPRISE_REAL_CRIU names CRIU's executable; without it there is nothing to exchange with, and the suite is skipped.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { interchangeExceptions, type Direction } from "./interchange-exceptions.ts";
import {
  attachProgram,
  killProgram,
  makeDir,
  programNames,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";

const CRIU = process.env["REPRISE_REAL_CRIU"];
const FREE_PIDS_MS = 5000;

if (CRIU === undefined)
  console.log("interchange with CRIU is skipped: REPRISE_REAL_CRIU names no executable");

describe.skipIf(CRIU === undefined)("images of Reprise and CRIU", () => {
  for (const name of programNames()) {
    test.each<Direction>(["restored by CRIU", "dumped by CRIU"])(
      `${name} %s`,
      async (direction) => {
        const dir = makeDir(name);
        let program: RunningProgram | undefined;
        onTestFinished(async () => {
          if (program !== undefined) await killProgram(program);
          removeDir(dir);
        });
        program = await startProgram(name, [], { dir });
        await program.waitReady();
        const { pid } = program;
        const exception = interchangeExceptions[name]?.[direction];
        const verdict = await outcome(async () => {
          await exchange[direction](pid, dir);
          const restored = attachProgram(name, pid, dir);
          const answer = await restored.ask();
          return answer.startsWith("fail") ? answer : JSON.stringify(await restored.finish());
        });
        if (exception === undefined) expect(verdict).toBe('"pass"');
        else expect(verdict, `no longer an exception? ${exception.why}`).toMatch(exception.says);
      },
    );
  }
});

const exchange: Readonly<Record<Direction, (pid: number, dir: string) => Promise<void>>> = {
  "restored by CRIU": async (pid, dir) => {
    const images = imagesIn(dir);
    const tcp = { established: true };
    await checkpoint({ pid, imagesDir: images, linkRemap: true, fileLocks: true, tcp });
    await freePids(images);
    // CRIU wants to be told where the mounts of a namespace begin.
    const hasMounts = readdirSync(images).some((name) => name.startsWith("mountpoints-"));
    criu("restore", images, ["-d", ...(hasMounts ? ["--root", "/"] : [])]);
  },
  "dumped by CRIU": async (pid, dir) => {
    const images = imagesIn(dir);
    criu("dump", images, ["-t", String(pid)]);
    const tcp = { established: true };
    await restore({ imagesDir: images, fileLocks: true, removeLinks: true, tcp });
  },
};

function imagesIn(dir: string): string {
  const images = join(dir, "images");
  mkdirSync(images);
  return images;
}

/** Runs CRIU. Throws with the errors of its log. */
function criu(action: "dump" | "restore", images: string, args: readonly string[]): void {
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

/** CRIU does not wait until those who reap the dead tasks have done so. */
async function freePids(images: string): Promise<void> {
  const pids = readdirSync(images).flatMap((name) => /^core-(\d+)\.img$/.exec(name)?.[1] ?? []);
  const end = Date.now() + FREE_PIDS_MS;
  while (pids.some((pid) => existsSync(`/proc/${pid}`)) && Date.now() < end) await sleep(20);
}

async function outcome(run: () => Promise<string>): Promise<string> {
  try {
    return await run();
  } catch (error) {
    return `threw: ${error instanceof Error ? error.message : String(error)}`;
  }
}
