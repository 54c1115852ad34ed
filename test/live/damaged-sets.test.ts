// Damaged sets are restored, not only read (src/images/mutations.test.ts): whatever happens to the bytes, it ends in a restored tree
// or in a clear error with nothing left behind, never in a hang. Sets without a manifest, as CRIU writes them: with one, every
// change is found out at once. Each restore has a pid namespace of its own, in which a stray process cannot hide.
// REPRISE_DAMAGED_SETS sets how many, REPRISE_HARM_SEED which.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { ERROR_CODES } from "../../src/errors.ts";
import { MANIFEST_NAME } from "../../src/images/manifest.ts";
import { damageMessage } from "./damage.ts";
import type { EngineOrder } from "./engine-child.ts";
import { BUNDLE, randomOf, useEngineBundle } from "./engine-death.ts";
import { start } from "./suite.ts";

const SETS = Number(process.env.REPRISE_DAMAGED_SETS ?? 60);
const SEED = Number(process.env.REPRISE_HARM_SEED ?? 1);
const PATIENCE_MS = 20_000;
/** Of a restored tree that was told to say how it goes, and of an error. */
const LAST_WORDS = /^(?:restored|([A-Z_]+): cannot .*\nleft: none)$/m;

useEngineBundle();

test.each(["deleted_files", "unix_pairs", "posix_timers"])(
  "%s: a damaged set is restored, or refused with nothing left",
  { timeout: 30_000 + SETS * 1500 },
  async (name) => {
    const program = await start(name);
    const imagesDir = mkdtempSync(join(program.dir, "images-"));
    await checkpoint({ pid: program.pid, imagesDir });
    rmSync(join(imagesDir, MANIFEST_NAME));
    const order: EngineOrder = { action: "restore", imagesDir };
    expect(restoreApart(order)).toBe("restored");
    let refused = 0;
    const random = randomOf(SEED);
    for (let at = 0; at < SETS / 3; at++) {
      const { undo, what } = damage(imagesDir, random);
      const words = restoreApart(order);
      undo();
      const where = `${name}, seed ${SEED}, set ${at} (${what})`;
      expect(words, where).toMatch(LAST_WORDS);
      const code = LAST_WORDS.exec(words)?.[1];
      if (code === undefined) continue;
      refused++;
      expect(ERROR_CODES, where).toContain(code);
      expect(code, where).not.toBe("INTERNAL");
    }
    expect(refused).toBeGreaterThan(0);
  },
);

/** Restores in new pid and mount namespaces, which end with the engine. Gives what it says. */
function restoreApart(order: EngineOrder): string {
  const engine = [process.execPath, BUNDLE, JSON.stringify(order)];
  const options = { encoding: "utf8", timeout: PATIENCE_MS, killSignal: "SIGKILL" } as const;
  const apart = ["--pid", "--mount", "--fork", "--mount-proc", "--kill-child"];
  const { stderr, signal } = spawnSync("unshare", [...apart, ...engine], options);
  return signal === null ? stderr.trimEnd() : `ended by ${signal}`;
}

/** Changes a message, or a byte, or cuts a file off. */
function damage(
  dir: string,
  random: ReturnType<typeof randomOf>,
): { readonly what: string; readonly undo: () => void } {
  const names = readdirSync(dir).filter((name) => readFileSync(join(dir, name)).length > 0);
  const name = names[random.below(names.length)] ?? "";
  const path = join(dir, name);
  const original = readFileSync(path);
  const at = random.below(original.length);
  const bytes = Buffer.from(original);
  const undo = (): void => writeFileSync(path, original);
  const damaged = random.below(2) === 0 ? damageMessage(original, random) : undefined;
  if (damaged !== undefined) {
    writeFileSync(path, damaged);
    return { what: `a message of ${name}`, undo };
  }
  if (random.below(6) === 0) writeFileSync(path, original.subarray(0, at));
  else {
    bytes[at] = (bytes[at] ?? 0) ^ (1 + random.below(255));
    writeFileSync(path, bytes);
  }
  return { what: `${name} at ${at}`, undo };
}
