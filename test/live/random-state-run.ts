// Runs many seeds, one after another, and prints each kind of difference with the smallest script that still shows it:
//
//   node --import tsx test/live/random-state-run.ts FIRST LAST [MODE] [--no-shrink]
//   node --import tsx test/live/random-state-run.ts --script FILE [MODE]
//   node --import tsx test/live/random-state-run.ts --named
//
// To be run in namespaces of its own, as random-state.test.ts does.

import { readFileSync } from "node:fs";
import { makeScript, runScript, shrink, type Mode, type Outcome } from "./random-state.ts";
import { SCRIPTS } from "./random-state-scripts.ts";

const args = process.argv.slice(2).filter((one) => !one.startsWith("--"));
const shrinks = !process.argv.includes("--no-shrink");
if (process.argv.includes("--script")) {
  const [file = "", mode = "plain"] = args;
  const script = readFileSync(file, "utf8")
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  print(script, await outcomeOf(script, mode as Mode), () => true);
} else if (process.argv.includes("--named")) {
  let failed = 0;
  for (const [name, script] of Object.entries(SCRIPTS)) {
    const outcome = await outcomeOf(script, "plain");
    if (outcome.differences.length === 0 && outcome.refused === undefined) continue;
    failed += 1;
    console.log(`lost: ${name}`);
    print(script, outcome, () => true);
  }
  console.log(`${Object.keys(SCRIPTS).length} scripts, ${failed} failed`);
} else {
  const [first = "1", last = first, mode = "plain"] = args;
  await runSeeds(Number(first), Number(last), mode as Mode);
}

async function runSeeds(first: number, last: number, mode: Mode): Promise<void> {
  const known = new Map<string, number>();
  let failed = 0;
  let refused = 0;
  for (let seed = first; seed <= last; seed++) {
    const script = makeScript(seed);
    const found = await outcomeOf(script, mode);
    if (found.refused !== undefined) {
      refused += 1;
      console.log(`seed ${seed}: refused: ${found.refused}`);
    }
    if (found.differences.length === 0) continue;
    failed += 1;
    console.log(
      `seed ${seed}: ${found.differences.length} differences, kinds ${[...new Set(found.differences.map(kindOf))].join(" | ")}`,
    );
    for (const difference of found.differences) {
      const kind = kindOf(difference);
      const before = known.get(kind) ?? 0;
      known.set(kind, before + 1);
      if (before > 0) continue;
      console.log(`  NEW seed ${seed}: ${difference.slice(0, 500)}`);
      if (!shrinks) continue;
      let tries = 0;
      const smaller = await shrink(script, async (candidate) => {
        if (tries++ > 150) return false;
        return (await outcomeOf(candidate, mode)).differences.some((line) => kindOf(line) === kind);
      });
      const shown = await outcomeOf(smaller, mode);
      print(smaller, shown, (line) => kindOf(line) === kind);
      for (const line of shown.differences)
        known.set(kindOf(line), (known.get(kindOf(line)) ?? 0) + 1);
    }
  }
  console.log(`${last - first + 1} seeds, ${failed} failed, ${refused} refused`);
  for (const [kind, count] of [...known].sort((one, other) => other[1] - one[1]))
    console.log(`  ${count} x ${kind}`);
}

function print(
  script: readonly string[],
  { notes, differences, warnings, refused }: Outcome,
  isShown: (line: string) => boolean,
): void {
  for (const line of script) console.log(`    ${line}`);
  for (const line of notes.split("\n").filter(Boolean)) console.log(`    # ${line}`);
  for (const line of differences.filter(isShown).slice(0, 30))
    console.log(`    => ${line.slice(0, 400)}`);
  for (const line of warnings.slice(0, 8)) console.log(`    warned: ${line.slice(0, 300)}`);
  if (refused !== undefined) console.log(`    refused: ${refused}`);
}

/** A difference without its numbers. */
function kindOf(line: string): string {
  return line
    .replace(/^(restored twice|restored|left running): /, "")
    .replace(/\/tmp\/\S+/g, "PATH")
    .replace(/\b[\da-f]{8,}\b|0x[\da-f]+|\d+/g, "N")
    .slice(0, 90);
}

async function outcomeOf(script: readonly string[], mode: Mode): Promise<Outcome> {
  try {
    return await runScript(script, mode);
  } catch (error) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { differences: [`error: ${text}`], notes: "", warnings: [] };
  }
}
