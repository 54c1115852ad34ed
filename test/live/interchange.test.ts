// Image sets are exchanged with CRIU: every program is dumped by Reprise and restored by CRIU, and the other way round.
// REPRISE_REAL_CRIU names CRIU's executable; without it there is nothing to exchange with, and the suite is skipped.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
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
import { CRIU, criu, restoreWithCriu } from "./real-criu.ts";

if (CRIU === undefined)
  console.log("interchange with CRIU is skipped: REPRISE_REAL_CRIU names no executable");

describe.skipIf(CRIU === undefined)("images of Reprise and CRIU", () => {
  // random_state does nothing by itself.
  for (const name of programNames().filter((one) => one !== "random_state")) {
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
    await restoreWithCriu(images);
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

async function outcome(run: () => Promise<string>): Promise<string> {
  try {
    return await run();
  } catch (error) {
    return `threw: ${error instanceof Error ? error.message : String(error)}`;
  }
}
